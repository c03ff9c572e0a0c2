"""Labels, contacts, balance: everything that is decided without a picture."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from physion.simulation import SCENARIOS, make_trajectory
from physion.simulation.camera import pose
from physion.simulation.draws import Draws
from physion.simulation.materials import RED
from physion.simulation.parts import Solid, rolling_ball, standing_patient
from physion.simulation.physics import FRAMES, OBSERVED_FRAMES, Trajectory, draw_trajectory, simulate, wanted_label
from physion.simulation.scenarios.collide import COLLIDE
from physion.simulation.scene import AGENT, FPS, PATIENT, Geom, Scene

CLIPS = 10
RIGID_SCENARIOS = [scenario for scenario in SCENARIOS if scenario != "Drape"]


@pytest.fixture(scope="module", params=SCENARIOS)
def balanced(request) -> tuple[str, list[Trajectory]]:
    # A cloth costs ten times a ball; the pairing that balances it is the same code.
    clips = 4 if request.param == "Drape" else CLIPS
    return request.param, [make_trajectory(request.param, 11, index) for index in range(clips)]


def test_every_pair_of_clips_has_one_positive(balanced):
    scenario, trajectories = balanced
    labels = [trajectory.label for trajectory in trajectories]
    assert labels == [wanted_label(scenario, 11, index) for index in range(len(labels))]
    assert 0.4 <= np.mean(labels) <= 0.6


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_which_of_a_pair_is_positive_is_random(scenario):
    firsts = [wanted_label(scenario, 0, index) for index in range(0, 400, 2)]
    assert 0.4 < np.mean(firsts) < 0.6
    assert all(wanted_label(scenario, 0, 2 * k + 1) != first for k, first in enumerate(firsts))


def test_at_most_a_tenth_of_positives_touch_in_the_observed_frames(balanced):
    _, trajectories = balanced
    contacts = [trajectory.first_contact for trajectory in trajectories if trajectory.first_contact is not None]
    assert np.mean([contact < OBSERVED_FRAMES for contact in contacts]) <= 0.1
    assert max(contacts) < FRAMES


def test_states_are_finite_and_frozen_until_release(balanced):
    _, trajectories = balanced
    for trajectory in trajectories:
        assert trajectory.states.shape == (FRAMES, trajectory.model.nq)
        assert np.isfinite(trajectory.states).all()
        release = trajectory.scene.release
        assert 0 < release < OBSERVED_FRAMES
        assert np.ptp(trajectory.states[: release + 1], axis=0).max() == 0
        assert np.ptp(trajectory.states[: OBSERVED_FRAMES + 5], axis=0).max() > 0


@pytest.mark.parametrize("balanced", RIGID_SCENARIOS, indirect=True)
def test_labels_agree_with_distances_between_the_geoms(balanced):
    """The engine's geometry, not its contact list: distances over the frames against label and contact frame."""
    _, trajectories = balanced
    for trajectory in trajectories:
        distances = _agent_patient_distances(trajectory)
        if trajectory.first_contact is None:
            assert distances.min() > -1e-4
        else:
            assert distances[: trajectory.first_contact].min() > -1e-4
            # Between two frames something fast comes, touches and goes again some way.
            around = distances[trajectory.first_contact - 1 : trajectory.first_contact + 1]
            assert around.min() < 0.08


@pytest.mark.parametrize("balanced", ["Drape"], indirect=True)
def test_cloth_label_agrees_with_its_vertices(balanced):
    _, trajectories = balanced
    for trajectory in trajectories:
        centre = trajectory.model.body(PATIENT).pos
        reach = trajectory.model.geom(f"{PATIENT}.0").rbound[0]
        nearest = np.linalg.norm(trajectory.cloth - centre, axis=2).min(axis=1)
        if trajectory.label:
            # A vertex of the touching triangle is at most a cell's diagonal away.
            assert nearest[trajectory.first_contact] < reach + 0.2
        else:
            assert nearest.min() > 0.05


@pytest.mark.parametrize(("offset", "hits"), [(0.0, True), (0.15, True), (0.4, False)])
def test_head_on_collision_is_labelled_as_geometry_says(offset, hits):
    scene = Scene(COLLIDE, Draws(1), Draws(2))
    standing_patient(scene, Solid(Geom("sphere", (0.15,)), 0.15), 0.6, offset)
    rolling_ball(scene, AGENT, 0.1, (-0.6, 0.0), 1.5, 0.0, color=RED)
    trajectory = simulate(scene, (0,))
    assert trajectory.label is hits
    if hits:
        # Spheres on the floor touch at centre distance d with d^2 = (r + R)^2, their heights differing by R - r.
        along = 1.2 - np.sqrt(0.25**2 - 0.05**2 - offset**2)
        expected = scene.release + along / 1.5 * FPS
        assert trajectory.first_contact == pytest.approx(expected, abs=1.5)


def test_draw_before_the_allowed_frame_is_invalid():
    for index in range(20):
        trajectory = draw_trajectory("Collide", 3, index)
        if trajectory is not None and trajectory.label:
            break
    contact = trajectory.first_contact
    assert draw_trajectory("Collide", 3, index, contact_from=contact).first_contact == contact
    assert draw_trajectory("Collide", 3, index, contact_from=contact + 1) is None


def test_redraws_keep_all_that_must_not_tell_the_label():
    """Release, room, camera side and camera draws are those of the clip, whatever is redrawn."""
    for scenario in RIGID_SCENARIOS:
        draws = [draw_trajectory(scenario, 5, 0, attempt) for attempt in range(4)]
        kept = {(d.scene.release, d.scene.room, d.scene.camera_side, d.camera_key) for d in draws if d is not None}
        assert len(kept) == 1
        outcomes = {d.states[0].tobytes() for d in draws if d is not None}
        assert len(outcomes) > 1


def _agent_patient_distances(trajectory: Trajectory) -> np.ndarray:
    """The distance of the nearest geoms of agent and patient in every frame, metres; negative where they overlap."""
    model, data = trajectory.model, mujoco.MjData(trajectory.model)
    agent, patient = (np.flatnonzero(model.geom_bodyid == model.body(name).id) for name in (AGENT, PATIENT))
    distances = np.empty(FRAMES)
    for frame, state in enumerate(trajectory.states):
        pose(model, data, state)
        distances[frame] = min(
            mujoco.mj_geomDistance(model, data, a, p, 1.0, None) for a in agent.tolist() for p in patient.tolist()
        )
    return distances
