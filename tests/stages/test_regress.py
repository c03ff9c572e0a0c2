"""Regressions as a stage: on a published study, and on features whose answer is known."""

import csv
import json
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from physion.config.schema import COLOR, PLACE
from physion.data.layout import Video
from physion.data.truth import Scene
from physion.stages.regress import Variant, _answers, in_picture, pixels, places, read_answers, states

BY_SCENARIO = Variant("logistic", "pooled", "each")


class Frames:
    """Frames whose pixels are known."""

    def __init__(self, images):
        self.all = images

    def images(self, video, start, count):
        return self.all[start : start + count]


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_pixels_are_the_means_of_what_they_stand_for(size):
    images = np.random.default_rng(0).integers(0, 256, (7, size, size, 3), np.uint8)
    found = pixels(Frames(images), "a", slice(0, 7, 3))
    side = min(32, size)
    spans = list(pairwise([*(number * size // side for number in range(side)), size]))
    expected = [[[images[t, a:b, c:d].mean((0, 1)) / 255 for c, d in spans] for a, b in spans] for t in (0, 3, 6)]
    np.testing.assert_allclose(found.reshape(3, side, side, 3), expected, atol=1e-5)


class Negative:
    """Stands for a dVAE: its tokens are the images themselves, and it draws them inverted."""

    def most_likely(self, images):
        return images, None

    def decode_tokens(self, tokens):
        return -tokens


def test_pixels_drawn_from_tokens():
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    seen, drawn = (pixels(Frames(images), "a", slice(0, 7, 3), dvae) for dvae in (None, Negative()))
    np.testing.assert_allclose(drawn, 1 - seen, atol=1 / 255)


class Truth:
    """Two bodies of which one passes the other."""

    def __init__(self):
        self.every = np.zeros((20, 2, 13), np.float32)
        self.every[:, 0, 0] = np.linspace(-2, 2, 20)
        self.every[:, 1, 1] = 0.5
        bodies = [{"name": "agent", "shape": "box", "size": [1, 2, 3]}, {"name": "patient", "shape": "box", "size": [4, 5, 6]}]
        self.scenes = {"a": Scene.model_validate({"bodies": bodies, "contacts": []})}

    def states(self, video):
        return self.every


def test_states_say_how_far_apart_they_are_and_have_been_at_least():
    found = states(Truth(), "a", slice(0, 20, 5))
    assert found.shape == (4, 29)
    passed = np.hypot(np.linspace(-2, 2, 20), 0.5)
    np.testing.assert_allclose(found[:, 21], passed[::5], atol=1e-6)
    np.testing.assert_allclose(found[:, 22], np.minimum.accumulate(passed)[::5], atol=1e-6)
    np.testing.assert_array_equal(found[:, 23:], np.tile([1, 2, 3, 4, 5, 6], (4, 1)))
    # What follows the last frame that may be seen is not in it.
    np.testing.assert_array_equal(states(Truth(), "a", slice(0, 10, 5)), found[:2])


def labelled(count, rng):
    scenarios = ["Collide", "Drop"]
    return [Video(f"video_{number}", "", scenarios[number % 2], bool(rng.random() < 0.5)) for number in range(count)]


def test_each_scenario_learns_its_own_rule():
    """What means yes in one means no in the other: one rule for both can only guess."""
    rng = np.random.default_rng(0)
    readout, test = labelled(120, rng), labelled(80, rng)

    def features(videos):
        return np.array([[(1 if v.label else -1) * (1 if v.scenario == "Drop" else -1) + 0.3 * rng.normal()] for v in videos])

    arguments = features(readout), readout, features(test), test, 0
    answers = np.array([video.label for video in test])
    right = {}
    for scope in ("all", "each"):
        probabilities, fit = _answers(Variant("logistic", "pooled", scope), *arguments)
        right[scope] = ((probabilities > 0.5) == answers).mean(), fit["cross_validated"]
    assert min(right["each"]) > 0.95
    assert max(right["all"]) < 0.75


def test_where_the_camera_sees_them():
    class Truth:
        def picture(self, video):
            x = np.linspace(0.2, 0.6, 5, dtype=np.float32)
            agent, patient = np.stack([x, 0 * x + 0.5, x], 1), np.stack([0 * x + 0.6, 0 * x + 0.5, 3 * x], 1)
            return np.stack([agent, patient], 1)

    found = in_picture(Truth(), "v", slice(0, 4, 2))
    assert (found.shape, found.dtype) == ((2, 12), np.float32)
    np.testing.assert_allclose(found[0], [0.2, 0.5, 0.6, 0.5, 0, 0, 0, 0, 0.4, 0, 0.4, 0.4], atol=1e-6)
    np.testing.assert_allclose(found[1], [0.4, 0.5, 0.6, 0.5, 0.1, 0, 0, 0, 0.2, 0, 0.2, 0.2], atol=1e-6)


def test_places_of_red_and_yellow():
    """Two slots that near each other at half a picture a frame, at last 0.1 apart with extents of 0.2 and 0.3."""
    slots = np.zeros((3, 4, 9), np.float32)  # content 2, color 3, place 2, extent 2
    slots[:, 3, 2:5], slots[:, 1, 2:5] = COLOR * np.array([1, -1, -1]), COLOR * np.array([1, 1, -1])
    slots[:, 3, 5], slots[:, 1, 5] = PLACE * np.array([-0.9, -0.4, 0.1]), PLACE * 0.2
    slots[:, 3, 7:], slots[:, 1, 7:] = np.log(0.2), np.log(0.3)
    found = places(slots, 2)
    assert (found.shape, found.dtype) == ((3, 18), np.float32)
    np.testing.assert_allclose(found[:, :4], [[-0.9, 0, 0.2, 0], [-0.4, 0, 0.2, 0], [0.1, 0, 0.2, 0]], atol=1e-6)
    np.testing.assert_allclose(found[:, 4:8], [[0, 0, 0, 0], [0.5, 0, 0, 0], [0.5, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(found[:, 8:12], [[0.2, 0.2, 0.3, 0.3]] * 3, atol=1e-6)
    np.testing.assert_allclose(found[:, 12:15], [[1.1, 0, 1.1], [0.6, 0, 0.6], [0.1, 0, 0.1]], atol=1e-6)
    gaps = [0.6, 0.1, -0.4]
    np.testing.assert_allclose(found[:, 15:], np.transpose([gaps, [1.1, 0.6, 0.1], gaps]), atol=1e-6)
    back = places(slots[::-1].copy(), 2)  # the smallest so far
    np.testing.assert_allclose(back[:, 16:], [[0.1, -0.4]] * 3, atol=1e-6)


def test_test_labels_change_nothing():
    rng = np.random.default_rng(0)
    readout, test = labelled(60, rng), labelled(40, rng)
    learn, answer = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    flipped = [Video(v.name, v.path, v.scenario, not v.label) for v in test]
    first, second = (_answers(BY_SCENARIO, learn, readout, answer, videos, 0) for videos in (test, flipped))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


def test_a_scenario_that_was_never_learned_gets_the_share_of_positives():
    readout = [Video(str(number), "", "Drop", number < 3) for number in range(12)]
    found, _ = _answers(BY_SCENARIO, np.ones((12, 1)), readout, np.ones((1, 1)), [Video("a", "", "Roll", True)], 0)
    assert found == 0.25


def test_published_answers_are_read_back_and_measured(finished):
    """A study on fetched videos: no truth, so nothing on states, and the report says so."""
    on = {}
    for path in finished.glob("artifacts/regress/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        on[manifest["identity"]["params"]["on"]] = path.parent, manifest
    assert set(on) == {
        "label-prior",
        "scenario",
        "first-frame",
        "observed-frames",
        "tokens-observed",
        "slots-observed",
        "slots-rollout",
        "slots-full",
    }
    (metrics,) = (json.loads(path.read_bytes()) for path in finished.glob("artifacts/evaluate/*/metrics.json"))
    with next(finished.glob("artifacts/evaluate/*/predictions.csv")).open(newline="") as file:
        labels = {row["video"]: row["label"] == "True" for row in csv.DictReader(file)}
    for name, (folder, manifest) in on.items():
        measured = metrics["regressions"][name]
        assert measured["chosen"] == manifest["metrics"]["chosen"]
        answers = read_answers(folder / "answers.csv", list(labels))
        assert set(measured["variants"]) == set(answers)
        for variant, probabilities in answers.items():
            right = ((probabilities > 0.5) == np.array(list(labels.values()))).mean()
            assert measured["variants"][variant]["overall"]["accuracy"]["value"] == pytest.approx(right)
    variants = {f"logistic-{pooling}-{scope}" for pooling in ("pooled", "concatenated") for scope in ("all", "each")}
    assert set(metrics["regressions"]["slots-full"]["variants"]) == variants
    report = next(finished.glob("artifacts/evaluate/*/report.html")).read_text()
    assert "these videos have no ground truth" in report
    for name in on:
        assert re.search(rf"<code>physion stage regress --on {name}</code>", report)


def test_the_row_s_command_makes_the_row_again(preset, store):
    before = {path: path.read_bytes() for path in store.glob("artifacts/regress/*/*.[cj]s*") if path.name != "manifest.json"}
    assert len(before) == 16
    command = [
        sys.executable,
        "-m",
        "physion.cli",
        "stage",
        "regress",
        "--on",
        "slots-full",
        "-p",
        preset,
        "-s",
        str(store),
        "--force",
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "regress-slots-full has the same bytes as before" in ended.stderr
    assert {path: path.read_bytes() for path in before} == before
