"""`jobs/gpu_study.py`: what comes out of one machine is all that the next one needs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "jobs" / "gpu_study.py"


@pytest.fixture
def job():
    spec = importlib.util.spec_from_file_location("gpu_study", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def piece(preset, store, out, *options):
    command = [sys.executable, str(JOB), "--out", str(out), "--store", str(store), *options, "--preset", preset]
    return subprocess.run(command, capture_output=True, text=True, cwd=JOB.parents[1], env=os.environ | {"PYTHONPATH": "."})


def contents(store, stage):
    """The digests of each artifact's arrays and predictions, by instance; other files hold times."""
    manifests = [json.loads(path.read_bytes()) for path in store.glob(f"artifacts/{stage}/*/manifest.json")]
    kept = (".safetensors", "predictions.csv")
    return {
        each["instance"]: [(file["name"], file["sha256"]) for file in each["files"] if file["name"].endswith(kept)]
        for each in manifests
    }


def test_on_a_new_machine_trainings_are_there_and_the_rest_is_made_again(job, preset, store, tmp_path):
    assert 0 < job.pack(store, tmp_path / "first") < job.MOST
    ended = piece(preset, tmp_path / "new", tmp_path / "second", "--in", str(tmp_path / "first"))
    assert ended.returncode == 0, ended.stderr
    for stage in ("train-dvae", "train-steve", "train-slotformer", "regress"):
        assert re.search(rf"^{stage}\S*: cached", ended.stderr, re.MULTILINE), ended.stderr
        assert not re.search(rf"^{stage}\S*: done in", ended.stderr, re.MULTILINE)
    for stage in ("extract-slots", "rollout", "train-readout", "evaluate"):
        assert contents(tmp_path / "new", stage) == contents(store, stage)


def test_a_piece_that_runs_out_of_time_brings_its_checkpoint_out(job, preset, store, tmp_path):
    endless = ("--set", "train-steve.optim.steps=10000000", "--set", "train-steve.checkpoint-every=1")
    for _ in range(10):  # pieces until one gets as far: on a busy machine not the first
        ended = piece(preset, store, tmp_path / "out", "--seconds", "40", *endless)
        assert ended.returncode == 75, ended.stderr
        if kept := sorted(store.glob("artifacts/train-steve/*/checkpoints/*")):
            break
    assert job.unpack(tmp_path / "out", tmp_path / "new") > 0
    (brought,) = (tmp_path / "new").glob("artifacts/train-steve/*/checkpoints/*")
    assert brought.name == kept[-1].name
    assert brought.read_bytes() == kept[-1].read_bytes()
    assert job.unpack(tmp_path / "out", tmp_path / "new") == 0


def test_what_is_too_much_is_left_behind_and_said(job, store, tmp_path, monkeypatch, capsys):
    whole = job.pack(store, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == -(-whole // job.PART)
    monkeypatch.setattr(job, "MOST", whole // 2)
    monkeypatch.setattr(job, "PART", 100_000)
    assert 0 < job.pack(store, tmp_path / "out") <= whole // 2
    assert "left behind: artifacts/" in capsys.readouterr().out
    parts = [path.stat().st_size for path in sorted((tmp_path / "out").iterdir())]
    assert set(parts[:-1]) == {100_000}
    assert job.unpack(tmp_path / "out", tmp_path / "new") > 0
    for manifest in (tmp_path / "new").glob("artifacts/*/*/manifest.json"):
        assert all((manifest.parent / file["name"]).exists() for file in json.loads(manifest.read_bytes())["files"])
