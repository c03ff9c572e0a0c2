"""The eight scenarios, one module each; a scenario only describes a scene, physics decides its label."""

from importlib import import_module

from physion.simulation import SCENARIOS
from physion.simulation.scene import Scenario

RECIPES: dict[str, Scenario] = {name: getattr(import_module(f"{__name__}.{name.lower()}"), name.upper()) for name in SCENARIOS}
