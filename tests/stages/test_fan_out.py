"""Several commands share a stage's parts: whatever the split and whoever dies, the artifact is that of one command."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from physion.config.load import load_config
from physion.config.schema import SUBSETS
from physion.errors import TransientError
from physion.pipeline.graph import build_graph
from physion.store.artifacts import ArtifactWriter, read_manifest
from physion.store.local import LocalStore

# Stage, instance, options, number of parts.
SPLIT = [
    ("frames", "frames-test", ["--subset", "test"], 2),
    ("tokenize", "tokenize", [], 3),
    ("extract-slots", "extract-slots-training", ["--subset", "training"], 3),
    ("rollout", "rollout-readout", ["--subset", "readout"], 3),
]


@pytest.fixture
def made_again(physion, preset, store):
    """Removes an instance's artifact; gives a command that makes it again and a function that looks at the result."""
    graph = build_graph(load_config(preset))

    def prepare(stage, name, options):
        node = graph[name]
        before = read_manifest(LocalStore(store), stage, node.fingerprint)
        folder = store / "artifacts" / stage / node.fingerprint
        shutil.rmtree(folder)
        arguments = ["stage", stage, *options, "-p", preset, "-s", store]

        def same():
            now = read_manifest(LocalStore(store), stage, node.fingerprint)
            assert now.files == before.files
            assert now.metrics == before.metrics
            there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
            assert there == {"manifest.json", *(record.name for record in before.files)}
            return True

        return arguments, folder, same

    return prepare


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize(("stage", "name", "options", "parts"), SPLIT)
def test_any_split_gives_the_same_artifact(physion, made_again, stage, name, options, parts, split):
    arguments, folder, same = made_again(stage, name, options)
    for index in reversed(range(split)):
        assert not (folder / "manifest.json").exists()
        ended = physion(*arguments, "--share", f"{index}/{split}", "--json")
        assert ended.code == 0, ended.err
        told = json.loads(ended.out)["result"]
        if index:
            assert told["published"] is False
            assert told["missing_parts"] == [part for part in range(parts) if part % split < index]
    assert told["published"] is True
    assert same()
    assert physion(*arguments, "--share", f"0/{split}").out.startswith(f"{name}: cached")


