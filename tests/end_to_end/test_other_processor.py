"""What another processor changes. Here it is this one, told to do without its newer instructions."""

import json
import os
import shutil
import subprocess
import sys
from platform import machine

import pytest

pytestmark = pytest.mark.skipif(machine() != "x86_64", reason="the switches are for x86")
PLAIN = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Nehalem",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}


def command(*arguments, **environment):
    ended = subprocess.run(
        [sys.executable, "-m", "physion.cli", *map(str, arguments)],
        env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


def test_simulated_videos_have_the_same_bytes(tmp_path):
    videos = ["--set", "simulate.videos={training: 1, readout: 1, test: 8}"]
    for folder, environment in (("a", {}), ("b", PLAIN)):
        arguments = ["stage", "simulate", "--subset", "test", "-p", "smoke", *videos, "-s", tmp_path / folder]
        code, _, err = command(*arguments, **environment)
        assert code == 0, err
    code, out, _ = command("store", "diff", tmp_path / "a", tmp_path / "b")
    assert (code, out) == (0, "artifacts in both: 1, of which 0 differ; only in A: 0; only in B: 0\n")


def test_a_training_differs_by_rounding(preset, finished, tmp_path):
    """By some of the last bits of float32 in six steps; they are other ones, or this would not be another processor."""
    shutil.copytree(finished, tmp_path / "store", ignore=shutil.ignore_patterns("train-dvae"))
    code, _, err = command("stage", "train-dvae", "-p", preset, "-s", tmp_path / "store", **PLAIN)
    assert code == 0, err
    code, out, _ = command("store", "diff", finished, tmp_path / "store", "train-dvae", "--json")
    (artifact,) = json.loads(out)["result"]["differ"]
    assert code == 1
    changes = artifact["files"]["weights.safetensors"]["changes"]
    assert 0 < max(change["largest"] for change in changes) < 1e-5
