"""Support: a ball knocks a tower that holds the agent, often on its top; does the agent fall onto the mat?"""

from __future__ import annotations

import math

from physion.simulation.materials import RED
from physion.simulation.parts import clutter, patient_mat, probe_ball, random_solid
from physion.simulation.scene import AGENT, Contact, Geom, Scenario, Scene


def _build(scene: Scene) -> None:
    draws = scene.draws
    clutter(scene)
    count, z = draws.integer(2, 4), 0.002
    agent_number = count if draws.chance(0.7) else draws.integer(1, count)
    jitter, half_width = draws.uniform(0, 0.05), draws.uniform(0.08, 0.12)
    same_color = scene.color() if draws.chance(0.5) else None
    for number in range(count + 1):
        if number == count:
            cap = random_solid(draws, draws.uniform(0.08, 0.12), ("box", "cylinder", "cone"))
            geom, half_height = cap.geom, cap.half_height
        else:
            width, half_height = half_width * draws.uniform(0.8, 1.15), draws.uniform(0.07, 0.13)
            is_box = draws.chance(0.6)
            geom = Geom("box", (width, width, half_height)) if is_box else Geom("cylinder", (width, half_height))
        is_agent = number == agent_number
        z += half_height
        scene.add_body(
            AGENT if is_agent else f"block{number}",
            [geom],
            (draws.uniform(-jitter, jitter), draws.uniform(-jitter, jitter), z),
            (0, 0, draws.uniform(-30, 30)),
            material=scene.material(RED if is_agent else same_color),
            density=draws.uniform(200, 450),
            contact=Contact(friction=0.5),
        )
        z += half_height + 0.001
    half_mat = draws.uniform(0.36, 0.52)
    # On either side of the tower: a hard hit throws the top forwards, a low one drops it backwards.
    angle = draws.choose(0.0, math.pi) + draws.uniform(-0.5, 0.5)
    away = half_width * 1.2 + draws.uniform(0, 0.10) + half_mat
    patient_mat(scene, away * math.cos(angle), away * math.sin(angle), half_mat, half_mat)
    probe_ball(scene, radius=(0.15, 0.22), speed=(1.4, 3.6), density=(800, 4000))


SUPPORT = Scenario(_build, release=(27, 36), settle=0.5)
