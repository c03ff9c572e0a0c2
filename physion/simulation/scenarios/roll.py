"""Roll: the agent rolls or slides down a ramp towards the patient, past obstacles; does it arrive?"""

from __future__ import annotations

import math

from physion.simulation.materials import RED, Material, Pattern
from physion.simulation.parts import clutter, patient_mat, random_solid, standing_patient, wedge
from physion.simulation.scene import AGENT, Contact, Geom, Scenario, Scene


def _build(scene: Scene) -> None:
    draws = scene.draws
    clutter(scene)
    slope = math.radians(draws.uniform(14, 32))
    half_incline = draws.uniform(0.32, 0.48)
    half_length, half_rise = half_incline * math.cos(slope), half_incline * math.sin(slope)
    ledge = draws.uniform(0.15, 0.30) if draws.chance(0.35) else 0.0
    start = -1.0 if ledge else -0.75
    if ledge:
        block = Geom("box", (half_length + 0.12, 0.25, ledge / 2))
        material = Material(scene.color(), Pattern.WOOD, 8.0)
        scene.add_body("ledge", [block], (start + half_length + 0.12, 0, ledge / 2), static=True, material=material)
    scene.add_body(
        "ramp",
        [wedge(half_length, 0.22, 2 * half_rise)],
        (start, 0, ledge),
        static=True,
        material=Material(scene.color(), Pattern.WOOD, 8.0),
        contact=Contact(friction=0.5),
    )
    _agent_on_ramp(scene, start, ledge + 2 * half_rise, half_incline, slope)

    foot = start + 2 * half_length + (0.24 if ledge else 0.0)
    distance = draws.uniform(0.45, 1.15)
    for number in range(draws.integer(0, 2)):
        solid = random_solid(draws, draws.uniform(0.05, 0.09), ("box", "cylinder"))
        x = foot + distance * draws.uniform(0.25, 0.75)
        position = (x, draws.sign() * draws.uniform(0.02, 0.4), solid.half_height)
        euler = (0, 0, draws.uniform(0, 90))
        scene.add_body(f"obstacle{number}", [solid.geom], position, euler, density=draws.uniform(100, 900))
    if draws.chance(0.4):
        half_x, half_y = draws.uniform(0.12, 0.2), draws.uniform(0.14, 0.22)
        patient_mat(scene, foot + distance, draws.uniform(-0.4, 0.4), half_x, half_y)
    else:
        patient = random_solid(draws, draws.uniform(0.10, 0.17))
        standing_patient(scene, patient, foot + distance, draws.uniform(-0.4, 0.4))


def _agent_on_ramp(scene: Scene, start: float, top: float, half_incline: float, slope: float) -> None:
    """Lay the agent on the incline whose upper edge is at x = `start`, z = `top`."""
    draws = scene.draws
    radius = draws.uniform(0.09, 0.135)
    shape = draws.choose("sphere", "sphere", "cylinder", "box")
    yaw = draws.uniform(-8, 8)
    euler, height, contact = (0.0, 0.0, yaw), radius, Contact(rolling=0.002)
    if shape == "sphere":
        geom = Geom("sphere", (radius,))
    elif shape == "cylinder":
        geom = Geom("cylinder", (radius, radius * draws.uniform(0.7, 1.3)), euler=(90, 0, 0))
    else:
        height = 0.7 * radius
        geom = Geom("box", (radius, radius, height))
        euler, contact = (0.0, math.degrees(slope), 0.0), Contact(friction=0.12, rolling=0.002, slippery=True)
    down = draws.uniform(0.1, 0.35) * 2 * half_incline
    x = start + down * math.cos(slope) + height * math.sin(slope)
    z = top - down * math.sin(slope) + height * math.cos(slope) + 0.002
    scene.add_body(
        AGENT,
        [geom],
        (x, draws.uniform(-0.06, 0.06), z),
        euler,
        material=Material(RED, Pattern.CHECK, 1 / radius, 0.28, scene.look.uniform(0.0, 0.35)),
        velocity=(0, 0.5 * math.sin(math.radians(yaw)), 0, 0, 0, 0),
        contact=contact,
        drag=draws.uniform(0.001, 0.01),
    )


ROLL = Scenario(_build, release=(16, 30))
