"""What runs beside what, in how many processes; and how processes of a run end, and end it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from physion.config.load import load_config
from physion.errors import DataError, Interrupted, PhysionError, Preempted, TransientError
from physion.job import Stop
from physion.machine import Machine
from physion.pipeline import schedule
from physion.pipeline.graph import build_graph
from physion.pipeline.schedule import Schedule
from physion.store.artifacts import Manifest
from physion.store.local import LocalStore

GB = 1e9


class Started(schedule.StageProcess):
    """A process that is noted, not started, and ends when it is told to."""

    def __init__(self, arguments, environment, threads):
        self.arguments, self.environment, self.threads = arguments, environment, threads
        self._code, self._error, self.signals = None, [], []

    signs, code = [], property(lambda self: self._code)

    def listen(self, heard):
        pass

    def signal(self, number):
        self.signals.append(number)

    def close(self):
        pass


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """A study on a machine, stage by stage: what runs at the same time, until it is told what has ended."""
    monkeypatch.setattr(schedule, "StageProcess", Started)
    monkeypatch.setattr(schedule, "LOOK_EVERY", 0)
    monkeypatch.setattr(
        schedule,
        "read_manifest",
        lambda store, stage, fingerprint: Manifest(
            stage=stage, instance=stage, fingerprint=fingerprint, config={}, inputs={}, files=[], metrics={"videos": 96},
            code="", created="2026-01-01T00:00:00+00:00", seconds=0,
        ),
    )  # fmt: skip
    monkeypatch.setattr(schedule, "standing_or_erased", lambda node, graph, store: None)

    def begin(machine, *overrides, preset="tiny"):
        config = load_config(preset, overrides)
        study = Schedule(build_graph(config), LocalStore(tmp_path), Stop(), machine, ["-p", preset])
        study._display = schedule.Display().__enter__()
        study._start()
        return study

    return begin


def now(study):
    return {running.node.name: running for running in study._running}


def finish(study, *names, code=0):
    """These end; what can start does."""
    for name in names:
        for process in now(study)[name].processes:
            process._code = code
    study._listen()
    study._collect()
    study._start()


def through(study):
    """Everything that ran at the same time, until the study is done."""
    while study._running:
        yield {name: running.claim for name, running in now(study).items()}
        finish(study, next(iter(now(study))))


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("gpus", [(), ("0",), ("0", "1", "2")])
@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_nothing_takes_more_than_there_is_and_everything_runs(plan, cores, gpus, preset):
    machine = Machine(cores, 64 * GB, gpus)
    study = plan(machine, preset=preset)
    for together in through(study):
        assert sum(claim.gpus for claim in together.values()) <= len(gpus)
        assert sum(claim.cores for claim in together.values()) <= cores
        assert sum(claim.memory for claim in together.values()) <= machine.memory or len(together) == 1
    assert set(study._finished) == set(study._graph)
    assert sorted(study._gpus) == list(gpus)


def test_memory_keeps_stages_apart_that_cores_would_let_run(plan):
    sides = {memory: max(map(len, through(plan(Machine(8, memory))))) for memory in (64 * GB, 0.1 * GB)}
    assert sides[64 * GB] >= 6
    assert sides[0.1 * GB] == 1


def test_videos_of_other_subsets_are_made_while_the_dvae_trains(plan):
    study = plan(Machine(4, 64 * GB))
    assert [running.claim.cores for running in study._running] == [2, 1, 1]  # of the three subsets
    finish(study, "simulate-training")
    finish(study, "frames-training")
    assert set(now(study)) == {"simulate-readout", "simulate-test", "train-dvae"}
    dvae = now(study)["train-dvae"]
    assert [p.environment["RANK"] for p in dvae.processes] == ["0", "1"]
    assert len({p.environment["MASTER_PORT"] for p in dvae.processes}) == 1


def test_readouts_train_together(plan):
    largest = max(through(plan(Machine(9, 64 * GB))), key=lambda together: sum("readout-" in name for name in together))
    assert sum(name.startswith("train-readout-") for name in largest) >= 6


def test_a_rank_a_gpu_and_a_share_a_gpu(plan):
    study = plan(Machine(32, 200 * GB, ("3", "7")), "train-dvae.ranks=null")
    seen = {}
    while study._running:
        seen |= now(study)
        finish(study, *now(study))
    assert [(p.environment["LOCAL_RANK"], "CUDA_VISIBLE_DEVICES" in p.environment) for p in seen["train-dvae"].processes] == [
        ("0", False), ("1", False),
    ]  # fmt: skip
    shares = [(p.arguments[-2:], p.environment) for p in seen["tokenize"].processes]
    assert shares == [(["--share", f"{n}/2"], {"CUDA_VISIBLE_DEVICES": gpu}) for n, gpu in enumerate(("3", "7"))]


def test_shares_are_no_more_than_parts(plan):
    study = plan(Machine(16, 64 * GB))
    seen = {}
    while study._running:
        seen |= {name: running.claim for name, running in now(study).items()}
        finish(study, *now(study))
    assert seen["tokenize"].processes == 3  # 96 videos, 32 a shard
    assert seen["tokenize"].threads == 1


def test_the_number_of_threads_does_not_depend_on_what_else_runs(plan):
    def threads(order):
        study = plan(Machine(6, 64 * GB), "train-steve.threads=null", "train-slotformer.threads=null")
        seen = {}
        while study._running:
            seen |= {name: running.claim.threads for name, running in now(study).items()}
            finish(study, order(now(study)))
        return seen

    assert threads(min) == threads(max) == threads(lambda names: list(names)[-1])


@pytest.mark.parametrize(
    ("ends", "kind", "said"),
    [
        ([(137, ""), (75, "rank 0 of 2 has lost the others")], TransientError, "process 0 of train-dvae was killed by SIGKILL"),
        ([(75, "rank 0 of 2 has lost the others"), (3, "the loss is nan")], DataError, "the loss is nan"),
        ([(3, ""), (3, "no video is held out")], DataError, "no video is held out"),
        ([(143, "stopped by SIGTERM; it is saved"), (143, "")], Preempted, "stopped by SIGTERM; it is saved"),
        ([(1, ""), (75, "lost the others")], PhysionError, "process 0 of train-dvae ended with exit code 1; what it said"),
    ],
)
def test_the_first_to_fail_says_why(plan, ends, kind, said):
    study = plan(Machine(2, 64 * GB))
    finish(study, "simulate-training", "simulate-readout")
    while "train-dvae" not in now(study):
        finish(study, next(iter(now(study))))
    running = now(study)["train-dvae"]
    first, second = running.processes
    (first._code, text), other = ends
    first._error = [text] if text else []
    study._listen()
    study._collect()
    assert (second.signals, study._failed) == ([signal.SIGTERM], None)  # the other is asked to stop, and waited for
    second._code, second._error = other[0], [other[1]] if other[1] else []
    study._listen()
    study._collect()
    assert type(study._failed) is kind
    assert str(study._failed).startswith(said)


def test_what_else_runs_is_stopped_when_one_fails(plan):
    study = plan(Machine(4, 64 * GB))
    others = [process for name, running in now(study).items() if name != "simulate-test" for process in running.processes]
    finish(study, "simulate-test", code=3)
    study._stop_all_if_asked()
    study._stop_all_if_asked()
    assert [process.signals for process in others] == [[signal.SIGTERM]] * len(others)
    before = len(study._running)
    study._start()
    assert len(study._running) == before


# Real processes.


@pytest.fixture
def start(preset, tmp_path):
    """`physion run` on two ranks, long enough to be disturbed."""
    started = []

    def command(*more):
        steps = ("train-dvae.optim.steps=600", "train-dvae.checkpoint-every=10", "train-dvae.threads=1")
        sets = [word for each in (*steps, *more) for word in ("--set", each)]
        line = [sys.executable, "-m", "physion.cli", "run", "-p", preset, "-s", str(tmp_path / "store"), "--ranks", "2", *sets]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield command
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def ranks_of(process, store):
    """The two ranks of the dVAE's training, once it has a checkpoint and nothing else runs."""
    while True:
        assert process.poll() is None, process.stderr.read()
        servers = [child for child in psutil.Process(process.pid).children() if "forkserver" in " ".join(child.cmdline())]
        ranks = [child for server in servers for child in server.children()]
        if len(ranks) == 2 and list(store.glob("artifacts/train-dvae/*/checkpoints/*")):
            return ranks
        time.sleep(0.02)


