"""The cloth, which the ray caster does not see: a small z-buffer rasterizer, and a shadow map made with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fragments:
    """The nearest triangle in each covered pixel of a square picture; K pixels are covered."""

    pixels: np.ndarray
    """Row-major pixel numbers [K]."""
    triangles: np.ndarray
    """[K]."""
    weights: np.ndarray
    """Barycentric weights of the triangle's corners [K, 3]."""
    depths: np.ndarray
    """[K], in the unit of the given depths."""


def rasterise(corners: np.ndarray, depths: np.ndarray, side: int) -> Fragments:
    """Rasterise triangles: corners [F, 3, 2] in pixels, depths [F, 3], on side x side pixels.

    Every triangle is tested against the pixels of a window as large as the largest triangle, all at once.
    """
    corners = corners.astype(np.float32)
    first = np.floor(corners.min(axis=1)).astype(int)
    reach = np.ceil((corners.max(axis=1) - first).max(axis=0)).astype(int) + 1
    columns, rows = first[:, :1] + np.arange(reach[0]), first[:, 1:] + np.arange(reach[1])
    (x0, y0), (x1, y1), (x2, y2) = (corners[:, corner].T[:, :, None] for corner in range(3))
    # A weight is linear in x and in y: one small term for the columns, one for the rows, one sum over the window.
    x, y = columns.astype(np.float32) + 0.5 - x2, rows.astype(np.float32) + 0.5 - y2
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (y1 - y2) * (x0 - x2) + (x2 - x1) * (y0 - y2)
        weight0 = ((y1 - y2) / area * x)[:, None, :] + ((x2 - x1) / area * y)[:, :, None]
        weight1 = ((y2 - y0) / area * x)[:, None, :] + ((x0 - x2) / area * y)[:, :, None]
    # The tolerance closes the seams between neighboring triangles.
    inside = (weight0 >= -1e-4) & (weight1 >= -1e-4) & (weight0 + weight1 <= 1 + 1e-4)
    inside &= ((columns >= 0) & (columns < side))[:, None, :] & ((rows >= 0) & (rows < side))[:, :, None]
    triangle, row, column = np.nonzero(inside)
    weights = np.stack([weight0[triangle, row, column], weight1[triangle, row, column]], axis=1)
    weights = np.concatenate([weights, 1 - weights.sum(axis=1, keepdims=True)], axis=1)
    depth = (weights * depths[triangle]).sum(axis=1)
    pixels = rows[triangle, row] * side + columns[triangle, column]
    far_to_near = np.argsort(-depth, kind="stable")
    winner = np.full(side * side, -1)
    winner[pixels[far_to_near]] = far_to_near
    nearest = winner[winner >= 0]
    return Fragments(pixels[nearest], triangle[nearest], weights[nearest], depth[nearest])


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Smooth unit normals [V, 3] of a mesh: vertices [V, 3], triangles int [F, 3]."""
    corners = vertices[triangles]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals: np.ndarray = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], face_normals)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    return normals


class ShadowMap:
    """The cloth as seen from the lamp: which points are behind it."""

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray, lamp: np.ndarray, side: int) -> None:
        self.centre = vertices.mean(axis=0)
        self.radius = float(np.linalg.norm(vertices - self.centre, axis=1).max()) + 0.02
        self._lamp, self._side = lamp, side
        forward = self.centre - lamp
        distance = float(np.linalg.norm(forward))
        self._forward = forward / distance
        # Any direction works that is never parallel to a ray from a lamp near the ceiling.
        right = np.cross(self._forward, (0.0, 1.0, 0.3))
        self._right = right / np.linalg.norm(right)
        self._up = np.cross(self._forward, self._right)
        self._scale = side / 2 / (1.05 * self.radius / distance)
        picture, depths = self._project(vertices)
        fragments = rasterise(picture[triangles], depths[triangles], side)
        self._depths = np.full(side * side, np.inf)
        self._depths[fragments.pixels] = fragments.depths

    def shades(self, points: np.ndarray) -> np.ndarray:
        """Whether each of the points [P, 3] lies in the cloth's shadow: bool [P]."""
        picture, depths = self._project(points)
        cell = np.clip(picture.astype(int), 0, self._side - 1)
        # The centimeter keeps the cloth from shading itself.
        shaded: np.ndarray = self._depths[cell[:, 1] * self._side + cell[:, 0]] < depths - 0.01
        return shaded

    def _project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offset = points - self._lamp
        depths = offset @ self._forward
        picture = np.stack([offset @ self._right, offset @ self._up], axis=1)
        return picture / depths[:, None] * self._scale + self._side / 2, depths
