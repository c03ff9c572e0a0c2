"""What is said to be true of a clip, against its pictures, its engine and its own video."""

from __future__ import annotations

import itertools
import json

import mujoco
import numpy as np
import pytest

from physion.data.truth import TruthShards
from physion.simulation import SCENARIOS, make_clip, make_trajectory
from physion.simulation.camera import pose
from physion.simulation.materials import Material
from physion.simulation.physics import FRAMES
from physion.simulation.renderer import Renderer
from physion.simulation.scene import FPS
from physion.simulation.truth import truth_of
from physion.store.artifacts import Artifact, Manifest
from physion.store.uri import open_store


@pytest.fixture(scope="module", params=SCENARIOS)
def clip(request):
    trajectory = make_trajectory(request.param, 3, 0)
    return trajectory, truth_of(trajectory, 48)


def test_masks_are_what_the_pictures_show(clip):
    """Every body painted in a hue of its own, which light does not change: the renderer shows the mask's body in each pixel."""
    trajectory, truth = clip
    renderer = Renderer(trajectory, 48, 1)
    hues = {name: hue for name, hue in zip(truth.bodies, np.random.default_rng(0).dirichlet([1, 1, 1], 20), strict=False)}
    hues["agent"] = np.array([1.0, 0.08, 0.08]) / 1.16 if trajectory.cloth is not None else hues["agent"]
    room = np.ones(3) / 3
    names = [trajectory.model.geom(geom).name.partition(".")[0] for geom in range(trajectory.model.ngeom)]
    renderer._materials = [Material(tuple((hues.get(name, room) * 0.9).tolist())) for name in names]
    renderer._shade_static()
    known = np.array([room, *(hues[name] for name in truth.bodies)])
    for frame in (0, 44, 60, FRAMES - 1):
        picture = renderer.frame(frame).astype(float)
        hue = picture / picture.sum(-1, keepdims=True)
        shown = np.abs(hue[..., None, :] - known).sum(-1).argmin(-1)
        assert (shown == truth.masks[frame]).mean() > 0.998  # dark pixels have few colors
    assert {1, 2} <= set(np.unique(truth.masks[0]))


def test_a_body_is_where_its_mask_is(clip):
    """The mean of a solid's pixels is near its centre's place in the picture, and farther bodies are deeper."""
    trajectory, truth = clip
    for body, shape in enumerate(truth.shapes):
        rows, columns = np.nonzero(truth.masks[0] == 1 + body)
        if len(rows) < 30 or shape == "compound":
            continue
        middle = (np.array([columns.mean(), rows.mean()]) + 0.5) / 48
        assert np.abs(truth.picture[0, body, :2] - middle).max() < 0.25, truth.bodies[body]
    behind = np.linalg.norm(truth.states[0, :, :3] - trajectory.view.camera.eye, axis=1)
    assert (truth.picture[0, :, 2] <= behind + 1e-4).all()


def test_states_are_the_engine_s_and_change_as_the_velocities_say(clip):
    trajectory, truth = clip
    model, data = trajectory.model, mujoco.MjData(trajectory.model)
    pose(model, data, trajectory.states[80])
    for body, name in enumerate(truth.bodies):
        if truth.shapes[body] != "cloth":
            np.testing.assert_allclose(truth.states[80, body, :3], data.body(name).xipos, atol=1e-5)
    assert np.abs(truth.states[: trajectory.scene.release, :, 7:]).max() == 0
    np.testing.assert_allclose(np.linalg.norm(truth.states[..., 3:7], axis=-1), 1, atol=1e-5)
    moved = np.diff(truth.states[..., :3], axis=0) * FPS
    said = (truth.states[:-1, :, 7:10] + truth.states[1:, :, 7:10]) / 2
    fast = np.linalg.norm(said, axis=-1) > 0.3
    # In a collision the mean of both ends is not the way between them. A cloth's velocity is its last frame's change.
    lag = 9.81 / FPS / 2 if trajectory.cloth is not None else 0
    assert np.median([0.0, *np.linalg.norm(moved - said, axis=-1)[fast]]) < 0.05 + lag


KINDS = {f"mjGEOM_{kind.upper()}": kind for kind in ("sphere", "box", "cylinder", "capsule")}
SIGNS = np.array(list(itertools.product([-1, 1], repeat=3)))


def extremes(model, geom):
    """Points of a geom in its own frame between which all of it lies."""
    radius, half, _ = model.geom_size[geom]
    kind = mujoco.mjtGeom(model.geom_type[geom]).name
    if kind == "mjGEOM_MESH":
        start, count = model.mesh_vertadr[model.geom_dataid[geom]], model.mesh_vertnum[model.geom_dataid[geom]]
        return model.mesh_vert[start : start + count]
    halves = {"sphere": [radius] * 3, "cylinder": [radius, radius, half], "capsule": [radius, radius, radius + half]}
    return SIGNS * halves.get(KINDS[kind], model.geom_size[geom])


