"""Pictures of a trajectory: static parts are shaded once; moving parts are ray cast in every frame in which they move."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from physion.simulation.camera import Camera, pose
from physion.simulation.cloth import Fragments, ShadowMap, rasterise, vertex_normals
from physion.simulation.materials import RED, Material
from physion.simulation.physics import FRAMES, Trajectory
from physion.simulation.rays import cast_rays
from physion.simulation.scene import MOVING_GROUP, STATIC_GROUP

STILL = 1e-3
"""Meters (or quaternion units) too small to see: about a tenth of a pixel at 128."""
SHADOW_BIAS = 0.008
CLOTH_RADIUS = 0.012
AMBIENT, DIFFUSE, SHININESS = 0.62, 0.56, 24
BOTH_GROUPS = (STATIC_GROUP, MOVING_GROUP)
_SIGNS = np.array(list(itertools.product((-1, 1), repeat=3)))


class Shading(NamedTuple):
    """What a surface looks like along P rays."""

    lit: np.ndarray
    """Color with the lamp in view, float32 [P, 3]."""
    dark: np.ndarray
    """Color in shadow, float32 [P, 3]."""
    exposed: np.ndarray
    """Whether the surface faces the lamp, bool [P]: if not, lit and dark are the same."""


@dataclass
class Surface:
    """The visible surface along P rays."""

    rays: np.ndarray
    """Ray numbers [P]."""
    points: np.ndarray
    """World [P, 3], meters."""
    normals: np.ndarray
    """Unit [P, 3], towards the eye."""
    albedo: np.ndarray
    """float32 [P, 3]."""
    gloss: np.ndarray
    """float32 [P]."""

    def without(self, rays: np.ndarray) -> Surface:
        """This surface without the given rays."""
        keep = ~np.isin(self.rays, rays)
        return Surface(self.rays[keep], self.points[keep], self.normals[keep], self.albedo[keep], self.gloss[keep])

    def joined(self, other: Surface) -> Surface:
        """Both surfaces."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Surface(*(np.concatenate(pair) for pair in pairs))


