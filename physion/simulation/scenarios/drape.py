"""Drape: the agent, a cloth, falls over props beside the patient; do its folds reach the patient?"""

from __future__ import annotations

import math

from physion.simulation.draws import Draws
from physion.simulation.parts import clutter, random_solid, standing_patient
from physion.simulation.scene import Geom, Scenario, Scene

Spot = tuple[float, float, float]
"""x, y and radius of an occupied place."""


def _build(scene: Scene) -> None:
    draws = scene.draws
    clutter(scene, behind=0.9, before=0.85)
    centre = (draws.uniform(-0.2, 0.2), draws.uniform(-0.2, 0.2))
    side = draws.uniform(0.62, 0.95)
    taken: list[Spot] = []
    for number in range(draws.integer(1, 3)):
        radius, half_height = draws.uniform(0.06, 0.14), draws.uniform(0.10, 0.30)
        shape = draws.choose("box", "cylinder", "sphere")
        if shape == "box":
            geom = Geom("box", (radius, radius, half_height))
        elif shape == "cylinder":
            geom = Geom("cylinder", (radius, half_height))
        else:
            geom, half_height = Geom("sphere", (radius,)), radius
        x, y = _free_spot(draws, centre, radius * 1.3, (0.0, 0.3), taken)
        scene.add_body(f"prop{number}", [geom], (x, y, half_height), (0, 0, draws.uniform(0, 90)), static=True)
    patient = random_solid(draws, draws.uniform(0.08, 0.14))
    x, y = _free_spot(draws, centre, 0.17, (0.12, side / 2 + 0.22), taken)
    standing_patient(scene, patient, x, y, static=True)
    scene.add_cloth(
        (*centre, draws.uniform(0.80, 1.10)),
        (draws.uniform(-25, 25), draws.uniform(-25, 25), draws.uniform(0, 90)),
        side=side,
        vertices=11,
        friction=draws.uniform(0.3, 0.8),
    )


def _free_spot(
    draws: Draws, centre: tuple[float, float], radius: float, distance: tuple[float, float], taken: list[Spot]
) -> tuple[float, float]:
    """A place at a `distance` from the center, free if 60 tries find a free one; it is then occupied."""
    for _ in range(60):
        angle, away = draws.uniform(0, 2 * math.pi), draws.uniform(*distance)
        x, y = centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle)
        if all(math.hypot(x - other_x, y - other_y) > radius + other + 0.03 for other_x, other_y, other in taken):
            break
    taken.append((x, y, radius))
    return x, y


DRAPE = Scenario(_build, release=(34, 44), elevation=(25, 40))
