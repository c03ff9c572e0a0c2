"""`physion store diff`, on copies of a finished study in which something was changed."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import uuid

import numpy as np
import pytest
from safetensors.numpy import load, save

from physion.config.load import load_config
from physion.data.shards import encode_frames
from physion.data.video import read_frames, write_mp4
from physion.pipeline.graph import build_graph
from physion.store.uri import open_store


@pytest.fixture
def graph(preset):
    return build_graph(load_config(preset))


def file_of(store, node, name):
    return store / "artifacts" / node.stage.name / node.fingerprint / name


def shard_of(store, node, number):
    """Name of a shard, which tells what it is made from."""
    (path,) = file_of(store, node, "").glob(f"{number:05d}-*.safetensors")
    return path.name


def rewrite(store, node, name, data, **facts):
    """As if the stage had made this file: the manifest agrees with it."""
    path = file_of(store, node, name)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    manifest = file_of(store, node, "manifest.json")
    tree = json.loads(manifest.read_bytes()) | facts
    tree["files"] = [record for record in tree["files"] if record["name"] != name]
    tree["files"].append({"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    manifest.write_text(json.dumps(tree))


def change_tensor(store, node, name, change, tensor=""):
    """Change one tensor of a file in place; returns its name."""
    tensors = load(file_of(store, node, name).read_bytes())
    chosen = next(key for key in sorted(tensors) if key.endswith(tensor))
    tensors[chosen] = tensors[chosen].copy()
    change(tensors[chosen])
    rewrite(store, node, name, save(tensors))
    return chosen


def add(amount):
    def change(array):
        array.flat[1] += array.dtype.type(amount)

    return change


@pytest.fixture
def diff(physion, finished, store):
    """Compare the finished study, A, with the copy, B."""

    def command(*arguments):
        return physion("store", "diff", finished, store, *arguments)

    return command


@pytest.fixture
def only_difference(diff):
    """The one file that differs, in the one artifact that does."""

    def of(instance, name):
        ended = diff("--json")
        assert (ended.code, ended.err) == (1, "")
        facts = json.loads(ended.out)["result"]
        (differing,) = facts["differ"]
        assert (differing["instance"], differing["after"], facts["same"]) == (instance, [], 29)
        (found,) = differing["files"].items()
        assert found[0] == name
        line = diff().out.splitlines()[1]
        assert line.startswith(f"  {name}: {found[1]['count']} of {found[1]['of']} {found[1]['unit']}")
        return found[1]

    return of


def test_help(physion):
    ended = physion("store", "diff", "--help")
    assert (ended.code, "physion store diff runs/a " in " ".join(ended.out.split())) == (0, True)


def test_what_takes_long_to_load_is_not_loaded_for_nothing(finished):
    code = "import sys, atexit, physion.cli; atexit.register(lambda: print({'av', 'numpy', 'torch'}.intersection(sys.modules)))"
    for arguments, loaded in ((["--help"], set()), (["diff", finished, finished], {"av", "numpy"})):
        command = [sys.executable, "-c", f"{code}; physion.cli.main()", "store", *arguments]
        run = subprocess.run(command, capture_output=True, text=True)
        assert (run.returncode, eval(run.stdout.splitlines()[-1])) == (0, loaded)


def test_equal_stores_are_compared_by_their_manifests(diff, store):
    for path in store.glob("artifacts/*/*/*.*"):
        if path.name != "manifest.json":
            path.unlink()  # nobody needs it
    ended = diff()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "artifacts in both: 30, of which 0 differ; only in A: 0; only in B: 0\n"


def test_one_weight(only_difference, store, graph):
    node, name = graph["train-steve"], "weights.safetensors"
    tensor = change_tensor(store, node, name, add(1e-6))
    weights = load(file_of(store, node, name).read_bytes())
    found = only_difference("train-steve", name)
    (change,) = found["changes"]
    assert (found["count"], found["of"], found["unit"]) == (1, len(weights), "tensors")
    assert (change["where"], change["detail"]) == (tensor, f"1 of {weights[tensor].size}")
    assert change["largest"] == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize(
    ("instance", "kind", "amount"),
    [("tokenize", "/tokens", 3), ("extract-slots-test", "/slots", 0.125), ("rollout-readout", "/slots", 0.125)],
)
def test_one_value_of_a_shard(only_difference, store, graph, instance, kind, amount):
    name = shard_of(store, graph[instance], 1)
    tensor = change_tensor(store, graph[instance], name, add(amount), kind)
    (change,) = only_difference(instance, name)["changes"]
    assert (change["where"], change["detail"].split()[0]) == (tensor, "1")
    assert change["largest"] == pytest.approx(amount, rel=1e-6)


def test_one_jpeg(only_difference, store, graph):
    node = graph["frames-test"]
    name = shard_of(store, node, 1)
    tensors = load(file_of(store, node, name).read_bytes())
    video = min(tensors).rpartition("/")[0]
    offsets = tensors[f"{video}/offsets"]
    picture = encode_frames(np.full((1, 32, 32, 3), 255, np.uint8), 90)["jpeg"]
    before, after = np.split(tensors[f"{video}/jpeg"], offsets[[4, 5]])[::2]
    tensors[f"{video}/jpeg"] = np.concatenate([before, picture, after])
    tensors[f"{video}/offsets"] = np.concatenate([offsets[:5], offsets[5:] + len(picture) - (offsets[5] - offsets[4])])
    rewrite(store, node, name, save(tensors))
    (change,) = only_difference("frames-test", name)["changes"]
    assert (change["where"], change["detail"]) == (f"{video}/jpeg", "1 of 12 frames")
    assert 150 < change["largest"] <= 255


def test_one_video(only_difference, store, graph, tmp_path):
    node = graph["fetch-training"]
    path = min(file_of(store, node, "").rglob("*.mp4"))
    frames = read_frames(path, 12)
    frames[9:, :4, :4] = 255
    write_mp4(tmp_path / "changed.mp4", frames)
    name = path.relative_to(file_of(store, node, "")).as_posix()
    rewrite(store, node, name, (tmp_path / "changed.mp4").read_bytes())
    found = only_difference("fetch-training", name)
    assert (found["unit"], found["of"]) == ("frames", 12)
    assert {"frame 9", "frame 10", "frame 11"} <= {change["where"] for change in found["changes"] if change["largest"] > 100}


def test_one_cell_of_a_table(only_difference, store, graph):
    node, name = graph["evaluate"], "predictions.csv"
    rows = list(csv.reader(io.StringIO(file_of(store, node, name).read_text())))
    before, rows[2][-1] = rows[2][-1], "0.987654"
    rewrite(store, node, name, "".join(",".join(row) + "\n" for row in rows).encode())
    found = only_difference("evaluate", name)
    (change,) = found["changes"]
    assert (change["where"], change["detail"]) == (f"{rows[2][0]}.{rows[0][-1]}", f"{before} → 0.987654")
    assert change["largest"] == pytest.approx(abs(0.987654 - float(before)))


def test_one_metric(only_difference, store, graph):
    node, name = graph["evaluate"], "metrics.json"
    tree = json.loads(file_of(store, node, name).read_bytes())
    tree["modes"]["full"]["n"] += 5
    rewrite(store, node, name, json.dumps(tree, indent=1).encode())
    (change,) = only_difference("evaluate", name)["changes"]
    after = tree["modes"]["full"]["n"]
    assert change == {"where": "modes.full.n", "detail": f"{after - 5} → {after}", "largest": 5}


def test_one_headline_metric(only_difference, store, graph):
    path = file_of(store, graph["train-dvae"], "manifest.json")
    tree = json.loads(path.read_bytes())
    tree["metrics"]["heldout_loss"] += 0.5
    path.write_text(json.dumps(tree | {"created": "2020-01-01T00:00:00+00:00", "seconds": 1.0, "host": {}}))
    (change,) = only_difference("train-dvae", "manifest.json")["changes"]
    assert (change["where"], change["largest"]) == ("metrics.heldout_loss", pytest.approx(0.5))


def test_a_file_that_only_one_has(diff, store, graph):
    rewrite(store, graph["train-dvae"], "epochs/1.safetensors", b"x")
    ended = diff()
    assert (ended.code, ended.out.splitlines()[1]) == (1, "  epochs/1.safetensors: only in B")
    assert json.loads(diff("--json").out)["result"]["differ"][0]["files"] == {"epochs/1.safetensors": "only in B"}


def test_files_with_times_in_them_are_passed_over(diff, store, graph):
    for name in ("metrics.jsonl", "events.tfevents"):
        rewrite(store, graph["train-dvae"], name, b"other times")
    rewrite(store, graph["evaluate"], "report.html", b"other times")
    assert diff().code == 0


def test_what_differs_first_comes_first(diff, store, graph):
    for name in ("tokenize", "extract-slots-test", "rollout-test"):
        change_tensor(store, graph[name], shard_of(store, graph[name], 0), add(1))
    for name in ("train-dvae", "train-steve", "train-slotformer"):
        change_tensor(store, graph[name], "weights.safetensors", add(1))
    ended = diff()
    assert ended.code == 1
    heads = [line for line in ended.out.splitlines() if not line.startswith(" ")]
    expected = [
        ("train-dvae", "first to differ"),
        ("train-slotformer", "first to differ"),  # the training slots are the same
        ("tokenize", "inputs that differ: train-dvae"),
        ("train-steve", "inputs that differ: train-dvae, tokenize"),
        ("extract-slots-test", "inputs that differ: train-steve"),
        ("rollout-test", "inputs that differ: train-slotformer, extract-slots-test"),
    ]
    assert heads[:-1] == [f"{name} {graph[name].fingerprint[:12]}, {cause}" for name, cause in expected]
    assert heads[-1] == "artifacts in both: 30, of which 6 differ; only in A: 0; only in B: 0"
    assert [row["instance"] for row in json.loads(diff("--json").out)["result"]["differ"]] == [name for name, _ in expected]


def test_many_files(diff, store, graph):
    for number in range(8):
        rewrite(store, graph["train-dvae"], f"epochs/{number}", b"x")
    lines = diff().out.splitlines()
    assert lines[5:7] == ["  epochs/4: only in B", "  and 3 more, which --json shows"]
    assert len(json.loads(diff("--json").out)["result"]["differ"][0]["files"]) == 8


def test_naming_artifacts(diff, store, graph):
    for name in ("train-dvae", "train-steve"):
        change_tensor(store, graph[name], "weights.safetensors", add(1))
    ended = diff("train-steve", "frames")
    assert ended.out.splitlines()[0].endswith("inputs that differ: train-dvae")
    assert ended.out.splitlines()[-1].startswith("artifacts in both: 4, of which 1 differ")
    assert diff("frames", graph["tokenize"].fingerprint[:8]).code == 0
    ended = diff("train-stve")
    assert (ended.code, "no artifact is called 'train-stve'" in ended.err) == (2, True)


def test_artifacts_that_only_one_has(diff, store, graph):
    shutil.rmtree(file_of(store, graph["evaluate"], ""))
    file_of(store, graph["rollout-test"], "manifest.json").unlink()
    ended = diff()
    assert (ended.code, ended.out) == (0, "artifacts in both: 28, of which 0 differ; only in A: 2; only in B: 0\n")
    facts = json.loads(diff("--json").out)["result"]
    assert len(facts["only_in_a"]) == 2
    assert f"artifacts/evaluate/{graph['evaluate'].fingerprint}" in facts["only_in_a"]
    ended = diff("evaluate")
    assert (ended.code, "have no such artifact in common" in ended.err) == (2, True)


def test_stores_with_nothing_in_common(physion, finished, tmp_path):
    ended = physion("store", "diff", finished, tmp_path / "typo")
    assert ended.code == 2
    assert ended.err == f"error: there are no artifacts in {(tmp_path / 'typo').as_uri()}: check the name of the store\n"
    assert not (tmp_path / "typo").exists()
    for name, part in (("a", "train-*"), ("b", "frames")):
        for path in finished.glob(f"artifacts/{part}/*"):
            shutil.copytree(path, tmp_path / name / path.relative_to(finished))
    ended = physion("store", "diff", tmp_path / "a", tmp_path / "b")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith("have no artifact in common\n")
    assert physion("store", "diff", finished).code == 2


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [truncated, os.unlink])
def test_a_damaged_file(diff, store, graph, damage):
    """Beside what else differs."""
    for name in ("train-dvae", "train-steve"):
        change_tensor(store, graph[name], "weights.safetensors", add(1))
    path = file_of(store, graph["train-dvae"], "weights.safetensors")
    damage(path)
    ended = diff()
    assert ended.code == 3
    assert len(ended.err.splitlines()) == 1
    assert ended.err.startswith(f"error: {path.as_uri()} is ")
    assert "train-steve" in ended.out
    assert ended.out.endswith("of which 2 differ; only in A: 0; only in B: 0\n")
    ended = diff("--json")
    assert (ended.code, len(json.loads(ended.out)["result"]["problems"])) == (3, 1)
    assert diff("frames").code == 0


def test_a_damaged_manifest(diff, store, graph):
    file_of(store, graph["train-dvae"], "manifest.json").write_text("{")
    for arguments in ((), ("train-dvae",)):
        ended = diff(*arguments)
        assert (ended.code, len(ended.err.splitlines())) == (3, 1)
        assert "train-dvae" in ended.err
        assert "is not a manifest" in ended.err
    assert diff("frames").code == 0


def test_a_bucket_and_a_folder(physion, finished, store, graph, s3):
    """And two buckets, through a cache that has room for no file that is not in use."""
    tensor = change_tensor(store, graph["train-steve"], "weights.safetensors", add(1e-6))
    uris = [f"s3://tests/{uuid.uuid4().hex}" for _ in range(2)]
    for uri, root in zip(uris, (finished, store), strict=True):
        target = open_store(uri)
        for path in file_of(root, graph["train-steve"], "").iterdir():
            target.write(path.relative_to(root).as_posix(), path.read_bytes())
    before = json.loads(physion("store", "diff", finished, store, "--json").out)["result"]["differ"]
    assert before[0]["files"]["weights.safetensors"]["changes"][0]["where"] == tensor
    for pair in ((finished, uris[1]), (uris[0], store), uris):
        ended = physion("--cache-limit", "1B", "store", "diff", *pair, "--json")
        assert ended.code == 1, ended.err
        assert json.loads(ended.out)["result"]["differ"] == before
    assert physion("store", "diff", finished, uris[0]).code == 0
    ended = physion("store", "diff", finished, "s3://no-such-bucket/x")
    assert (ended.code, "NoSuchBucket" in ended.err) == (2, True), ended.err
