"""What is stuck or does not fit ends the job, and says where."""

import sys
import time

import pytest
import torch
from ranks import Ranks
from tiny_training import TinyTask, make_job, settings, train

from physion.errors import ConfigError
from physion.training.engine import fit, require_compilers


def stuck(folder, where):
    """A rank on which one thing never comes."""
    import os

    from physion.job import Job
    from physion.training.distributed import joined

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    job = make_job(folder)
    task = TinyTask()
    if where == "batch" and rank == count - 1:
        read = task.train.__class__.__getitem__
        calls = []

        def never(self, clips):
            calls.append(clips)
            while len(calls) > 3:
                time.sleep(1)
            return read(self, clips)

        task.train.__class__ = type("Stuck", (task.train.__class__,), {"__getitem__": never})
    if where == "step" and rank == count - 1:
        task.at_step = lambda step: time.sleep(1000 if step == 3 else 0)
    if count == 1:
        fit(task, settings(stuck_after=1.0), job)
        return
    with joined(rank, count, rank, 1.0) as ranks:
        fit(task, settings(stuck_after=1.0), Job(job.instance, None, {}, job.output, ranks=ranks))


def test_a_stuck_data_worker_is_named_and_ends_the_job(tmp_path):
    ranks = Ranks(1, stuck, str(tmp_path), "batch", log=tmp_path / "log")
    assert ranks.wait() == [75]
    assert ranks.said() == (
        "error: train-dvae has been waiting for the batch of step 3 for 1 s, which is stuck; ending it. "
        "The same command goes on from the last checkpoint\n"
    )


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("batch", "rank 1 of train-dvae has been waiting for the batch of step 3 for 1 s"),
        ("step", "rank 1 of train-dvae has been in step 3, computing or in the all-reduce of its gradients for 1 s"),
    ],
)
def test_a_stuck_rank_is_named_and_ends_the_job(tmp_path, where, said):
    ranks = Ranks(2, stuck, str(tmp_path), where, log=tmp_path / "log")
    assert ranks.wait() == [75, 75]
    assert said in ranks.said(1)
    first = ranks.said(0)
    assert "rank 0 of train-dvae has been in step 3" in first or "rank 0 of 2 has lost the others" in first


def test_compiling_without_a_compiler_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError) as raised:
        train(tmp_path, compile=True)
    assert str(raised.value) == (
        "train-dvae: torch.compile needs a C++ compiler (no-such-compiler) for a cpu device, and neither the container image "
        "nor every machine has that: leave out train-dvae.compile=true, or install it"
    )
    assert not list(tmp_path.iterdir())


def test_compiling_for_a_gpu_needs_triton(tmp_path, monkeypatch):
    job, gpu = make_job(tmp_path), torch.device("cuda")
    monkeypatch.setenv("CC", sys.executable)  # any program that is there
    require_compilers(job, gpu)
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"torch.compile needs Triton for a cuda device.*leave out train-dvae.compile=true"):
        require_compilers(job, gpu)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs Triton and a C compiler \(no-such-compiler\) for a cuda device"):
        require_compilers(job, gpu)


class Large(TinyTask):
    """A task for which more than three samples do not fit."""

    def loss(self, batch, step):
        if self.model.training and len(batch["x"]) > 3:
            raise torch.OutOfMemoryError
        return super().loss(batch, step)


def test_out_of_memory_says_what_fits(tmp_path):
    with pytest.raises(ConfigError, match=r"5 samples at a time do not fit into memory, 2 do: --set train-dvae.micro-batch=2"):
        train(tmp_path, task=Large())
    train(tmp_path, task=Large(), micro_batch=2)


def test_out_of_memory_with_a_single_sample(tmp_path):
    class Huge(TinyTask):
        def loss(self, batch, step):
            raise torch.OutOfMemoryError

        def heldout_loss(self, batch):
            return super().loss(batch, 0)

    with pytest.raises(ConfigError, match="not even one sample fits into memory"):
        train(tmp_path, task=Huge())
