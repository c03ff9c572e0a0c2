"""Drop: the agent falls, often onto something else first; does it land or bounce on the patient?"""

from __future__ import annotations

import math

from physion.simulation.materials import RED
from physion.simulation.parts import clutter, patient_mat, random_solid, standing_patient, wedge
from physion.simulation.scene import AGENT, Contact, Geom, Scenario, Scene


def _build(scene: Scene) -> None:
    draws = scene.draws
    clutter(scene, behind=0.8, before=0.85)
    height = draws.uniform(0.95, 1.30)
    agent = random_solid(draws, draws.uniform(0.08, 0.14))
    scene.add_body(
        AGENT,
        [agent.geom],
        (0, 0, height),
        (draws.uniform(0, 360), draws.uniform(0, 360), draws.uniform(0, 360)),
        material=scene.material(RED),
        density=draws.uniform(200, 700),
        contact=Contact(rolling=0.002, damping_ratio=draws.uniform(0.12, 0.6)),
        drag=0.002,
    )
    offset, angle = draws.uniform(0, 0.48), draws.uniform(0, 2 * math.pi)
    if draws.chance(0.5):
        offset, angle = _deflector(scene, angle)
    x, y = offset * math.cos(angle), offset * math.sin(angle)
    if draws.chance(0.4):
        half_width = draws.uniform(0.12, 0.24)
        patient_mat(scene, x, y, half_width, half_width)
    else:
        standing_patient(scene, random_solid(draws, draws.uniform(0.12, 0.2)), x, y)


def _deflector(scene: Scene, angle: float) -> tuple[float, float]:
    """Something static under the agent; returns the distance and direction at which a patient may or may not be hit."""
    draws = scene.draws
    radius, yaw = draws.uniform(0.08, 0.20), draws.uniform(0, 360)
    x, y = draws.uniform(-0.1, 0.1), draws.uniform(-0.1, 0.1)
    kind = draws.choose("slope", "slope", "block", "dome")
    if kind == "slope":
        slope = wedge(radius * 1.2, radius, radius * draws.uniform(0.6, 1.6))
        scene.add_body("deflector", [slope], (x - radius * 1.2, y, 0), static=True)
        return draws.uniform(0.35, 0.7), draws.uniform(-0.5, 0.5)
    geom = Geom("box", (radius, radius, radius)) if kind == "block" else Geom("sphere", (radius,))
    scene.add_body("deflector", [geom], (x, y, radius), (0, 0, yaw), static=True)
    return radius + draws.uniform(0.1, 0.4), angle


DROP = Scenario(_build, release=(33, 41))
