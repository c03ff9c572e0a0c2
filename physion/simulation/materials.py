"""What surfaces look like: colors, solid textures, and a room's floor, walls and lamp.

Objects are saturated; the floor and walls are muted and of low contrast, so that at 64 pixels a slot model finds
objects and not tiles. No distractor comes near the agent's red or the patient's yellow.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from physion.simulation.draws import Draws

Color = tuple[float, float, float]

RED: Color = (0.88, 0.07, 0.07)
YELLOW: Color = (0.98, 0.86, 0.06)
PALETTE: tuple[Color, ...] = (
    (0.10, 0.28, 0.82),
    (0.06, 0.55, 0.22),
    (0.00, 0.62, 0.66),
    (0.46, 0.15, 0.66),
    (0.38, 0.66, 0.95),
    (0.12, 0.16, 0.38),
    (0.93, 0.93, 0.95),
    (0.40, 0.80, 0.45),
    (0.70, 0.48, 0.86),
    (0.04, 0.36, 0.38),
)


class Pattern(Enum):
    """A solid texture: it depends on the place inside the object, so it turns and moves with the object."""

    PLAIN = "plain"
    CHECK = "check"
    STRIPES = "stripes"
    WOOD = "wood"


@dataclass(frozen=True)
class Material:
    """The look of one surface."""

    color: Color
    pattern: Pattern = Pattern.PLAIN
    frequency: float = 1.0
    """Pattern cells per meter."""
    contrast: float = 0.25
    """How much darker the pattern's dark parts are, 0 to 1."""
    gloss: float = 0.0
    """Strength of the highlight, 0 to 1."""

    def albedo(self, points: np.ndarray) -> np.ndarray:
        """The color at points of the object's own frame: [P, 3] meters to [P, 3] in 0..1, float32."""
        if self.pattern is Pattern.CHECK:
            dark = np.floor(points * self.frequency + 0.5).sum(axis=1) % 2
        elif self.pattern is Pattern.STRIPES:
            dark = np.floor(points[:, 0] * self.frequency * 2) % 2
        elif self.pattern is Pattern.WOOD:
            wavy = points[:, 0] + 0.12 * np.sin(5 * points[:, 1])
            dark = 0.5 - 0.5 * np.sin(3 * self.frequency * wavy)
        else:
            return np.broadcast_to(np.asarray(self.color, np.float32), points.shape)
        brightness: np.ndarray = (1 - self.contrast * dark).astype(np.float32)
        return np.outer(brightness, np.asarray(self.color, np.float32))


@dataclass(frozen=True)
class Room:
    """The look of the surroundings."""

    floor: Material
    wall: Material
    lamp: tuple[float, float, float]
    """Position of the one light, meters."""


def draw_room(draws: Draws, camera_side: float) -> Room:
    """A muted room, lit from the half where the camera stands (its y has the sign of `camera_side`)."""
    floor = Material(
        _muted(draws, 0.42, 0.68),
        draws.choose(Pattern.CHECK, Pattern.STRIPES, Pattern.WOOD, Pattern.PLAIN),
        draws.uniform(1.0, 3.5),
        draws.uniform(0.07, 0.16),
    )
    wall = Material(
        _muted(draws, 0.55, 0.85),
        draws.choose(Pattern.PLAIN, Pattern.PLAIN, Pattern.WOOD),
        draws.uniform(0.6, 2.0),
        draws.uniform(0.05, 0.10),
    )
    lamp = (draws.uniform(-1.2, 1.2), camera_side * draws.uniform(0.3, 1.8), draws.uniform(3.4, 4.4))
    return Room(floor, wall, lamp)


def draw_object_material(draws: Draws, color: Color) -> Material:
    """A random texture in the given color."""
    pattern = draws.choose(Pattern.PLAIN, Pattern.PLAIN, Pattern.CHECK, Pattern.STRIPES, Pattern.WOOD)
    return Material(color, pattern, draws.uniform(5.0, 12.0), draws.uniform(0.15, 0.30), draws.uniform(0.0, 0.35))


def _muted(draws: Draws, darkest: float, brightest: float) -> Color:
    grey = draws.uniform(darkest, brightest)
    red, green, blue = (min(1.0, grey * draws.uniform(0.90, 1.10)) for _ in range(3))
    return red, green, blue
