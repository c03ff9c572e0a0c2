"""Ranks are real processes that meet by gloo; what they train together is what one trains alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import cache

import pytest
import spied
from ranks import Ranks, physion

from physion.data.order import StepBatches

STEPS = 50
STAGES = ("train-dvae", "train-steve", "train-isa", "train-slotformer", "train-readout")
BATCH = 4
REPEATS = int(os.environ.get("PHYSION_TEST_REPEATS", "2"))
# Keeps a core and the allocator busy, and ends with whoever started it.
BUSY = "import os, zlib\nparent = os.getppid()\nwhile os.getppid() == parent: zlib.crc32(os.urandom(1 << 22))"


class Trained:
    """One run of a training stage, possibly in several goes, in a store of its own."""

    def __init__(self, finished, preset, stage, folder):
        self.stage, self.store, self.folder = stage, folder / "store", folder
        shutil.copytree(finished, self.store, ignore=shutil.ignore_patterns(stage, "evaluate", "train-readout"))
        settings = {"optim.steps": STEPS, "heldout-every": STEPS // 2, "checkpoint-every": 10, "threads": 1}
        which = {"train-readout": ["--features", "rollout", "--seed", "0"], "train-isa": ["--set", "slot-model=isa"]}.get(
            stage, []
        )
        self.arguments = [
            "stage", stage, *which, "-p", preset, "-s", str(self.store),
            *(word for key, value in settings.items() for word in ("--set", f"{stage}.{key}={value}")),
        ]  # fmt: skip

    def ranks(self, count, *settings, end=None, synchronised=True, float64=False):
        arguments = self.arguments + [word for setting in settings for word in ("--set", f"{self.stage}.{setting}")]
        return Ranks(count, spied.run, str(self.folder), arguments, end, synchronised, float64, log=self.folder / "log")

    def train(self, count, *settings, **changes):
        ranks = self.ranks(count, *settings, **changes)
        codes = ranks.wait()
        assert codes == [0] * count, ranks.said()
        return self

    def file(self, name):
        (path,) = self.store.glob(f"artifacts/{self.stage}/*/{name}")
        return path

    @property
    def losses(self):
        rows = [json.loads(line) for line in self.file("metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    @property
    def parameters(self):
        return [path.read_text() for path in sorted(self.folder.glob("parameters.*"))]


@pytest.fixture(scope="module")
def trained(finished, preset, tmp_path_factory):
    """A run that did nothing yet."""

    def make(stage):
        return Trained(finished, preset, stage, tmp_path_factory.mktemp(stage))

    return make


@pytest.fixture(scope="module")
def alone(trained):
    """Each training on one rank, in float64, once."""
    return cache(lambda stage: trained(stage).train(1, float64=True))


@pytest.fixture(scope="module")
def busy():
    """Four processes that leave little of two cores."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(4)]
    yield
    for process in processes:
        process.kill()
        process.wait()


def assert_equal(several, one):
    """In float64: in float32 a rounding difference that turns one ReLU on or off grows to 1e-3 within these steps."""
    assert len(set(several.parameters)) == 1
    assert list(several.losses) == list(range(1, STEPS + 1))
    assert several.losses == pytest.approx(one.losses, rel=1e-12, abs=0)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_ranks_train_what_one_trains(trained, alone, stage, count):
    several = trained(stage).train(count, float64=True)
    assert len(several.parameters) == count
    assert_equal(several, alone(stage))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_as_many_ranks_give_the_same_bits_on_a_busy_machine(trained, busy, stage, count):
    runs = [trained(stage).train(count) for _ in range(REPEATS)]
    assert len({run.file("weights.safetensors").read_bytes() for run in runs}) == 1
    assert len({tuple(run.losses.items()) for run in runs}) == 1


def test_without_synchronised_gradients_they_do_not(trained, alone):
    """The test above fails when it should."""
    apart = trained("train-steve").train(2, synchronised=False, float64=True)
    assert len(set(apart.parameters)) == 2
    with pytest.raises(AssertionError):
        assert_equal(apart, alone("train-steve"))


