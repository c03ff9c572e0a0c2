"""What is measured of a study whose videos tell no truth."""

import json


def test_without_truth_only_what_slots_alone_show(finished):
    (metrics,) = (json.loads(path.read_bytes()) for path in finished.glob("artifacts/evaluate/*/metrics.json"))
    assert {name: (found["videos"], found["truth"]) for name, found in metrics["slots"].items()} == {
        "test": (6, False),
        "heldout": (2, False),
    }
    for found in metrics["slots"].values():
        assert found.keys() == {"videos", "truth", "norm_first", "norm_last", "kept_places", "norm"}
        assert found["norm"][0] == found["norm_first"]["value"]
        assert 0 <= found["kept_places"]["value"] <= 1
    (history,) = (json.loads(path.read_bytes()) for path in finished.glob("artifacts/train-steve/*/history.json"))
    assert all({"kept_places", "norm_first", "norm_last"} < row.keys() and "ari" not in row for row in history)
    report = next(finished.glob("artifacts/evaluate/*/report.html")).read_text()
    assert report.count("no truth</span>") >= 2 * 16
