"""Link: a ball hits a pole that threads rings, the agent one of them; does the agent come to touch the mat?"""

from __future__ import annotations

from physion.simulation.materials import RED, Material, Pattern
from physion.simulation.parts import clutter, patient_mat, probe_ball, ring
from physion.simulation.scene import AGENT, Contact, Geom, Scenario, Scene

FOOT = 0.025
"""Half the height of the pole's foot."""


def _build(scene: Scene) -> None:
    draws = scene.draws
    clutter(scene)
    pole_radius, pole_half_height = draws.uniform(0.025, 0.04), draws.uniform(0.11, 0.21)
    foot = Geom("cylinder", (draws.uniform(0.07, 0.12), FOOT))
    pole = Geom("cylinder", (pole_radius, pole_half_height), (0, 0, FOOT + pole_half_height))
    scene.add_body(
        "pole",
        [foot, pole],
        (0, 0, FOOT),
        material=Material((0.82, 0.80, 0.78), Pattern.WOOD, 20.0),
        static=draws.chance(0.15),
        density=draws.uniform(300, 900),
    )
    count, z = draws.integer(1, 3), 2 * FOOT + 0.002
    agent_number = draws.integer(0, count - 1)
    for number in range(count):
        tube, radius = draws.uniform(0.035, 0.048), pole_radius + draws.uniform(0.065, 0.11)
        is_agent = number == agent_number
        z += tube
        scene.add_body(
            AGENT if is_agent else f"ring{number}",
            ring(radius, tube),
            (0, 0, z),
            material=Material(RED if is_agent else scene.color(), gloss=scene.look.uniform(0, 0.35)),
            density=draws.uniform(150, 500),
            contact=Contact(friction=0.4),
            drag=0.0005,
        )
        z += tube + 0.002
    half_width = draws.uniform(0.3, 0.5)
    mat_x = draws.uniform(0.16, 0.30) + half_width
    patient_mat(scene, mat_x, draws.uniform(-0.15, 0.15), half_width, draws.uniform(0.3, 0.5))
    probe_ball(scene, radius=(0.14, 0.20), speed=(1.5, 3.0), density=(1500, 4500))


LINK = Scenario(_build, release=(33, 40), settle=0.4, elevation=(18, 36))
