"""What needs a GPU; skipped without one. What needs two has not run anywhere yet."""

import json
import shutil
import signal

import pytest
import torch
from ranks import Ranks, physion

from physion.training.precision import arithmetic

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
STAGES = ("train-dvae", "train-steve", "train-slotformer", "train-readout")
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")


@pytest.fixture
def train(finished, preset, tmp_path_factory):
    """Train a stage anew on `count` GPUs. Returns its exit codes and its rows of metrics."""

    def run(stage, count=1, *settings):
        folder = tmp_path_factory.mktemp(stage)
        store = folder / "store"
        shutil.copytree(finished, store, ignore=shutil.ignore_patterns(stage, "evaluate"))
        which = ["--features", "observed", "--seed", "0"] if stage == "train-readout" else []
        arguments = ["stage", stage, *which, "-p", preset, "-s", str(store)]
        few = "optim.steps=200", "optim.lr=3e-3", "checkpoint-every=50", "heldout-every=100"
        for setting in (*few, "loader-workers=0", *settings):  # these ranks may have no children
            arguments += ["--set", f"{stage}.{setting}"]
        ranks = Ranks(count, physion, *arguments, log=folder / "log")
        codes = ranks.wait(300)
        assert set(codes) == {0}, ranks.said()
        (path,) = store.glob(f"artifacts/{stage}/*/metrics.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_model_learns_in_every_precision(train, stage, precision):
    rows = train(stage, 1, f"precision={precision}")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert all(row["memory_gb"] > 0 for row in rows if "loss" in row)


@pytest.mark.parametrize("stage", STAGES)
def test_compiled_models_learn(train, stage):
    losses = [row["loss"] for row in train(stage, 1, "compile=true") if "loss" in row]
    assert losses[-1] < losses[0]


def test_micro_batches_are_the_batch(train):
    """Without noise: a GPU's depends on the split."""
    whole = train("train-steve", 1, "precision=fp32", "model.dropout=0.0", "optim.steps=5")
    split = train("train-steve", 1, "precision=fp32", "model.dropout=0.0", "optim.steps=5", "micro-batch=1")
    assert [row["loss"] for row in split if "loss" in row] == pytest.approx(
        [row["loss"] for row in whole if "loss" in row], rel=1e-3
    )


def test_float32_is_not_tf32():
    """Sums of a thousand products are off by far less than 1e-5 of their spread; of TF32's 11 bits, by more than 1e-4."""
    a, b = torch.randn(2, 1024, 1024, device="cuda")
    images, weights = torch.randn(8, 64, 32, 32, device="cuda"), torch.randn(64, 64, 4, 4, device="cuda")
    with arithmetic(torch.float32):
        ours = [a @ b, torch.nn.functional.conv2d(images, weights)]
    exact = [a.double() @ b.double(), torch.nn.functional.conv2d(images.double(), weights.double())]
    assert all((x - y).std() < 1e-5 * y.std() for x, y in zip(ours, exact, strict=True))


@TWO
@pytest.mark.parametrize("stage", STAGES)
def test_two_gpus_train_together(train, stage):
    losses = [row["loss"] for row in train(stage, 2) if "loss" in row]
    assert losses[-1] < losses[0]


@TWO
def test_on_two_gpus_a_dead_rank_takes_the_other_along(finished, preset, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished, store, ignore=shutil.ignore_patterns("train-dvae"))
    settings = [word for s in ("optim.steps=100000", "stuck-after=20") for word in ("--set", f"train-dvae.{s}")]
    ranks = Ranks(2, physion, "stage", "train-dvae", "-p", preset, "-s", str(store), *settings, log=tmp_path / "log")
    while not list(store.glob("artifacts/train-dvae/*/checkpoints/*")):
        assert ranks.wait_running(0.1)
    ranks.signal(signal.SIGKILL, [1])
    assert ranks.wait(120)[0] == 75
