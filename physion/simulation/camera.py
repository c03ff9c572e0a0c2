"""The camera: a pinhole, aimed by the observed frames and nothing later."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin, tan

import mujoco
import numpy as np

from physion.simulation.cloth import rasterise
from physion.simulation.draws import Draws
from physion.simulation.rays import cast_rays
from physion.simulation.scene import AGENT, MOVING_GROUP, PATIENT, STATIC_GROUP, Scene

HALF_FIELD_OF_VIEW = tan(radians(20))
NEAREST, FARTHEST = 1.3, 4.2
VIEWS = 16
WELL_SEEN = 0.008
"""If agent and patient each fill this share of the picture in frame 0, no better view is needed."""
CLOTH_FACTOR = 5
"""How much more of the picture a cloth must fill than a solid to count as equally visible."""
PROBED_SIDE = 48
"""Visibility is measured on a grid of this many rays along each side."""


@dataclass(frozen=True)
class Camera:
    """A square pinhole camera; all vectors are float64 [3] in the world."""

    eye: np.ndarray
    forward: np.ndarray
    right: np.ndarray
    up: np.ndarray

    def rays(self, side: int) -> np.ndarray:
        """Unit directions through the centers of side x side pixels, row by row: float64 [side * side, 3]."""
        x = ((np.arange(side) + 0.5) / side * 2 - 1) * HALF_FIELD_OF_VIEW
        directions: np.ndarray = self.forward + x[None, :, None] * self.right - x[:, None, None] * self.up
        directions /= np.linalg.norm(directions, axis=2, keepdims=True)
        return directions.reshape(-1, 3)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points [P, 3] to picture coordinates [P, 2] (0..1 from the upper left) and depths [P] in meters."""
        offset = points - self.eye
        depth = offset @ self.forward
        scale = 2 * depth * HALF_FIELD_OF_VIEW
        return np.stack([0.5 + offset @ self.right / scale, 0.5 - offset @ self.up / scale], axis=1), depth


@dataclass(frozen=True)
class View:
    """A camera and what it shows."""

    camera: Camera
    seen: float
    """Share of the picture that the less visible of agent and patient fills in frame 0."""


def aim_camera(scene: Scene, model: mujoco.MjModel, observed: np.ndarray, cloth: np.ndarray | None, draws: Draws) -> View:
    """The nearest of several random views that frames the action and shows agent and patient well.

    `observed` holds only the states of the observed frames, [45, nq], and `cloth` its vertices in frame 0, [V, 3]: framing by
    the whole clip would reveal where the agent ends up.
    """
    data = mujoco.MjData(model)
    points = _points_to_frame(scene, model, data, observed, cloth)
    margin = draws.uniform(0.05, 0.09)
    look_at = 0.5 * points.mean(axis=0) + 0.25 * (points.min(axis=0) + points.max(axis=0))
    best: View | None = None
    for _ in range(VIEWS):
        azimuth = -90 * scene.camera_side + draws.uniform(-35, 35)
        camera = _nearest_view(azimuth, draws.uniform(*scene.scenario.elevation), look_at, points, margin)
        view = View(camera, _share_seen(camera, model, data, cloth))
        if best is None or view.seen > best.seen:
            best = view
        if view.seen >= WELL_SEEN:
            break
    assert best is not None
    return best


def _points_to_frame(
    scene: Scene, model: mujoco.MjModel, data: mujoco.MjData, observed: np.ndarray, cloth: np.ndarray | None
) -> np.ndarray:
    """Corners [P, 3] of what must be in the picture: the agent over the observed frames, all else in frame 0.

    Leaves `data` posed at frame 0.
    """
    points: list[np.ndarray] = []
    if cloth is None:
        agent = model.body(AGENT).id
        radius = min(0.18, 0.7 * _body_radius(model, agent))
        for state in observed[::4]:
            pose(model, data, state)
            centre = data.xipos[agent].copy()
            # An agent that has left the stage must not shrink everything else.
            if np.abs(centre[:2]).max() < 1.3:
                points += [centre - radius, centre + radius]
    pose(model, data, observed[0])
    if cloth is None:
        # How high it hangs shows in where it appears above the floor.
        points.append(data.xipos[agent] * (1, 1, 0))
    else:
        points += [cloth.min(axis=0), cloth.max(axis=0)]
    for name in scene.framed:
        body = model.body(name).id
        # A mat may extend beyond the picture; standing objects should not.
        radius = min(0.22, 0.8 * _body_radius(model, body))
        points += [data.xipos[body] - radius, data.xipos[body] + radius]
    return np.array(points)


def pose(model: mujoco.MjModel, data: mujoco.MjData, state: np.ndarray) -> None:
    """Set the bodies to the generalized positions [nq]."""
    data.qpos[:] = state
    mujoco.mj_kinematics(model, data)


def _body_radius(model: mujoco.MjModel, body: int) -> float:
    return float(max(model.geom_rbound[model.geom_bodyid == body]))


def _nearest_view(azimuth: float, elevation: float, look_at: np.ndarray, points: np.ndarray, margin: float) -> Camera:
    """The closest view in a direction (degrees) that shows all points within the given margin of the picture."""
    turn, tilt = radians(azimuth), radians(elevation)
    forward = np.array([cos(tilt) * cos(turn), cos(tilt) * sin(turn), -sin(tilt)])
    right = np.array([sin(turn), -cos(turn), 0.0])
    up = np.cross(right, forward)
    distance = NEAREST
    while True:
        camera = Camera(look_at - distance * forward, forward, right, up)
        picture, depth = camera.project(points)
        if distance > FARTHEST or (depth.min() > 0.3 and picture.min() > margin and picture.max() < 1 - margin):
            return camera
        distance *= 1.03


def _share_seen(camera: Camera, model: mujoco.MjModel, data: mujoco.MjData, cloth: np.ndarray | None) -> float:
    """The share of the picture that the less visible of agent and patient fills."""
    geoms, _, _ = cast_rays(model, data, camera.eye, camera.rays(PROBED_SIDE), (STATIC_GROUP, MOVING_GROUP))
    bodies = model.geom_bodyid[geoms]
    patient = float((bodies == model.body(PATIENT).id).mean())
    if cloth is None:
        return min(patient, float((bodies == model.body(AGENT).id).mean()))
    # Nothing hangs in front of a cloth in the air, but it may be seen edge-on.
    picture, depths = camera.project(cloth)
    triangles = np.array(model.flex_elem).reshape(-1, 3)
    covered = rasterise(PROBED_SIDE * picture[triangles], depths[triangles], PROBED_SIDE).pixels
    return min(patient, len(covered) / PROBED_SIDE**2 / CLOTH_FACTOR)