class Renderer:
    """Renders one trajectory at one size."""

    def __init__(self, trajectory: Trajectory, size: int, antialias: int) -> None:
        self._trajectory = trajectory
        self._model, self._moving = regroup_unmoved(trajectory)
        self._data = mujoco.MjData(self._model)
        self._size, self._antialias = size, antialias
        self._materials = _materials_by_geom(trajectory)
        self._lamp = np.array(trajectory.scene.room.lamp)
        self._centres, self._radii = bounding_spheres(self._model, self._moving)
        self._triangles = np.array(self._model.flex_elem).reshape(-1, 3)
        self._camera = trajectory.view.camera
        self._shade_static()

    def frames(self) -> np.ndarray:
        """All frames, uint8 [T=150, H, W, 3]; a frame in which nothing visibly moved repeats the previous one."""
        frames = np.empty((FRAMES, self._size, self._size, 3), np.uint8)
        for number, shown in enumerate(frames_shown(self._trajectory)):
            frames[number] = self.frame(number) if shown == number else frames[number - 1]
        return frames

    def frame(self, number: int) -> np.ndarray:
        """Frame `number`, uint8 [H, W, 3]."""
        pose(self._model, self._data, self._trajectory.states[number])
        rotations = self._data.xmat[self._moving].reshape(-1, 3, 3)
        centres = self._data.xpos[self._moving] + np.einsum("bij,bj->bi", rotations, self._centres)
        surface = self._rigid_surface(centres)
        rigid_count = len(surface.rays)
        shadow_map = None
        if self._trajectory.cloth is not None:
            vertices = self._trajectory.cloth[number].astype(np.float64)
            cloth = self._cloth_surface(vertices, surface)
            surface = surface.without(cloth.rays)
            rigid_count = len(surface.rays)
            surface = surface.joined(cloth)
            shadow_map = ShadowMap(vertices, self._triangles, self._lamp, self._size)

        picture = self._static_lit.copy()
        shaded = self._static_shadows(centres, shadow_map)
        picture[shaded] = self._static_dark[shaded]
        shading = self._shade(surface)
        in_shadow = np.zeros(len(surface.rays), bool)
        in_shadow[shading.exposed] = self._in_rigid_shadow(surface.points[shading.exposed])
        if shadow_map is not None:
            in_shadow[:rigid_count] |= shadow_map.shades(surface.points[:rigid_count])
        picture[surface.rays] = np.where(in_shadow[:, None], shading.dark, shading.lit)
        return self._develop(picture)

    def _shade_static(self) -> None:
        """Shade everything that never moves, once lit and once in the shadow of what does."""
        pose(self._model, self._data, self._trajectory.states[0])
        self._rays = self._camera.rays(self._size * self._antialias)
        geoms, self._static_distance, normals = cast_rays(
            self._model, self._data, self._camera.eye, self._rays, (STATIC_GROUP,)
        )
        # The walls close the room, so every ray hits something.
        points = self._camera.eye + self._rays * self._static_distance[:, None]
        surface = Surface(np.arange(len(points)), points, normals, *self._appearance(geoms, points))
        self._static_lit, self._static_dark, _ = self._shade(surface)
        from_lamp = points - self._lamp
        self._lamp_distance = np.linalg.norm(from_lamp, axis=1)
        self._lamp_rays = from_lamp / self._lamp_distance[:, None]
        _, distance, _ = cast_rays(self._model, self._data, self._lamp, self._lamp_rays, (STATIC_GROUP,))
        shaded = distance < self._lamp_distance - SHADOW_BIAS
        self._static_lit[shaded] = self._static_dark[shaded]
        self._static_points = points
        # Culling covers all rays in every frame; single precision halves its cost.
        self._rays_32, self._lamp_rays_32 = self._rays.astype(np.float32), self._lamp_rays.astype(np.float32)

    def _rigid_surface(self, centres: np.ndarray) -> Surface:
        """The moving rigid bodies where static ones do not hide them."""
        rays = rays_near(self._camera.eye, self._rays_32, centres, self._radii)
        geoms, distances, normals = cast_rays(self._model, self._data, self._camera.eye, self._rays[rays], (MOVING_GROUP,))
        nearer = distances < self._static_distance[rays]
        rays, geoms, normals = rays[nearer], geoms[nearer], normals[nearer]
        points = self._camera.eye + self._rays[rays] * distances[nearer, None]
        return Surface(rays, points, normals, *self._appearance(geoms, points))

    def _cloth_surface(self, vertices: np.ndarray, rigid: Surface) -> Surface:
        """The cloth where it is in front of everything else."""
        eye = self._camera.eye
        behind = self._static_distance.copy()
        behind[rigid.rays] = np.linalg.norm(rigid.points - eye, axis=1)
        fragments, front = cloth_in_front(self._camera, vertices, self._triangles, behind)
        rays, triangles = fragments.pixels[front], fragments.triangles[front]
        corner_normals = vertex_normals(vertices, self._triangles)[self._triangles[triangles]]
        normals = (fragments.weights[front][:, :, None] * corner_normals).sum(axis=1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
        normals[(normals * self._rays[rays]).sum(axis=1) > 0] *= -1
        # Two triangles make a square of the weave; every other pair of squares is darker.
        weave = 1 - 0.22 * ((triangles // 4) % 2)
        albedo = (weave[:, None] * np.array(RED)).astype(np.float32)
        points = eye + self._rays[rays] * fragments.depths[front, None]
        return Surface(rays, points, normals, albedo, np.zeros(len(rays), np.float32))

    def _appearance(self, geoms: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Albedo float32 [P, 3] and gloss float32 [P] of points [P, 3] on geoms [P]."""
        albedo, gloss = np.empty((len(geoms), 3), np.float32), np.empty(len(geoms), np.float32)
        for geom in np.flatnonzero(np.bincount(geoms)):
            here = geoms == geom
            rotation = self._data.geom_xmat[geom].reshape(3, 3)
            material = self._materials[geom]
            albedo[here] = material.albedo((points[here] - self._data.geom_xpos[geom]) @ rotation)
            gloss[here] = material.gloss
        return albedo, gloss

    def _shade(self, surface: Surface) -> Shading:
        normals = surface.normals.astype(np.float32)
        view = self._rays[surface.rays].astype(np.float32)
        to_lamp = (self._lamp - surface.points).astype(np.float32)
        to_lamp /= np.linalg.norm(to_lamp, axis=1, keepdims=True)
        # Ambient light that falls off towards the outline keeps unlit solids looking round.
        facing_eye = np.clip(-_dot(normals, view), 0, 1)
        dark = surface.albedo * (AMBIENT * (0.5 + 0.5 * facing_eye))[:, None]
        facing_lamp = _dot(normals, to_lamp)
        exposed = facing_lamp > 0
        lit = dark + surface.albedo * (DIFFUSE * np.where(exposed, facing_lamp, 0))[:, None]
        glossy = exposed & (surface.gloss > 0)
        if glossy.any():
            halfway = to_lamp[glossy] - view[glossy]
            halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
            highlight = surface.gloss[glossy] * np.clip(_dot(normals[glossy], halfway), 0, 1) ** SHININESS
            lit[glossy] += highlight[:, None]
        return Shading(lit, dark, exposed)

    def _static_shadows(self, centres: np.ndarray, shadow_map: ShadowMap | None) -> np.ndarray:
        """The rays whose static surface is in the shadow of something that moves."""
        rays = rays_near(self._lamp, self._lamp_rays_32, centres, self._radii)
        _, distance, _ = cast_rays(self._model, self._data, self._lamp, self._lamp_rays[rays], (MOVING_GROUP,))
        shaded: np.ndarray = rays[distance < self._lamp_distance[rays] - SHADOW_BIAS]
        if shadow_map is None:
            return shaded
        rays = rays_near(self._lamp, self._lamp_rays_32, shadow_map.centre[None], np.array([shadow_map.radius]))
        return np.concatenate([shaded, rays[shadow_map.shades(self._static_points[rays])]])

    def _in_rigid_shadow(self, points: np.ndarray) -> np.ndarray:
        """Whether a rigid body stands between the lamp and each point [P, 3]: bool [P]."""
        from_lamp = points - self._lamp
        lamp_distance = np.linalg.norm(from_lamp, axis=1)
        directions = from_lamp / lamp_distance[:, None]
        _, distance, _ = cast_rays(self._model, self._data, self._lamp, directions, BOTH_GROUPS)
        shaded: np.ndarray = distance < lamp_distance - SHADOW_BIAS
        return shaded

    def _develop(self, picture: np.ndarray) -> np.ndarray:
        """Average the rays of each pixel: float32 [rays, 3] to uint8 [H, W, 3]."""
        step, size = self._antialias, self._size
        picture = np.clip(picture, 0, 1).reshape(size * step, size * step * 3)
        rows: np.ndarray = sum((picture[offset::step] for offset in range(1, step)), start=picture[::step])
        rows = rows.reshape(size, size * step, 3)
        pixels: np.ndarray = sum((rows[:, offset::step] for offset in range(1, step)), start=rows[:, ::step])
        return (pixels * np.float32(255 / step**2) + np.float32(0.5)).astype(np.uint8)


def frames_shown(trajectory: Trajectory) -> list[int]:
    """For each frame the one that it shows: itself, or an earlier one if nothing has visibly moved since."""
    states = trajectory.states
    if trajectory.cloth is not None:
        states = np.concatenate([states, trajectory.cloth.reshape(FRAMES, -1)], axis=1)
    shown = [0]
    for number in range(1, FRAMES):
        moved = np.abs(states[number] - states[shown[-1]]).max(initial=0.0) >= STILL
        shown.append(number if moved else shown[-1])
    return shown


def cloth_in_front(
    camera: Camera, vertices: np.ndarray, triangles: np.ndarray, behind: np.ndarray
) -> tuple[Fragments, np.ndarray]:
    """The cloth's fragments on a square picture whose pixels [P] are otherwise at distances `behind`, and which of them are
    visible.

    vertices: world [V, 3]; triangles: [F, 3].
    """
    side = math.isqrt(len(behind))
    picture, _ = camera.project(vertices)
    ranges = np.linalg.norm(vertices - camera.eye, axis=1)
    fragments = rasterise(picture[triangles] * side, ranges[triangles], side)
    # The engine keeps the cloth's mid-surface one radius away from other bodies: there it is in front.
    return fragments, fragments.depths < behind[fragments.pixels] + CLOTH_RADIUS


def regroup_unmoved(trajectory: Trajectory) -> tuple[mujoco.MjModel, np.ndarray]:
    """A copy of the model in which free bodies that never visibly move are static, and the ids [B] of those that do move."""
    model = copy.copy(trajectory.model)
    travel = np.abs(trajectory.states - trajectory.states[0]).max(axis=0)
    moving = []
    # A cloth's vertices are bodies too, with sliding joints and no geoms.
    for joint in np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
        first, body = model.jnt_qposadr[joint], model.jnt_bodyid[joint]
        if travel[first : first + 7].max() >= STILL:
            moving.append(body)
        else:
            model.geom_group[model.geom_bodyid == body] = STATIC_GROUP
    return model, np.array(moving, int)


def _materials_by_geom(trajectory: Trajectory) -> list[Material]:
    room = {"floor": trajectory.scene.room.floor, "wall": trajectory.scene.room.wall}
    by_body = trajectory.scene.materials | room
    model = trajectory.model
    return [by_body[model.geom(geom).name.partition(".")[0]] for geom in range(model.ngeom)]


def box_corners(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """The corners [8, 3] of a geom's own box, in the frame of its body, meters."""
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    box = model.geom_aabb[geom, :3] + _SIGNS * model.geom_aabb[geom, 3:]
    corners: np.ndarray = model.geom_pos[geom] + box @ rotation.reshape(3, 3).T
    return corners


def bounding_spheres(model: mujoco.MjModel, bodies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A sphere around each body: centers in the body's own frame [B, 3] and radii [B], meters."""
    centres, radii = np.zeros((len(bodies), 3)), np.zeros(len(bodies))
    for number, body in enumerate(bodies):
        geoms = np.flatnonzero(model.geom_bodyid == body)
        corners = [box_corners(model, geom) for geom in geoms.tolist()]
        centre = (np.min(corners, axis=(0, 1)) + np.max(corners, axis=(0, 1))) / 2
        # The boxes' corners bound flat pieces well, the engine's own spheres round ones.
        by_corners = np.linalg.norm(np.array(corners) - centre, axis=2).max(axis=1)
        by_spheres = np.linalg.norm(model.geom_pos[geoms] - centre, axis=1) + model.geom_rbound[geoms]
        centres[number], radii[number] = centre, np.minimum(by_corners, by_spheres).max() + 0.005
    return centres, radii


def rays_near(origin: np.ndarray, directions: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The indices of the unit directions, float32 [N, 3], that can meet one of the spheres [B, 3], [B]."""
    near = np.zeros(len(directions), bool)
    for centre, radius in zip(centres, radii, strict=True):
        offset = centre - origin
        distance = np.linalg.norm(offset)
        cosine = np.sqrt(max(0.0, 1 - (radius / distance) ** 2))
        near |= directions @ (offset / distance).astype(np.float32) >= np.float32(cosine)
    return np.flatnonzero(near)


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Row by row: [P, 3] and [P, 3] to [P]."""
    product: np.ndarray = np.einsum("ij,ij->i", left, right)
    return product
