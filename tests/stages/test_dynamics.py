"""What is measured of rollouts whose worth is known, put together here, and of a study's own."""

import json

import numpy as np
import pytest

from physion.config.schema import Evaluate
from physion.data.layout import Video
from physion.stages.dynamics import Rolled, dynamics_numbers, tracked
from physion.stages.links import Seen

VIDEOS, FRAMES, SLOTS, SIZE = 24, 30, 4, 8
OBSERVED, WATCHED = 10, 20
CONFIG = Evaluate(resamples=100)


class Truth:
    """Two bodies that cross the room, agent and patient, on lines of their own."""

    def __init__(self):
        start, way = np.random.default_rng(0).normal(size=(2, VIDEOS, 1, 2, 3))
        self.places = start + np.linspace(0, 1.5, FRAMES).reshape(1, -1, 1, 1) * way

    def states(self, video):
        return self.places[int(video)]

    def picture(self, video):
        return self.places[int(video)] / 4 + 0.5


def rolled(truth, predict, swapped=False):
    """Slots 1 and 2 hold the bodies and say where they are; `predict` gives a video's slots [T, S, D] from the true ones.

    swapped: from frame 15 on the true slots are in another order.
    """
    rng = np.random.default_rng(1)
    overlap = np.zeros((FRAMES, 3, SLOTS), int)
    overlap[:, 0], overlap[:, 1, 1], overlap[:, 2, 2] = 1000, 2000, 2000
    found = []
    for number in range(VIDEOS):
        slots = 0.05 * rng.normal(size=(FRAMES, SLOTS, SIZE)) + 4 * np.eye(SLOTS, SIZE)
        slots[:, 1:3, 4:7] += truth.places[number]
        rollout, seen_in = slots.copy(), overlap.copy()
        rollout[OBSERVED:] = predict(slots)[OBSERVED:]
        if swapped:
            slots[15:] = slots[15:, [3, 2, 1, 0]]
            seen_in[15:] = seen_in[15:, :, [3, 2, 1, 0]]
        found.append(Rolled.of(Seen(Video(str(number), "", "Collide", True), slots, seen_in), rollout, OBSERVED))
    return found


def foresight(slots):
    """What a perfect model of the dynamics would say."""
    return slots + 0.05 * np.random.default_rng(2).normal(size=slots.shape)


def copying(slots):
    """Dynamics that copy the last frame."""
    return np.repeat(slots[OBSERVED - 1 : OBSERVED], FRAMES, 0)


def numbers(predict, **how):
    truth = Truth()
    return dynamics_numbers(rolled(truth, predict, **how), truth, OBSERVED, WATCHED, CONFIG)


def test_foresight():
    found = numbers(foresight)
    assert (found["videos"], found["observed"], found["watched"]) == (VIDEOS, OBSERVED, WATCHED)
    for curve in found["error"].values():
        assert curve["frames"] == list(range(OBSERVED, FRAMES))
        assert [row["frame"] for row in curve["at"]] == [10, 14, 19, 24, 29]
        at = [curve["by_frame"][row["frame"] - OBSERVED] for row in curve["at"]]
        assert [row["value"] for row in curve["at"]] == pytest.approx(at)
        assert curve["watched"]["value"] == pytest.approx(np.mean(curve["by_frame"][: WATCHED - OBSERVED]))
        assert all(row["low"] <= row["value"] <= row["high"] for row in [*curve["at"], curve["watched"]])
    assert max(found["error"]["rollout"]["by_frame"]) < 0.02
    assert max(found["error"]["copied"]["by_frame"]) > 0.2  # they move
    assert found["against_copying"]["high"] < 0.2
    for body in found["places"].values():
        for space in body.values():
            assert space["rollout"]["frames"] == [10, 15, 20, 25]
            last = {way: curve["at"][-1] for way, curve in space.items()}
            assert last["rollout"]["high"] < last["copied"]["low"]
            assert last["rollout"]["high"] < last["mean"]["low"]
            assert last["rollout"]["value"] < 2 * last["true"]["value"]


def test_dynamics_that_copy_the_last_frame():
    found = numbers(copying)
    assert found["error"]["rollout"] == found["error"]["copied"]
    assert found["against_copying"] == {"value": 1, "low": 1, "high": 1, "n": VIDEOS}
    for body in found["places"].values():
        for space in body.values():
            assert space["rollout"] == space["copied"]


