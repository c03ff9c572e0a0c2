"""Collide: the agent rolls, slides or flies towards the patient, past things in the way; does it hit?"""

from __future__ import annotations

import math

from physion.simulation.materials import RED
from physion.simulation.parts import Solid, clutter, random_solid, rolling_ball, standing_patient
from physion.simulation.scene import AGENT, Contact, Scenario, Scene


def _build(scene: Scene) -> None:
    draws = scene.draws
    clutter(scene)
    distance = draws.uniform(1.2, 1.6)
    start = -distance / 2
    agent = random_solid(draws, draws.uniform(0.11, 0.17), ("sphere", "sphere", "box", "cylinder"))
    patient = random_solid(draws, draws.uniform(0.12, 0.19))
    patient_y = draws.uniform(-0.25, 0.25)
    standing_patient(scene, patient, start + distance, patient_y)
    heading = math.atan2(patient_y, distance) + math.radians(draws.uniform(-18, 18))
    if draws.chance(0.3):
        _fling(scene, agent, start, heading)
    elif agent.is_ball:
        speed, drag = draws.uniform(0.8, 1.8), draws.uniform(0.001, 0.01)
        contact = Contact(rolling=0.002)
        rolling_ball(scene, AGENT, agent.half_height, (start, 0.0), speed, heading, color=RED, contact=contact, drag=drag)
    else:
        _slide(scene, agent, start, heading)
    for number in range(draws.integer(0, 2)):
        solid = random_solid(draws, draws.uniform(0.06, 0.12))
        x = start + distance * draws.uniform(0.35, 0.7)
        y = draws.sign() * draws.uniform(0.03, 0.45)
        position = (x, y, solid.half_height)
        euler = (0, 0, draws.uniform(0, 90))
        scene.add_body(f"obstacle{number}", [solid.geom], position, euler, density=draws.uniform(100, 600))


def _fling(scene: Scene, agent: Solid, start: float, heading: float) -> None:
    draws = scene.draws
    speed, upward = draws.uniform(1.1, 1.9), draws.uniform(1.5, 3.0)
    spin = (draws.normal(2), draws.normal(2), draws.normal(2))
    scene.add_body(
        AGENT,
        [agent.geom],
        (start, 0, agent.half_height + draws.uniform(0.02, 0.3)),
        (0, 0, draws.uniform(0, 90)),
        material=scene.material(RED),
        velocity=(speed * math.cos(heading), speed * math.sin(heading), upward, *spin),
        contact=Contact(damping_ratio=draws.uniform(0.15, 0.6)),
        drag=0.005,
    )


def _slide(scene: Scene, agent: Solid, start: float, heading: float) -> None:
    draws = scene.draws
    speed = draws.uniform(1.4, 2.4)
    scene.add_body(
        AGENT,
        [agent.geom],
        (start, 0, agent.half_height),
        (0, 0, draws.uniform(0, 90)),
        material=scene.material(RED),
        velocity=(speed * math.cos(heading), speed * math.sin(heading), 0, 0, 0, draws.uniform(-2, 2)),
        contact=Contact(friction=0.05, slippery=True),
    )


COLLIDE = Scenario(_build, release=(25, 34))