@pytest.fixture
def simulated(preset, tmp_path):
    """Path of a preset with a few simulated videos."""
    tree = yaml.safe_load(Path(preset).read_text()) | {
        "dataset": "simulate",
        "simulate": {
            "videos": {"training": 2, "readout": 2, "test": 1},
            "image-size": 32,
            "antialias": 1,
            "videos-per-part": 1,
            "workers": 1,
        },
    }
    (tmp_path / "simulated.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "simulated.yaml"


def manifests(root, stage):
    """By instance."""
    found = [json.loads(path.read_bytes()) for path in root.glob(f"artifacts/{stage}/*/manifest.json")]
    return {manifest["instance"]: manifest for manifest in found}


def test_videos_are_simulated_in_shares_as_well(physion, simulated, tmp_path):
    made = []
    for root, shares in ((tmp_path / "whole", [[]]), (tmp_path / "split", [["--share", f"{i}/2"] for i in range(2)])):
        for share in shares:
            ended = physion("stage", "simulate", "-p", simulated, "-s", root, *share)
            assert ended.code == 0, ended.err
        made.append(manifests(root, "simulate"))
    whole, split = made
    # Videos, the truth of each and truth.json, labels.
    assert {name: len(manifest["files"]) for name, manifest in whole.items()} == {
        "simulate-training": 2 + 2 + 1,
        "simulate-readout": 2 + 2 + 1 + 1,
        "simulate-test": 1 + 1 + 1 + 1,
    }
    assert {name: manifest["files"] for name, manifest in whole.items()} == {n: m["files"] for n, m in split.items()}
    assert all(manifest["seconds"] > 0 for manifest in split.values())


def test_simulating_makes_one_subset_or_all(physion, simulated, tmp_path):
    arguments = ["stage", "simulate", "-p", simulated, "-s", tmp_path / "store"]
    one = json.loads(physion(*arguments, "--subset", "test", "--json").out)["result"]
    assert (one["published"], one["cached"], one["metrics"]["videos"]) == (True, False, 1)
    assert set(manifests(tmp_path / "store", "simulate")) == {"simulate-test"}
    every = json.loads(physion(*arguments, "--json").out)["result"]
    assert [(row["cached"], row["metrics"]["videos"]) for row in every] == [(False, 2), (False, 2), (True, 1)]
    assert every[2]["artifact"] == one["artifact"]
    assert set(manifests(tmp_path / "store", "simulate")) == {f"simulate-{subset}" for subset in SUBSETS}
    lines = physion(*arguments).out.splitlines()
    assert [line.partition(" (")[0] for line in lines[::2]] == [f"simulate-{subset}: cached" for subset in SUBSETS]
    assert lines[1::2] == [row["artifact"] for row in every]


def test_publishing_says_what_is_missing_and_completes_what_is_not(physion, made_again, monkeypatch):
    arguments, folder, same = made_again(*SPLIT[1][:3])
    assert physion(*arguments, "--share", "1/3").out.startswith("tokenize: share 1/3 done; 2 of 3 parts are left to other")
    ended = physion(*arguments, "--publish")
    assert ended.code == 75
    assert "error: tokenize: 2 of 3 parts are not done: 0, 2." in ended.err
    assert "run `--share 0/3` for that one" in ended.err
    assert not (folder / "manifest.json").exists()
    with monkeypatch.context() as patch:

        def fails(writer, manifest):
            raise TransientError("the store went away")

        patch.setattr(ArtifactWriter, "publish", fails)
        assert physion(*arguments, "--share", "0/3").code == 0
        assert physion(*arguments, "--share", "2/3").code == 75
    assert physion(*arguments, "--publish").out.startswith("tokenize: done")
    assert same()
    assert physion(*arguments, "--publish").out.startswith("tokenize: cached")


def test_seconds_are_those_of_all_parts(physion, made_again):
    arguments, folder, _ = made_again(*SPLIT[1][:3])
    for index in range(2):
        physion(*arguments, "--share", f"{index}/3")
    records = [path for path in folder.glob("parts/*.json")]
    assert len(records) == 2
    for path in records:
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"seconds": 1000.0}))
    physion(*arguments, "--share", "2/3")
    assert 2000 < json.loads((folder / "manifest.json").read_bytes())["seconds"] < 2600


def test_one_is_killed_and_two_do_the_same(physion, made_again, store):
    arguments, folder, same = made_again("frames", "frames-training", ["--subset", "training"])

    def start(share):
        command = [sys.executable, "-m", "physion.cli", *map(str, arguments), "--share", share]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    before = set((store / ".staging").glob("*/.lock"))
    victim = start("2/3")
    while set((store / ".staging").glob("*/.lock")) <= before:
        assert victim.poll() is None
        time.sleep(0.005)
    victim.kill()
    victim.communicate()
    assert not (folder / "manifest.json").exists()
    outs = []
    for process in [start("0/3"), start("1/3"), start("2/3"), start("2/3")]:  # all at once, the last share twice
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        outs.append(out)
    assert any(out.startswith("frames-training: done") for out in outs)
    assert same()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train-dvae", "--share", "0/2"],
            "stage train-dvae cannot be split: run it without --share and --publish (with parts:",
        ),
        (["fetch", "--publish"], "stage fetch cannot be split"),
        (["tokenize", "--share", "2/2"], "--share 2/2: not of the form I/N with I from 0 to N - 1, such as 0/4"),
        (["tokenize", "--share", "half"], "--share half: not of the form I/N"),
        (["tokenize", "--share", "0/2", "--publish"], "--publish makes no parts: leave out --share"),
        (["tokenize", "--share", "0/2", "--force"], "--force would remove what other shares made"),
    ],
)
def test_what_cannot_be_split_or_how(physion, preset, tmp_path, arguments, said):
    ended = physion("stage", *arguments, "-p", preset, "-s", tmp_path)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
