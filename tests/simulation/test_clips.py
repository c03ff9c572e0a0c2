"""Clips as the rest of the project meets them: determinism, framing, colors, MP4."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

import physion.simulation
from physion.data.video import read_frames, write_mp4
from physion.errors import ConfigError
from physion.simulation import SCENARIOS, make_clip, make_trajectory
from physion.simulation.physics import FRAMES, OBSERVED_FRAMES
from physion.simulation.renderer import Renderer


def _digest(scenario: str, seed: int, index: int, size: int) -> str:
    return hashlib.sha256(make_clip(scenario, seed, index, size=size).frames.tobytes()).hexdigest()


def test_frames_are_the_same_twice_and_in_another_process():
    jobs = [("Collide", 0, 0, 32), ("Link", 0, 1, 32), ("Drape", 0, 0, 16)]
    here = [_digest(*job) for job in jobs]
    assert [_digest(*job) for job in jobs[:2]] == here[:2]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(_digest, jobs) == here


def test_another_seed_or_index_is_another_clip():
    assert len({_digest("Drop", seed, index, 16) for seed, index in ((0, 0), (1, 0), (0, 2))}) == 3


@pytest.mark.parametrize("size", [16, 50])
def test_any_size_shows_the_same_clip(size):
    clip = make_clip("Roll", 2, 0, size=size, antialias=1)
    trajectory = make_trajectory("Roll", 2, 0)
    assert clip.frames.shape == (FRAMES, size, size, 3)
    assert clip.frames.dtype == np.uint8
    assert (clip.label, clip.first_contact) == (trajectory.label, trajectory.first_contact)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_frame_0_shows_a_red_agent_and_a_yellow_patient(scenario):
    for index in range(2):
        frame = Renderer(make_trajectory(scenario, 7, index), 64, 2).frame(0).astype(int)
        red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
        assert ((red > 60) & (green < 0.35 * red) & (blue < 0.35 * red)).sum() >= 10, f"{scenario} {index}: agent"
        assert ((red > 60) & (green > 0.7 * red) & (blue < 0.4 * red)).sum() >= 10, f"{scenario} {index}: patient"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_camera_does_not_know_the_outcome(scenario):
    """Another future, the same view: whatever follows frame 44, the camera stands where it stood."""
    trajectory = make_trajectory(scenario, 7, 0)
    states = trajectory.states.copy()
    states[OBSERVED_FRAMES:] = states[0]
    cloth = None
    if trajectory.cloth is not None:
        cloth = trajectory.cloth.copy()
        cloth[OBSERVED_FRAMES:] += 5.0
    other = dataclasses.replace(trajectory, states=states, cloth=cloth, contacts={})
    for before, after in zip(vars(trajectory.view.camera).values(), vars(other.view.camera).values(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_observed_frames_do_not_depend_on_what_follows():
    """The renderer treats what never moves specially; that must not show in the observed frames either."""
    trajectory = make_trajectory("Support", 7, 0)
    states = trajectory.states.copy()
    states[OBSERVED_FRAMES:] = states[OBSERVED_FRAMES - 1]
    frozen = dataclasses.replace(trajectory, states=states)
    ours, theirs = (Renderer(each, 32, 2) for each in (trajectory, frozen))
    for number in (0, 30, OBSERVED_FRAMES - 1):
        # A body that stirs by less than a millimetre is drawn where it was.
        difference = np.abs(ours.frame(number).astype(int) - theirs.frame(number).astype(int))
        assert difference.mean() < 0.1


def test_unmoved_frames_repeat_and_moving_ones_differ():
    trajectory = make_trajectory("Drop", 1, 0)
    frames = Renderer(trajectory, 32, 2).frames()
    release = trajectory.scene.release
    assert (frames[: release + 1] == frames[0]).all()
    assert (frames[release + 5] != frames[0]).any()


def test_clip_survives_mp4(tmp_path):
    clip = make_clip("Collide", 4, 0, size=64)
    write_mp4(tmp_path / "clip.mp4", clip.frames)
    decoded = read_frames(tmp_path / "clip.mp4", FRAMES)
    assert decoded.shape == clip.frames.shape
    assert np.abs(decoded.astype(int) - clip.frames).mean() < 6


def test_unknown_scenario_is_named_with_the_choices():
    with pytest.raises(ConfigError, match=r"'Fly'.*Collide, Contain"):
        make_clip("Fly", 0, 0)


def test_another_engine_is_refused(monkeypatch):
    monkeypatch.setattr(physion.simulation, "ENGINE", "mujoco 0.0.1")
    with pytest.raises(ConfigError, match=r"pip install mujoco==0\.0\.1"):
        make_clip("Drop", 0, 0)
    monkeypatch.setattr(physion.simulation, "ENGINE", "no-such-engine 1.0")
    with pytest.raises(ConfigError, match="not installed"):
        make_trajectory("Drop", 0, 0)


def test_importing_the_package_imports_no_engine():
    code = "import sys, physion.simulation; assert 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
