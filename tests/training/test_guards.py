"""What is stuck or does not fit ends the job, and says where."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch
from ranks import Ranks
from tiny_training import TinyTask, make_job, settings, steps_of, train

from physion.errors import ConfigError
from physion.training.engine import NonFiniteLoss, fit, require_compilers


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
        "error: train-dvae has been waiting for the batch of step 3 for 1 s and seems stuck; ending it. "
        "The same command resumes from the last checkpoint\n"
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


def with_a_data_worker(folder, step, ending):
    """Train with one; at a step, `ending` comes upon it, or upon the whole group of processes. Ends as the program does."""
    import signal

    import psutil

    from physion.errors import PhysionError
    from physion.job import Stop

    multiprocessing.current_process()._config["daemon"] = False  # which may have no children
    multiprocessing.set_start_method("fork", force=True)  # as on the command line
    os.setpgrp()
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda *_: setattr(stop, "signal", "SIGTERM"))

    def at_step(now):
        if now == step:
            (worker,) = psutil.Process().children()
            if ending == "worker":
                worker.kill()
            else:
                subprocess.run([sys.executable, "-c", f"import os; os.killpg({os.getpgrp()}, 15)"], start_new_session=True)
            time.sleep(2)

    try:
        train(folder, task=TinyTask(at_step), stop=stop, loader_workers=1)
    except PhysionError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def test_a_signal_for_the_whole_group_leaves_data_workers_to_the_training(tmp_path):
    ranks = Ranks(1, with_a_data_worker, str(tmp_path), 7, "group", log=tmp_path / "log")
    assert ranks.wait() == [143], ranks.said()
    assert steps_of(tmp_path)[-1] == 8
    again = Ranks(1, with_a_data_worker, str(tmp_path), -1, "", log=tmp_path / "log")
    assert again.wait() == [0], again.said()


def test_a_data_worker_that_is_killed_is_a_reason_to_try_again(tmp_path):
    ranks = Ranks(1, with_a_data_worker, str(tmp_path), 7, "worker", log=tmp_path / "log")
    assert ranks.wait() == [75], ranks.said()
    assert "train-dvae: a data worker was killed" in ranks.said()
    assert steps_of(tmp_path)[-1] == 5


class Exploding(TinyTask):
    """From step 6 on its gradients are infinite although its loss is not."""

    def loss(self, batch, step):
        bias = self.model.head.bias
        return super().loss(batch, step) + ((bias - bias.detach()).sum().sqrt() if self.model.training and step >= 6 else 0)


def test_gradients_that_are_not_finite_end_the_training_before_the_weights_are_saved(tmp_path):
    with pytest.raises(
        NonFiniteLoss, match=r"the norm of the gradients is (inf|nan) at step 6; last good checkpoint: step 6 in"
    ):
        train(tmp_path, task=Exploding(), checkpoint_every=1)
    assert steps_of(tmp_path)[-1] == 6


class Ballast(TinyTask):
    """A task whose samples take ten kilobytes."""

    def __init__(self):
        super().__init__()
        read = self.train.__class__.__getitem__
        with_more = {"__getitem__": lambda points, clips: read(points, clips) | {"more": torch.zeros(len(clips), 2500)}}
        self.train.__class__ = type("Heavy", (self.train.__class__,), with_more)


def train_with_little_shared_memory(folder, workers):
    """In a /dev/shm of our own."""
    libc = ctypes.CDLL(None, use_errno=True)
    private = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC: nothing of it is seen outside
    if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, private, None):
        os._exit(77)
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1400k"):
        os._exit(77)
    multiprocessing.current_process()._config["daemon"] = False  # which may have no children
    multiprocessing.set_start_method("fork", force=True)  # as on the command line
    try:
        train(folder, task=Ballast(), loader_workers=workers, stuck_after=20.0)
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)


@pytest.mark.parametrize(("workers", "code"), [(2, 2), (1, 0)])
def test_too_little_shared_memory_for_data_workers_is_said_at_once(tmp_path, workers, code):
    ranks = Ranks(1, train_with_little_shared_memory, str(tmp_path / "store"), workers, log=tmp_path / "log")
    (ended,) = ranks.wait()
    if ended == 77:
        pytest.skip("mounting a small file system needs root")
    said = (
        "train-dvae: 2 data workers hand over 10 batches of 0.06 MB in /dev/shm, which has 1.43 MB free for them: make it "
        "larger (docker run --shm-size 2g), or --set train-dvae.loader-workers=1\n"
    )
    assert (ended, ranks.said()) == (code, said if code else "")
    assert (tmp_path / "store").exists() == (not code)


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
