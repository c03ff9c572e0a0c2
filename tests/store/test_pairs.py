"""Which artifacts that two stores both have differ, by their manifests alone."""

import pytest

from physion.errors import DataError
from physion.store.artifacts import WITH_TIMES, FileRecord, Manifest
from physion.store.pairs import pair_up
from physion.store.survey import Found
from physion.training.watching import EVENTS, METRICS


def found(name, *inputs, metrics=None, **files):
    facts = {"stage": name, "instance": f"{name}-x", "fingerprint": name, "config": {}, "code": "", "seconds": 0}
    facts["created"] = "2026-01-01T00:00:00+00:00"
    records = [FileRecord(name=file.replace("_", "."), size=1, sha256=sha256 * 64) for file, sha256 in files.items()]
    manifest = Manifest(
        **facts, inputs={source: {"fingerprint": source} for source in inputs}, metrics=metrics or {}, files=records
    )
    return Found(name, name, [], manifest)


def test_inputs_come_before_what_is_made_of_them():
    chain = [found("evaluate", "model", "data"), found("model", "data", "gone"), found("data"), found("tokens", "model")]
    order = [pair.a.stage for pair in pair_up(chain, chain[::-1])]
    assert sorted(order) == ["data", "evaluate", "model", "tokens"]
    assert order[:2] == ["data", "model"]
    assert not any(pair.differs for pair in pair_up(chain, chain))


def test_manifests_that_name_each_other():
    circle = [found("model", "data"), found("data", "model")]
    with pytest.raises(DataError, match=r"manifests name each other as inputs \((model|data) -> "):
        pair_up(circle, circle)


def test_what_differs_and_after_what():
    a = [
        found("data", x="1"),
        found("frames", "data", x="1"),
        found("model", "frames", x="1", y="1"),
        found("end", "model", x="1"),
    ]
    b = [
        found("data", x="2"),
        found("frames", "data", x="1"),
        found("model", "frames", x="1", z="1"),
        found("end", "model", x="2"),
    ]
    pairs = {pair.a.stage: pair for pair in pair_up(a, b)}
    assert {stage: pair.files for stage, pair in pairs.items()} == {
        "data": ["x"],
        "frames": [],
        "model": ["y", "z"],
        "end": ["x"],
    }
    # The frames are the same, so the model differs for a reason of its own.
    assert {stage: pair.after for stage, pair in pairs.items()} == {
        "data": [],
        "frames": ["data-x"],
        "model": [],
        "end": ["model-x"],
    }
    assert [stage for stage, pair in pairs.items() if pair.differs] == ["data", "model", "end"]


def test_metrics_count_and_files_with_times_do_not():
    assert {METRICS, EVENTS, "report.html"} == WITH_TIMES
    timed = {"metrics_jsonl": "1", "events_tfevents": "1", "report_html": "1"}
    (pair,) = pair_up([found("model", x="1", **timed)], [found("model", x="1", **dict.fromkeys(timed, "2"))])
    assert not pair.differs
    (pair,) = pair_up([found("model", metrics={"loss": 1.0})], [found("model", metrics={"loss": 1.5})])
    assert (pair.differs, pair.files) == (True, [])


def test_only_what_both_have_published():
    unfinished = Found("model", "model", ["artifacts/model/model/x"], None)
    assert pair_up([found("model"), found("data")], [unfinished, found("other")]) == []
    assert pair_up([unfinished], [found("model")]) == []
