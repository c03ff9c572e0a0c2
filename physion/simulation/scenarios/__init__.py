"""The eight scenarios, one module each; a scenario only describes a scene, physics decides its label."""

from physion.simulation.scenarios.collide import COLLIDE
from physion.simulation.scenarios.contain import CONTAIN
from physion.simulation.scenarios.dominoes import DOMINOES
from physion.simulation.scenarios.drape import DRAPE
from physion.simulation.scenarios.drop import DROP
from physion.simulation.scenarios.link import LINK
from physion.simulation.scenarios.roll import ROLL
from physion.simulation.scenarios.support import SUPPORT
from physion.simulation.scene import Scenario

RECIPES: dict[str, Scenario] = {
    "Collide": COLLIDE,
    "Contain": CONTAIN,
    "Dominoes": DOMINOES,
    "Drape": DRAPE,
    "Drop": DROP,
    "Link": LINK,
    "Roll": ROLL,
    "Support": SUPPORT,
}