def gone(processes, seconds=15):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


@pytest.mark.parametrize("victim", [0, -1])
def test_a_rank_that_is_killed_ends_the_run_with_75_and_no_process_stays(start, tmp_path, victim):
    process = start()
    ranks = ranks_of(process, tmp_path / "store")
    everyone = psutil.Process(process.pid).children(recursive=True)
    ranks[victim].kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert err.splitlines()[-1].startswith("error: process ")
    assert "train-dvae was killed by SIGKILL (out of memory?); the same command resumes" in err.splitlines()[-1]
    assert gone(everyone)


def test_a_run_that_is_killed_leaves_no_process_behind(start, tmp_path):
    process = start()
    ranks_of(process, tmp_path / "store")
    everyone = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert gone(everyone)


@pytest.mark.parametrize(("number", "code", "error"), [(signal.SIGINT, 130, Interrupted), (signal.SIGTERM, 143, Preempted)])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_to_the_run_or_its_group_saves_and_ends_with_one_line(start, tmp_path, number, code, error, send):
    process = start()
    ranks_of(process, tmp_path / "store")
    send(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert err.count("error: ") == 1
    assert "progress is saved, and the same command resumes from there" in err.splitlines()[-1]
    again = start()
    while "resumes at step" not in (line := again.stderr.readline()):
        assert line, "it began from nothing"
