"""What is measured of a study with truth, put together here, and of one whose videos tell none."""

import json

import numpy as np

from physion.config.schema import Evaluate
from physion.data.layout import Video
from physion.stages.links import Seen, slot_numbers

VIDEOS, FRAMES, SLOTS, SIZE = 24, 20, 4, 8
CONFIG = Evaluate(resamples=100)


class Truth:
    """Two bodies that cross the room on lines of their own."""

    def __init__(self):
        rng = np.random.default_rng(0)
        start, way = rng.normal(size=(2, VIDEOS, 1, 2, 3))
        self.places = start + np.linspace(0, 1, FRAMES).reshape(1, -1, 1, 1) * way

    def states(self, video):
        return self.places[int(video)]

    def picture(self, video):
        return self.places[int(video)] / 4 + 0.5


def seen(truth, shuffled=False):
    """Slots 1 and 2 hold the bodies: they look at nothing else and say where they are."""
    rng = np.random.default_rng(1)
    found = []
    overlap = np.zeros((FRAMES, 3, SLOTS), int)
    overlap[:, 0], overlap[:, 1, 1], overlap[:, 2, 2] = 1000, 2000, 2000
    for number in range(VIDEOS):
        slots = 0.05 * rng.normal(size=(FRAMES, SLOTS, SIZE)) + 4 * np.eye(SLOTS, SIZE)
        slots[:, 1:3, 4:7] += truth.places[number]
        if shuffled:
            slots = rng.permuted(slots, axis=1)
        found.append(Seen(Video(str(number), "", "Collide", True), slots, overlap))
    return found


def test_slots_that_see():
    truth = Truth()
    found = slot_numbers(seen(truth), truth, CONFIG)
    ones = ["ari", "ari_frames", "own_agent", "own_patient", "kept_object", "kept_index", "kept_places"]
    assert [found[name] for name in ones] == [{"value": 1, "low": 1, "high": 1, "n": VIDEOS}] * len(ones)
    assert len(found["norm"]) == FRAMES
    for body in found["probes"].values():
        for way in body.values():
            assert all(space["r2"]["value"] > 0.95 for space in way.values())
            assert all(space["r2"]["low"] <= space["r2"]["value"] <= space["r2"]["high"] <= 1 for space in way.values())
            assert 0 < way["picture"]["median_error"] < way["room"]["median_error"] < 0.3


def test_slots_that_are_shuffled_say_nothing():
    truth = Truth()
    found = slot_numbers(seen(truth, shuffled=True), truth, CONFIG)
    assert found["kept_places"]["value"] < 0.7
    for body in found["probes"].values():
        assert body["best"]["room"]["r2"]["value"] < 0.3
        assert body["best"]["room"]["r2"]["high"] < 0.5


def test_without_truth_only_what_slots_alone_show(finished):
    (metrics,) = (json.loads(path.read_bytes()) for path in finished.glob("artifacts/evaluate/*/metrics.json"))
    assert {name: (found["videos"], found["truth"]) for name, found in metrics["slots"].items()} == {
        "test": (6, False),
        "heldout": (2, False),
    }
    for found in metrics["slots"].values():
        assert found.keys() == {"videos", "slots", "truth", "norm_first", "norm_last", "kept_places", "norm"}
        assert found["norm"][0] == found["norm_first"]["value"]
        assert 0 <= found["kept_places"]["value"] <= 1
    (history,) = (json.loads(path.read_bytes()) for path in finished.glob("artifacts/train-steve/*/history.json"))
    assert all({"kept_places", "norm_first", "norm_last"} < row.keys() and "ari" not in row for row in history)
    report = next(finished.glob("artifacts/evaluate/*/report.html")).read_text()
    assert report.count("no truth</span>") >= 2 * 16