def test_the_mean_slot_of_each_index_errs_by_one():
    """The unit of all errors, over all frames that are predicted."""
    truth = Truth()
    mean = np.mean([each.seen.slots[OBSERVED:] for each in rolled(truth, foresight)], (0, 1))
    found = rolled(truth, lambda slots: np.broadcast_to(mean, slots.shape))
    error = dynamics_numbers(found, truth, OBSERVED, FRAMES, CONFIG)["error"]["rollout"]["watched"]
    assert error["value"] == pytest.approx(1)


def test_where_true_slots_change_places_the_order_is_restored():
    found = numbers(foresight, swapped=True)
    assert found["error"]["rollout"]["by_frame"][4] < 0.02 < 1 < found["error"]["rollout"]["by_frame"][5]
    straight = numbers(foresight)
    for way in ("rollout_ordered", "copied_ordered"):
        by_variance = [found["error"][way]["by_frame"][n] / found["error"][way]["by_frame"][0] for n in range(20)]
        expected = [straight["error"][way]["by_frame"][n] / straight["error"][way]["by_frame"][0] for n in range(20)]
        assert by_variance == pytest.approx(expected)
    assert found["against_copying"]["value"] == pytest.approx(straight["against_copying"]["value"])
    for body, spaces in found["places"].items():
        for way in ("rollout", "copied", "mean"):
            assert spaces["room"][way]["by_frame"] == pytest.approx(straight["places"][body]["room"][way]["by_frame"], rel=0.05)


def test_a_body_that_was_not_seen_when_the_rollout_began_is_not_asked_for():
    truth = Truth()
    found = rolled(truth, foresight)
    found[0].seen.overlap[OBSERVED - 1, 1] = 0
    found[1].seen.overlap[25, 1] = 0
    places = dynamics_numbers(found, truth, OBSERVED, WATCHED, CONFIG)["places"]
    assert [row["n"] for row in places["agent"]["room"]["rollout"]["at"]] == [VIDEOS - 1] * 3 + [VIDEOS - 2]
    assert [row["n"] for row in places["patient"]["room"]["rollout"]["at"]] == [VIDEOS] * 4


def test_each_slot_goes_to_one_of_the_next_frame():
    """Slot 0 is nearest to both of the next: one by one they would be taken for the same."""
    slots = np.array([[[0.0], [10.0]], [[11.0], [9.0]], [[9.0], [11.0]]])
    np.testing.assert_array_equal(tracked(slots), [[0, 1], [1, 0], [0, 1]])
    np.testing.assert_array_equal(tracked(slots[:1]), [[0, 1]])


def test_where_nothing_is_predicted_there_is_nothing_to_measure():
    truth = Truth()
    assert dynamics_numbers(rolled(truth, foresight), truth, FRAMES, FRAMES, CONFIG) == {}


def test_a_study_without_truth(finished, undocumented):
    (metrics,) = (json.loads(path.read_bytes()) for path in finished.glob("artifacts/evaluate/*/metrics.json"))
    assert metrics["version"] == 1
    missing, not_there = undocumented(metrics)
    assert missing == []
    unknown = "by_first_contact", "{ari", "own_", "kept_object", "probes", "places", "people."
    assert [row for row in not_there if not any(word in row for word in unknown)] == []
    found = metrics["dynamics"]
    assert found.keys() == {"videos", "observed", "watched", "against_copying", "error"}
    assert set(metrics["comparisons"]) == {"rollout - observed", "full - observed", "full - rollout"}
    assert (found["videos"], found["observed"], found["watched"]) == (6, 4, 6)
    assert found["error"]["rollout"]["frames"] == list(range(4, 12))
    assert found["error"]["rollout"]["by_frame"] != found["error"]["copied"]["by_frame"]
    assert metrics["pictures"].keys() == {"videos", "frames", "reconstructed", "slots", "rollouts"}
    assert metrics["pictures"]["frames"] == [0, 6, 11]
    for what in ("reconstructed", "slots", "rollouts"):
        assert len(metrics["pictures"][what]["psnr"]["by_frame"]) == 3
        assert metrics["pictures"][what]["ssim"]["value"] <= 1
    # The first of the frames was observed.
    slots, rollouts = (metrics["pictures"][what]["ssim"]["by_frame"] for what in ("slots", "rollouts"))
    assert slots[0] == rollouts[0]
    assert slots[1:] != rollouts[1:]
    report = next(finished.glob("artifacts/evaluate/*/report.html")).read_text()
    assert "Places: these videos have no ground truth." in report
    assert "no ground truth, so the time of first contact is not known." in report
    assert 'aria-label="Reliability of the readouts' in report
    assert 'aria-label="Error of the rollout' in report
