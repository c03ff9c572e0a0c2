"""PhysionSim: Physion's eight scenarios, simulated and rendered anywhere MuJoCo installs.

Every clip asks Physion's question, "does the red agent touch the yellow patient by the end?", over 150 frames at
30 fps of which a model sees the first 45. A clip is a function of (scenario, seed, index): the same arrays on every
run and in every process, as long as the engine is the pinned one. `README.md` beside this file has the measurements.

Importing this module imports no engine; making a clip does.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from physion.errors import ConfigError

if TYPE_CHECKING:
    from physion.simulation.physics import Trajectory
    from physion.simulation.truth import Truth

SCENARIOS: tuple[str, ...] = ("Collide", "Contain", "Dominoes", "Drape", "Drop", "Link", "Roll", "Support")
ENGINE = "mujoco 3.17.0"

__all__ = ["ENGINE", "SCENARIOS", "Clip", "make_clip", "make_trajectory", "require_engine"]


@dataclass
class Clip:
    """One rendered clip and its label."""

    frames: np.ndarray
    """uint8 [T=150, H, W, 3], RGB."""
    label: bool
    """Whether agent and patient touch at any time in the clip."""
    first_contact: int | None
    """The first frame at or after their first contact, never below 45; None if they do not touch."""
    truth: Truth | None = None
    """The engine's ground truth about it, if requested."""


def make_clip(scenario: str, seed: int, index: int, *, size: int = 128, antialias: int = 2, with_truth: bool = False) -> Clip:
    """Simulate and render clip `index` of a scenario.

    Clips 2k and 2k+1 hold one positive and one negative, in random order. `size` is the height and width in pixels and
    `antialias` the rays per pixel along each axis; neither changes the physics or the label.

    Raises ConfigError for an unknown scenario, or if the pinned engine is not installed.
    """
    trajectory = make_trajectory(scenario, seed, index)
    from physion.simulation.renderer import Renderer

    clip = Clip(Renderer(trajectory, size, antialias).frames(), trajectory.label, trajectory.first_contact)
    if with_truth:
        from physion.simulation.truth import truth_of

        clip.truth = truth_of(trajectory, size)
    return clip


def make_trajectory(scenario: str, seed: int, index: int) -> Trajectory:
    """Simulate clip `index` of a scenario without rendering it: the states, contacts and label `make_clip` would show.

    Raises ConfigError for an unknown scenario, or if the pinned engine is not installed.
    """
    if scenario not in SCENARIOS:
        raise ConfigError(f"unknown scenario {scenario!r}: choose from {', '.join(SCENARIOS)}")
    require_engine()
    from physion.simulation.physics import balanced_trajectory

    return balanced_trajectory(scenario, seed, index)


def require_engine() -> None:
    """Raise ConfigError unless exactly the pinned engine is installed: another version flips about 1 label in 50."""
    package, pinned = ENGINE.split()
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        found = f"{package} is not installed"
    else:
        if installed == pinned:
            return
        found = f"{package} {installed} is installed"
    raise ConfigError(f"PhysionSim needs {ENGINE}, but {found}; install it with: pip install {package}=={pinned}")
