"""Dominoes: a row of dominoes topples, the agent last; does the row hold and does the agent reach the patient?"""

from __future__ import annotations

import math

from physion.simulation.materials import RED
from physion.simulation.parts import clutter, patient_mat, random_solid, standing_patient
from physion.simulation.scene import AGENT, Contact, Geom, Scenario, Scene


def _build(scene: Scene) -> None:
    draws = scene.draws
    clutter(scene, behind=0.7, before=0.75)
    count = draws.integer(2, 5)
    half_height = draws.uniform(0.20, 0.28)
    half_x, half_y = draws.uniform(0.03, 0.05), draws.uniform(0.08, 0.13)
    gap = 2 * half_height * draws.uniform(0.48, 0.92)
    # A taller domino needs less turning speed to go over its edge.
    topple = draws.uniform(1.5, 2.2) * math.sqrt(0.25 / half_height)
    same_color = scene.color() if draws.chance(0.6) else None
    x = -gap * count / 2
    for number in range(count + 1):
        is_first, is_agent = number == 0, number == count
        y, yaw = (0.0, 0.0) if is_first else (draws.uniform(-0.10, 0.10), draws.uniform(-35, 35))
        scene.add_body(
            AGENT if is_agent else f"domino{number}",
            [Geom("box", (half_x, half_y, half_height))],
            (x, y, half_height),
            (0, 0, yaw),
            material=scene.material(RED if is_agent else same_color),
            velocity=(topple * half_height, 0, 0, 0, topple, 0) if is_first else None,
            contact=Contact(friction=0.5),
        )
        if not is_agent:
            x += gap * (1.0 if is_first else draws.uniform(0.85, 1.2))
    face = x + half_x
    if draws.chance(0.7):
        half_length = draws.uniform(0.12, 0.3)
        mat_x = face + draws.uniform(0.4, 1.15) * 2 * half_height + half_length
        patient_mat(scene, mat_x, draws.uniform(-0.2, 0.2), half_length, draws.uniform(0.12, 0.3))
    else:
        patient = random_solid(draws, draws.uniform(0.08, 0.13))
        patient_x = face + 2 * half_height + draws.uniform(-0.22, 0.25)
        standing_patient(scene, patient, patient_x, draws.uniform(-0.2, 0.2))


DOMINOES = Scenario(_build, release=(16, 28))
