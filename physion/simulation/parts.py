"""The parts scenarios share: random solids, balls that roll, the yellow mat, ramps, rings and the clutter around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from physion.simulation.draws import Draws
from physion.simulation.materials import YELLOW, Color, Material, Pattern
from physion.simulation.scene import PATIENT, Contact, Geom, Scene, Vector


@dataclass(frozen=True)
class Solid:
    """A primitive solid that stands on its base."""

    geom: Geom
    half_height: float

    @property
    def is_ball(self) -> bool:
        """Whether it rolls in every direction."""
        return self.geom.shape == "sphere"


ALL_SHAPES = ("sphere", "box", "cylinder", "cone")


def random_solid(draws: Draws, radius: float, shapes: tuple[str, ...] = ALL_SHAPES) -> Solid:
    """A random primitive of about the given radius."""
    shape = draws.choose(*shapes)
    if shape == "sphere":
        return Solid(Geom("sphere", (radius,)), radius)
    if shape == "box":
        half_x, half_y, half_z = (radius * draws.uniform(0.75, 1.1) for _ in range(3))
        return Solid(Geom("box", (half_x, half_y, half_z)), half_z)
    half_height = radius * draws.uniform(0.75, 1.2)
    if shape == "cone":
        return Solid(cone(radius, half_height), half_height)
    return Solid(Geom("cylinder", (radius * 0.85, half_height)), half_height)


def cone(radius: float, half_height: float) -> Geom:
    """A cone whose mid-height is at z = 0."""
    angles = np.arange(16) * np.pi / 8
    base = [(radius * float(np.cos(a)), radius * float(np.sin(a)), -half_height) for a in angles]
    return Geom("cone", vertices=(*base, (0.0, 0.0, half_height)))


def wedge(half_length: float, half_width: float, height: float) -> Geom:
    """A ramp: `height` at x = 0, down to the floor at x = 2 half_length."""
    foot = 2 * half_length
    low = ((0.0, -half_width, 0.0), (0.0, half_width, 0.0), (foot, -half_width, 0.0), (foot, half_width, 0.0))
    return Geom("wedge", vertices=(*low, (0.0, -half_width, height), (0.0, half_width, height)))


def ring(radius: float, tube: float, pieces: int = 10) -> list[Geom]:
    """A ring around z with the given center-line and tube radius, made of capsules end to end."""
    half_length = radius * float(np.tan(np.pi / pieces))
    angles = [2 * np.pi * piece / pieces for piece in range(pieces)]
    return [
        Geom(
            "capsule",
            (tube, half_length),
            (radius * float(np.cos(angle)), radius * float(np.sin(angle)), 0.0),
            (90.0, float(np.degrees(angle)), 0.0),
        )
        for angle in angles
    ]


def standing_patient(scene: Scene, solid: Solid, x: float, y: float, *, static: bool = False) -> None:
    """The yellow object, standing on the floor."""
    position = (x, y, solid.half_height)
    yaw = scene.draws.uniform(0, 90)
    material = scene.material(YELLOW)
    scene.add_body(PATIENT, [solid.geom], position, (0, 0, yaw), material=material, static=static, density=300)


def patient_mat(scene: Scene, x: float, y: float, half_x: float, half_y: float) -> None:
    """The yellow patient as a thin mat on the floor."""
    scene.add_body(
        PATIENT,
        [Geom("box", (half_x, half_y, 0.006))],
        (x, y, 0.006),
        material=Material(YELLOW),
        static=True,
        contact=Contact(friction=0.8),
    )


def rolling_ball(
    scene: Scene,
    name: str,
    radius: float,
    start: tuple[float, float],
    speed: float,
    heading: float,
    *,
    color: Color | None = None,
    density: float = 500.0,
    contact: Contact | None = None,
    drag: float = 0.0,
) -> None:
    """A ball that rolls without slipping from `start` with `speed` m/s towards `heading` radians."""
    along_x, along_y = speed * float(np.cos(heading)), speed * float(np.sin(heading))
    # A pattern of about one cell per radius shows that it rolls.
    material = Material(color or scene.color(), Pattern.CHECK, 1 / radius, 0.28, scene.look.uniform(0.0, 0.35))
    scene.add_body(
        name,
        [Geom("sphere", (radius,))],
        (*start, radius),
        material=material,
        velocity=(along_x, along_y, 0.0, -along_y / radius, along_x / radius, 0.0),
        density=density,
        contact=contact,
        drag=drag,
    )


def probe_ball(scene: Scene, radius: tuple[float, float], speed: tuple[float, float], density: tuple[float, float]) -> None:
    """A ball that rolls along x into the object at the origin; every property is drawn from its range."""
    draws = scene.draws
    drawn_radius = draws.uniform(*radius)
    start = (draws.uniform(-0.92, -0.75), draws.uniform(-0.06, 0.06))
    heading = float(np.radians(draws.uniform(-4, 4)))
    rolling_ball(
        scene,
        "probe",
        drawn_radius,
        start,
        draws.uniform(*speed),
        heading,
        density=draws.uniform(*density),
        drag=0.002,
    )


def clutter(scene: Scene, *, behind: float = 1.05, before: float = 0.95) -> None:
    """Distractors `behind` meters beyond the action, and occasionally a low one `before` it, nearer the camera."""
    look = scene.look
    for number in range(look.integer(0, 2)):
        half_height, half_width = look.uniform(0.12, 0.45), look.uniform(0.08, 0.2)
        geom = look.choose(Geom("box", (half_width, half_width, half_height)), Geom("cylinder", (half_width, half_height)))
        away = behind + half_width + look.uniform(0, 0.5)
        position = (look.uniform(-1.2, 1.2), -scene.camera_side * away, half_height)
        _distractor(scene, f"distractor{number}", geom, position)
    if look.chance(0.35):
        half_height, half_width = look.uniform(0.06, 0.14), look.uniform(0.05, 0.09)
        near = before + half_width + look.uniform(0, 0.2)
        position = (look.uniform(-0.7, 0.7), scene.camera_side * near, half_height)
        _distractor(scene, "occluder", Geom("box", (half_width, half_width, half_height)), position)


def _distractor(scene: Scene, name: str, geom: Geom, position: Vector) -> None:
    # Not framed: the camera need not show bystanders.
    scene.add_body(name, [geom], position, (0, 0, scene.look.uniform(0, 90)), static=True, framed=False)
