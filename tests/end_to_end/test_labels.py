"""What was right on the test is told by `evaluate` alone: nothing that is trained or chosen knows a test label."""

import json
import subprocess
import sys

import pytest


def contents(store):
    """By instance the digests of its files: not of indexes, which carry the labels, nor the names, which carry their hash."""
    found = {}
    for path in store.glob("artifacts/*/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        files = [file for file in manifest["files"] if not file["name"].endswith(("index.json", "metrics.jsonl", "tfevents"))]
        found[manifest["instance"]] = (
            sorted(file["sha256"] for file in files),
            {key: manifest["metrics"].get(key) for key in ("threshold", "chosen")},
        )
    return found


def test_flipping_all_test_labels_changes_what_evaluate_says_and_nothing_else(preset, finished, dataset, tmp_path):
    file = dataset.labels("test")
    file.write_text(file.read_text().replace("True", "?").replace("False", "True").replace("?", "False"))
    command = ["run", "-p", preset, "-s", str(tmp_path / "flipped"), "--set", f"fetch.root={dataset.root}"]
    ended = subprocess.run([sys.executable, "-m", "physion.cli", *command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    before, after = contents(finished), contents(tmp_path / "flipped")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"fetch-test", "evaluate"}  # the label file, the numbers
    metrics = [
        json.loads(next(store.glob("artifacts/evaluate/*/metrics.json")).read_bytes())
        for store in (finished, tmp_path / "flipped")
    ]
    for said, flipped in zip(*(each["modes"].values() for each in metrics), strict=True):
        assert said["overall"]["accuracy"]["value"] + flipped["overall"]["accuracy"]["value"] == pytest.approx(1)
        assert [row["threshold"] for row in said["overall"]["per_seed"]] == [
            row["threshold"] for row in flipped["overall"]["per_seed"]
        ]
