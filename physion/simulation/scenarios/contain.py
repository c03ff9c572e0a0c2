"""Contain: a ball knocks the stand of a bowl that holds the agent; does it spill onto the yellow mat?"""

from __future__ import annotations

import math

from physion.simulation.materials import RED, Material, Pattern
from physion.simulation.parts import clutter, patient_mat, probe_ball, random_solid
from physion.simulation.scene import AGENT, Contact, Geom, Scenario, Scene

THICKNESS = 0.012
MAT_TOP = 0.012


def _build(scene: Scene) -> None:
    draws = scene.draws
    clutter(scene)
    stand_radius, stand_height = draws.uniform(0.05, 0.10), draws.uniform(0.18, 0.32)
    stand = Geom("cylinder", (stand_radius, stand_height / 2))
    scene.add_body("stand", [stand], (0, 0, stand_height / 2 + MAT_TOP), density=draws.uniform(150, 500))

    bowl = _bowl(draws.uniform(0.15, 0.23), draws.uniform(0.03, 0.11), draws.uniform(0, 30))
    offset = (draws.uniform(-0.02, 0.02), draws.uniform(-0.02, 0.02))
    bowl_z = stand_height + MAT_TOP + THICKNESS + 0.002
    material = Material(scene.color(), Pattern.WOOD, 20.0)
    scene.add_body("bowl", bowl, (*offset, bowl_z), (0, 0, draws.uniform(-45, 45)), material=material, density=300)

    count, z = draws.integer(1, 3), stand_height + 0.06
    agent_number = draws.integer(0, count - 1)
    for number in range(count):
        solid = random_solid(draws, draws.uniform(0.055, 0.09))
        is_agent = number == agent_number
        z += solid.half_height + 0.02
        scene.add_body(
            AGENT if is_agent else f"content{number}",
            [solid.geom],
            (draws.uniform(-0.05, 0.05), draws.uniform(-0.05, 0.05), z),
            (0, 0, draws.uniform(0, 90)),
            material=scene.material(RED if is_agent else None),
            density=draws.uniform(200, 500),
            contact=Contact(rolling=0.003),
            drag=0.0005,
        )
        z += solid.half_height
    mat_x, mat_y = draws.uniform(0.25, 0.45), draws.uniform(-0.1, 0.1)
    patient_mat(scene, mat_x, mat_y, draws.uniform(0.85, 1.05), draws.uniform(0.7, 0.95))
    probe_ball(scene, radius=(0.12, 0.18), speed=(0.8, 2.4), density=(300, 2000))


def _bowl(half_width: float, half_wall: float, flare: float) -> list[Geom]:
    """A square tray whose four walls lean outwards by `flare` degrees."""
    lean = math.radians(flare)
    out = half_width + half_wall * math.sin(lean)
    middle = half_wall * math.cos(lean) + THICKNESS
    along_x, along_y = (THICKNESS, out, half_wall), (out, THICKNESS, half_wall)
    return [
        Geom("box", (half_width, half_width, THICKNESS)),
        Geom("box", along_x, (out, 0, middle), (0, flare, 0)),
        Geom("box", along_x, (-out, 0, middle), (0, -flare, 0)),
        Geom("box", along_y, (0, out, middle), (-flare, 0, 0)),
        Geom("box", along_y, (0, -out, middle), (flare, 0, 0)),
    ]


CONTAIN = Scenario(_build, release=(24, 34), settle=1.2, elevation=(26, 42))
