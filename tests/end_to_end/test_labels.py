"""What was right on the test is told by `evaluate` alone: nothing that is trained or chosen knows a test label."""

import json
import subprocess
import sys

import pytest

from physion.data.layout import label_key


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


def run(preset, store, dataset):
    command = ["run", "-p", preset, "-s", str(store), "--set", f"fetch.root={dataset.root}"]
    ended = subprocess.run([sys.executable, "-m", "physion.cli", *command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_flipping_all_test_labels_changes_what_evaluate_says_and_nothing_else(preset, finished, dataset, tmp_path):
    file = dataset.labels("test")
    file.write_text(file.read_text().replace("True", "?").replace("False", "True").replace("?", "False"))
    run(preset, tmp_path / "flipped", dataset)
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


def trained(store):
    """By instance the digests of its arrays, weights among them, and what it says of them on held-out videos."""
    found = {}
    for path in store.glob("artifacts/*/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        arrays = sorted(file["sha256"] for file in manifest["files"] if file["name"].endswith(".safetensors"))
        found[manifest["instance"]] = arrays, manifest["metrics"].get("heldout_loss")
    return found


def test_flipping_the_labels_of_held_out_families_changes_no_weights(preset, finished, dataset, tmp_path):
    """Of readouts they choose the threshold alone. (Regressions choose nothing on them: they learn on all readout videos.)"""
    (frames,) = (
        path.parent
        for path in finished.glob("artifacts/frames/*/manifest.json")
        if json.loads(path.read_bytes())["instance"] == "frames-readout"
    )
    index = json.loads((frames / "index.json").read_bytes())
    heldout = {label_key("readout", video["name"]) for video in index["videos"] if video["heldout"]}
    assert 0 < len(heldout) < len(index["videos"])
    file = dataset.labels("readout")
    lines = file.read_text().splitlines(keepends=True)
    other = {"True": "False", "False": "True"}
    rows = [line.rstrip().split(",") for line in lines]
    flipped = [",".join([*row[:-1], other[row[-1]]]) + "\n" if row[0] in heldout else line
               for row, line in zip(rows, lines, strict=True)]  # fmt: skip
    assert sum(one != two for one, two in zip(lines, flipped, strict=True)) == len(heldout)
    file.write_text("".join(flipped))
    run(preset, tmp_path / "flipped", dataset)
    before, after = trained(finished), trained(tmp_path / "flipped")
    assert {name: arrays for name, (arrays, _) in before.items()} == {name: arrays for name, (arrays, _) in after.items()}
    readouts = {name for name in before if name.startswith("train-readout")}
    assert len(readouts) == 6
    assert {name for name in before if before[name] != after[name]} == readouts  # by their held-out loss
