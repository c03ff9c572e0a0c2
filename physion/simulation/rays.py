"""Rays against the rigid bodies, using the engine's own caster: no OpenGL, no display."""

from __future__ import annotations

import mujoco
import numpy as np


def cast_rays(
    model: mujoco.MjModel, data: mujoco.MjData, origin: np.ndarray, directions: np.ndarray, groups: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest geom of the given groups along each of the unit directions [P, 3] from one origin [3].

    Returns geom ids int32 [P] (-1 if nothing is hit), distances float64 [P] (infinite there) and normals float64 [P, 3]. Cloths
    are never hit: the engine's caster does not support them.
    """
    count = len(directions)
    geoms, distances, normals = np.full(count, -1, np.int32), np.full(count, -1.0), np.zeros(3 * count)
    if count:
        wanted = np.zeros(6, np.uint8)
        wanted[list(groups)] = 1
        flat = np.ascontiguousarray(directions, np.float64).ravel()
        mujoco.mj_multiRay(model, data, origin, flat, wanted, True, -1, geoms, distances, normals, count, 1e9)
    distances[geoms < 0] = np.inf
    return geoms, distances, normals.reshape(-1, 3)