@pytest.mark.parametrize("stage", ["train-steve", "train-slotformer"])
def test_micro_batches_are_the_batch(trained, alone, stage):
    """One rank has three samples of the batch of seven, in micro-batches of two; the other four."""
    assert_equal(trained(stage).train(1, "micro-batch=3", float64=True), alone(stage))
    uneven = trained(stage).train(2, "optim.batch-size=7", "micro-batch=2", float64=True)
    assert_equal(uneven, trained(stage).train(1, "optim.batch-size=7", float64=True))


def test_one_frame_clips_leave_the_predictor_without_gradients(trained):
    trained("train-steve").train(2, "clip-frames=1", "optim.steps=3")


def test_on_other_numbers_of_ranks_it_goes_on_with_the_same_batches(trained, alone):
    run = trained("train-slotformer")
    seen = []
    for count, ending in ((2, (1, 12, signal.SIGTERM)), (1, (0, 11, signal.SIGTERM)), (4, None)):
        ranks = run.ranks(count, end=ending, float64=True)
        assert ranks.wait() == [143 if ending else 0] * count, ranks.said()
        shares = [(run.folder / f"clips.{rank}").read_text().splitlines() for rank in range(count)]
        seen += [[int(clip) for part in parts for clip in part.split()] for parts in zip(*shares, strict=True)]
        for path in run.folder.glob("clips.*"):
            path.unlink()
    clips = max(map(max, seen)) + 1
    assert seen == list(StepBatches(clips, BATCH, 0, 0, STEPS))
    assert_equal(run, alone("train-slotformer"))


def test_a_rank_that_dies_takes_the_others_along_and_they_go_on(trained):
    whole, broken = trained("train-readout").train(2), trained("train-readout")
    ranks = broken.ranks(2, end=(1, 33, signal.SIGKILL))
    assert ranks.wait() == [75, -signal.SIGKILL]
    assert "rank 0 of 2 has lost the others" in ranks.said()
    assert "Traceback" not in ranks.said()
    broken.train(2)
    assert broken.file("weights.safetensors").read_bytes() == whole.file("weights.safetensors").read_bytes()
    assert list(broken.losses) == list(range(1, STEPS + 1))  # without gaps or doubles


@pytest.mark.parametrize("stage", ["train-steve", "train-slotformer"])
def test_a_stop_leaves_no_trace_on_four_ranks(trained, stage):
    """To the bit: of more than two numbers, the sum depends on their order."""
    whole, broken = trained(stage).train(4), trained(stage)
    assert broken.ranks(4, end=(2, 7, signal.SIGTERM)).wait() == [143] * 4
    broken.train(4)
    assert broken.file("weights.safetensors").read_bytes() == whole.file("weights.safetensors").read_bytes()


def test_what_is_cached_is_cached_on_every_rank(finished, preset, tmp_path):
    arguments = ["stage", "train-dvae", "-p", preset, "-s", str(finished)]
    ranks = Ranks(2, physion, *arguments, log=tmp_path / "log")
    assert ranks.wait() == [0, 0]
    assert "train-dvae: cached" in ranks.said(0)
    assert ranks.said(1) == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stage", "train-dvae", "--set", "train-dvae.optim.batch-size=1"], "a batch of 1 cannot be divided among 2 ranks"),
        (["stage", "train-dvae", "--set", "fetch.root=/else"], "input frames-training"),
        (["stage", "tokenize"], "stage tokenize is one process, but WORLD_SIZE is 2"),
        (["run"], "physion run is one process"),
    ],
)
def test_mistakes_end_every_rank_with_two(store, preset, tmp_path, arguments, said):
    ranks = Ranks(2, physion, *arguments, "-p", preset, "-s", str(store), log=tmp_path / "log")
    assert ranks.wait() == [2, 2]
    assert said in ranks.said()
    assert "Traceback" not in ranks.said(0) + ranks.said(1)
