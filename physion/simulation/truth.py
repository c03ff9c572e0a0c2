"""The engine's ground truth about a clip, to measure models by: who is where in picture and room, and who touches whom.

Shapes: T=150 frames, B bodies, H W pixels. Body 0 is the agent, body 1 the patient.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from physion.simulation.camera import pose
from physion.simulation.physics import FRAMES, Trajectory
from physion.simulation.rays import cast_rays
from physion.simulation.renderer import (
    bounding_spheres,
    box_corners,
    cloth_in_front,
    frames_shown,
    rays_near,
    regroup_unmoved,
)
from physion.simulation.scene import AGENT, FPS, MOVING_GROUP, PATIENT, STATIC_GROUP

ROOM = ("floor", "wall")


@dataclass(frozen=True)
class Truth:
    """The ground truth of one clip."""

    bodies: tuple[str, ...]
    shapes: tuple[str, ...]
    """sphere, box, cylinder, capsule, cone, wedge, cloth, or compound."""
    sizes: np.ndarray
    """float32 [B, 3]: half the box around each body along its own axes, meters; for a cloth, along the room's in frame 0. A
    wedge's is up to 1.6 times as large: it is around the engine's box, which is tilted."""
    states: np.ndarray
    """float32 [T, B, 13]: center of mass (meters, z up), orientation of the body's own frame (quaternion w x y z), velocity of
    the center (m/s) and angular velocity (rad/s), all in the room. For a cloth: its vertices' mean, no turn, change of mean."""
    picture: np.ndarray
    """float32 [T, B, 3]: where the center is in the picture (x, y from the upper left corner, 0..1) and its depth, meters."""
    contacts: dict[tuple[str, str], int]
    """By pair of bodies, or body and `floor`: the first frame at or after their first contact."""
    masks: np.ndarray
    """uint8 [T, H, W]: 1 + the index of the body that the ray through the pixel's center meets, 0 for floor and walls."""


def truth_of(trajectory: Trajectory, size: int) -> Truth:
    """The ground truth of a clip whose pictures are `size` pixels per side."""
    scene = trajectory.scene
    bodies = (AGENT, PATIENT, *(name for name in scene.shapes if name not in (AGENT, PATIENT)))
    states = _states(trajectory, bodies)
    picture, depth = trajectory.view.camera.project(states[:, :, :3].reshape(-1, 3))
    return Truth(
        bodies,
        tuple(scene.shapes[name] for name in bodies),
        np.array([_half_extents(trajectory, name) for name in bodies], np.float32),
        states.astype(np.float32),
        np.column_stack([picture, depth]).reshape(FRAMES, -1, 3).astype(np.float32),
        trajectory.contacts,
        _masks(trajectory, bodies, size),
    )


def _is_cloth(trajectory: Trajectory, name: str) -> bool:
    return trajectory.scene.shapes[name] == "cloth"


def _half_extents(trajectory: Trajectory, name: str) -> np.ndarray:
    if _is_cloth(trajectory, name):
        assert trajectory.cloth is not None
        points = trajectory.cloth[0]
    else:
        model = trajectory.model
        geoms = np.flatnonzero(model.geom_bodyid == model.body(name).id)
        points = np.concatenate([box_corners(model, geom) for geom in geoms.tolist()])
    extents: np.ndarray = np.ptp(points, axis=0) / 2
    return extents


def _states(trajectory: Trajectory, bodies: tuple[str, ...]) -> np.ndarray:
    """Float64 [T, B, 13]."""
    model, data = trajectory.model, mujoco.MjData(trajectory.model)
    states = np.zeros((FRAMES, len(bodies), 13))
    rigid = [(number, model.body(name).id) for number, name in enumerate(bodies) if not _is_cloth(trajectory, name)]
    turning_first = np.empty(6)
    for frame in range(FRAMES):
        data.qvel[:] = trajectory.velocities[frame]
        pose(model, data, trajectory.states[frame])
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)
        for number, body in rigid:
            mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, turning_first, 0)
            states[frame, number, :3], states[frame, number, 3:7] = data.xipos[body], data.xquat[body]
            states[frame, number, 7:10], states[frame, number, 10:] = turning_first[3:], turning_first[:3]
    if trajectory.cloth is not None:
        cloth = bodies.index(AGENT)
        states[:, cloth, :3], states[:, cloth, 3] = trajectory.cloth.mean(axis=1, dtype=np.float64), 1
        states[1:, cloth, 7:10] = np.diff(states[:, cloth, :3], axis=0) * FPS
    return states


def _masks(trajectory: Trajectory, bodies: tuple[str, ...], size: int) -> np.ndarray:
    """Static parts are cast once; in frames in which something visibly moved, only the rays near it are cast again."""
    model, moving = regroup_unmoved(trajectory)
    data = mujoco.MjData(model)
    camera = trajectory.view.camera
    rays = camera.rays(size)
    rays_32 = rays.astype(np.float32)
    centres, radii = bounding_spheres(model, moving)
    triangles = np.array(model.flex_elem).reshape(-1, 3)
    names = [model.geom(geom).name.partition(".")[0] for geom in range(model.ngeom)]
    # One more entry than geoms: index -1 is a ray that meets none.
    number = np.array([*(0 if name in ROOM else 1 + bodies.index(name) for name in names), 0], np.uint8)

    pose(model, data, trajectory.states[0])
    geoms, static_distance, _ = cast_rays(model, data, camera.eye, rays, (STATIC_GROUP,))
    static = number[geoms]
    masks = np.empty((FRAMES, size * size), np.uint8)
    for frame, shown in enumerate(frames_shown(trajectory)):
        if shown != frame:
            masks[frame] = masks[frame - 1]
            continue
        pose(model, data, trajectory.states[frame])
        rotations = data.xmat[moving].reshape(-1, 3, 3)
        near = rays_near(camera.eye, rays_32, data.xpos[moving] + np.einsum("bij,bj->bi", rotations, centres), radii)
        geoms, distance, _ = cast_rays(model, data, camera.eye, rays[near], (MOVING_GROUP,))
        front = distance < static_distance[near]
        masks[frame] = static
        masks[frame, near[front]] = number[geoms[front]]
        if trajectory.cloth is not None:
            behind = static_distance.copy()
            behind[near[front]] = distance[front]
            fragments, seen = cloth_in_front(camera, trajectory.cloth[frame].astype(np.float64), triangles, behind)
            masks[frame, fragments.pixels[seen]] = 1 + bodies.index(AGENT)
    return masks.reshape(FRAMES, size, size)
