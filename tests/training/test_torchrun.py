"""The real torchrun: it restarts a group of which one rank died, and stops one that is to stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from ranks import Ranks, physion

from physion.config.load import load_config
from physion.pipeline.graph import build_graph
from physion.stages import Kind

BIN = os.path.dirname(sys.executable)


@pytest.fixture
def start(finished, preset, tmp_path):
    """Start a training of the readout, long enough to be disturbed, on two ranks."""
    shutil.copytree(finished, tmp_path / "store", ignore=shutil.ignore_patterns("train-readout", "evaluate"))
    started = []

    def command(*launcher, **environment):
        settings = {"optim.steps": 600, "checkpoint-every": 10, "heldout-every": 300, "threads": 1}
        arguments = ["stage", "train-readout", "--features", "full", "--seed", "0", "-p", preset, "-s", tmp_path / "store"]
        arguments += [word for key, value in settings.items() for word in ("--set", f"train-readout.{key}={value}")]
        process = subprocess.Popen(
            [*launcher, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield command
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_checkpoint(store, process):
    while not list(store.glob("artifacts/train-readout/*/checkpoints/*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_a_rank_that_dies_restarts_the_group_from_the_last_checkpoint(start, tmp_path):
    torchrun = [f"{BIN}/torchrun", "--nproc-per-node=2", "--max-restarts=1", "--no-python", f"{BIN}/physion"]
    process = start(*torchrun)
    wait_for_checkpoint(tmp_path / "store", process)
    psutil.Process(process.pid).children()[-1].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.search(r"train-readout-full-0: resumes at step [1-9]\d* of 600", err)
    assert out.startswith("train-readout-full-0: done in")
    assert out.count("train-readout-full-0") == 1  # rank 0 alone talks
    (manifest,) = (tmp_path / "store").glob("artifacts/train-readout/*/manifest.json")
    assert json.loads(manifest.read_bytes())["host"]["ranks"] == 2


def test_sigterm_ends_with_143_and_the_state_saved(start, tmp_path):
    """Configured by the environment that a PyTorchJob sets."""
    process = start(sys.executable, "-m", "physion.training.torchrun", PET_NPROC_PER_NODE="2", PET_NNODES="1")
    wait_for_checkpoint(tmp_path / "store", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert err.count("progress is saved, and the same command resumes from there") == 1
    again = Ranks(1, physion, *process.args[process.args.index("stage") :], log=tmp_path / "log")
    assert again.wait() == [0]
    assert "resumes at step" in again.said()


def test_a_run_gives_what_its_stages_give_one_by_one_on_as_many_ranks(preset, tmp_path, request):
    here = request.getfixturevalue("physion")
    options = ["-p", preset]
    for stage in ("train-dvae", "train-steve", "train-slotformer"):
        options += ["--set", f"{stage}.threads=1"]
    line = [sys.executable, "-m", "physion.cli", "run", *options, "-s", str(tmp_path / "run"), "--ranks", "2"]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for node in build_graph(load_config(preset)).values():
        words = ["stage", *node.options.split(), *options, "-s", str(tmp_path / "stages")]
        training = node.stage.kind is Kind.TRAINING
        codes = Ranks(2, physion, *words, log=tmp_path / "log").wait() if training else [here(*words).code]
        assert set(codes) == {0}, node.name
    line = [sys.executable, "-m", "physion.cli", "store", "diff", str(tmp_path / "run"), str(tmp_path / "stages")]
    diff = subprocess.run(line, capture_output=True, text=True)
    assert diff.returncode == 0, diff.stdout + diff.stderr
    (manifest,) = (tmp_path / "run").glob("artifacts/train-dvae/*/manifest.json")
    assert json.loads(manifest.read_bytes())["host"]["ranks"] == 2


def test_launch_without_a_stage_says_how():
    ended = subprocess.run([sys.executable, "-m", "physion.training.torchrun", "-h"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: usage: ")