def test_shapes_and_sizes_are_the_engine_s(clip):
    trajectory, truth = clip
    model, data = trajectory.model, mujoco.MjData(trajectory.model)
    pose(model, data, trajectory.states[0])
    for name, shape, size in zip(truth.bodies, truth.shapes, truth.sizes, strict=True):
        if shape == "cloth":
            np.testing.assert_allclose(size, np.ptp(trajectory.cloth[0], axis=0) / 2, atol=1e-5)
            continue
        body, geoms = data.body(name), np.flatnonzero(model.geom_bodyid == model.body(name).id)
        kind = KINDS.get(mujoco.mjtGeom(model.geom_type[geoms[0]]).name)
        if kind is None:  # a wedge has six corners
            kind = "wedge" if len(extremes(model, geoms[0])) == 6 else "cone"
        assert shape == (kind if len(geoms) == 1 else "compound")
        room = [data.geom_xpos[geom] + extremes(model, geom) @ data.geom_xmat[geom].reshape(3, 3).T for geom in geoms]
        half = np.ptp((np.concatenate(room) - body.xpos) @ body.xmat.reshape(3, 3), axis=0) / 2
        if shape == "wedge":  # around the engine's box, which is tilted
            assert (half <= size + 1e-5).all()
            assert (size < 2 * half).all()
        else:
            np.testing.assert_allclose(size, half, atol=1e-5, err_msg=name)


def test_contacts_are_the_trajectory_s_and_agree_with_distances():
    for index in range(6):
        trajectory = make_trajectory("Collide", 3, index)
        truth = truth_of(trajectory, 16)
        assert truth.contacts.get(("agent", "patient")) == trajectory.first_contact
        model, data = trajectory.model, mujoco.MjData(trajectory.model)
        for number, name in enumerate(truth.bodies[1:], 1):
            geoms = [model.geom(f"{each}.0").id for each in ("agent", name)]
            nearest = []
            for state in trajectory.states:
                pose(model, data, state)
                nearest.append(mujoco.mj_geomDistance(model, data, *geoms, 1.0, None))
            frame = truth.contacts.get(("agent", name), FRAMES)
            assert min(nearest[:frame], default=1.0) > -1e-4, truth.bodies[number]
            assert frame == FRAMES or min(nearest[max(0, frame - 1) : frame + 1]) < 0.08


def test_truth_costs_nothing_where_it_is_not_asked_for():
    assert make_clip("Drop", 0, 0, size=16, antialias=1).truth is None


def published(store):
    (path,) = store.glob("artifacts/simulate/*/manifest.json")
    return Artifact(open_store(str(store)), Manifest.model_validate(json.loads(path.read_bytes())))


def test_the_stage_publishes_it_with_the_same_bytes_however_the_work_is_shared(physion, tmp_path):
    command = ["stage", "simulate", "--subset", "readout", "-p", "smoke", "--set", "simulate.videos.readout=9"]
    assert physion(*command, "-s", tmp_path / "a", "--set", "simulate.workers=1").code == 0
    otherwise = ["--set", "simulate.workers=2", "--set", "simulate.videos-per-part=3"]
    assert physion(*command, "-s", tmp_path / "b", *otherwise).code == 0
    one, other = (published(tmp_path / name) for name in "ab")
    assert one.manifest.content == other.manifest.content
    truth = TruthShards(one)
    assert len(truth.videos) == 9
    seed, index = 0 * 3 + 1, 1  # of the readout videos; the ninth is the second of the first scenario
    name = truth.videos[8].name
    expected = truth_of(make_trajectory(SCENARIOS[0], seed, index), 32)
    np.testing.assert_array_equal(truth.masks(name), expected.masks)
    np.testing.assert_array_equal(truth.states(name), expected.states)
    np.testing.assert_array_equal(truth.picture(name), expected.picture)
    scene = truth.scenes[name]
    assert [body.name for body in scene.bodies] == list(expected.bodies)
    assert {contact.bodies: contact.frame for contact in scene.contacts} == expected.contacts
    assert (scene.first_contact is not None) == truth.videos[8].label


def test_a_subset_without_truth_has_the_same_videos_and_no_truth(physion, tmp_path):
    command = ["stage", "simulate", "--subset", "test", "-p", "smoke", "--set", "simulate.videos.test=2"]
    for name, given in (("with", "[test]"), ("without", "[readout]")):
        assert physion(*command, "-s", tmp_path / name, "--set", f"simulate.truth={given}").code == 0
    kept, without = (published(tmp_path / name) for name in ("with", "without"))
    records = {record.name: record for record in kept.manifest.files}
    assert [records[record.name] for record in without.manifest.files] == without.manifest.files
    files = {f"truth/{video.name}.safetensors" for video in TruthShards(kept).videos}
    assert set(records) - set(without.names()) == {"truth.json", *files}
