"""Runs a study on this machine: independent instances side by side, within its cores, memory and GPUs."""

from __future__ import annotations

import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from types import TracebackType

from physion.errors import PhysionError, Preempted, TransientError, of_exit_code
from physion.job import Stop
from physion.machine import Machine
from physion.pipeline.graph import Node
from physion.pipeline.processes import StageProcess
from physion.pipeline.runner import Done, standing_or_erased
from physion.progress import Display, say
from physion.stages import Kind
from physion.store.artifacts import read_manifest
from physion.store.protocol import Store

PROCESS_MEMORY = 0.5e9  # bytes of a process, on top of what its stage declares
LOOK_EVERY = 0.2  # seconds between checks whether to stop
PATIENCE = 30.0  # seconds that the other ranks of a training get to notice that one has failed


@dataclass(frozen=True)
class Claim:
    """The resources that an instance uses while it runs, in how many processes, and with which options set.

    threads: torch's, in each process. They depend only on configuration and machine, not on what else is running, because they
    may change the last bits of the results.
    """

    processes: int
    cores: int
    memory: float
    gpus: int = 0
    threads: int = 1
    knobs: tuple[str, ...] = ()


@dataclass
class Running:
    """A running instance."""

    node: Node
    claim: Claim
    gpus: list[str]
    processes: list[StageProcess]
    meeting: socket.socket | None
    started: float = field(default_factory=time.monotonic)
    ended: list[StageProcess] = field(default_factory=list)
    failed_at: float | None = None
    told_to_stop: bool = False
    given_up: list[StageProcess] = field(default_factory=list)

    @property
    def left(self) -> list[StageProcess]:
        """The processes that have not ended."""
        return [process for process in self.processes if process not in self.ended]

    def stop(self) -> None:
        """Ask its processes, once, to save and end."""
        for process in () if self.told_to_stop else self.left:
            process.signal(signal.SIGTERM)
        self.told_to_stop = True

    def give_up(self) -> None:
        """Kill its remaining processes."""
        self.given_up += self.left
        for process in self.left:
            process.signal(signal.SIGKILL)


class Schedule:
    """A running study, as a context: no process outlives it.

    command: the options of `physion stage` that all instances share, such as preset and store; before: those of `physion`.
    starting and done are called with what starts and what is finished.

    Raises whatever PhysionError an instance ends with; the others that were running have then been stopped, as if by SIGTERM.
    """

    def __init__(
        self,
        graph: Mapping[str, Node],
        store: Store,
        stop: Stop,
        machine: Machine,
        command: Sequence[str],
        *,
        before: Sequence[str] = (),
        starting: Callable[[Node, Claim], None] = lambda node, claim: None,
        done: Callable[[Done], None] = lambda done: None,
    ) -> None:
        self._graph, self._store, self._stop, self._machine = graph, store, stop, machine
        self._command, self._before, self._starting, self._done = list(command), list(before), starting, done
        self._waiting = _most_urgent_first(graph)
        self._checked: set[str] = set()  # whether they exist
        self._running: list[Running] = []
        self._finished: dict[str, Done] = {}
        self._gpus = list(machine.gpus)
        self._failed: PhysionError | None = None

    def __enter__(self) -> Schedule:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for running in self._running:
            for process in running.processes:
                process.close()

    def run(self) -> list[Done]:
        """Make every artifact of the graph that does not exist yet. Returns them in the order of the graph."""
        with Display() as self._display:
            self._start()
            while self._running:
                self._listen()
                try:
                    self._collect()
                    self._start()
                except PhysionError as error:
                    self._failed = self._failed or error
                self._stop_all_if_asked()
        if self._failed is None or isinstance(self._failed, Preempted):
            self._stop.check()  # the reason for the interruption
        if self._failed is not None:
            raise self._failed
        return [self._finished[name] for name in self._graph]

    # ------------------------------------------------------------------------------------------ what can start
    def _start(self) -> None:
        """Start what can start, the most urgent first; what does not fit waits, without holding up smaller ones."""
        self._find_what_is_there()
        for node in list(self._waiting):
            if self._failed or self._stop.signal:
                return
            ready = [other for other in self._waiting if self._is_ready(other)]
            if node in ready and (claim := self._claim(node, ready)):
                self._waiting.remove(node)
                self._launch(node, claim)

    def _find_what_is_there(self) -> None:
        while True:
            new = [node for node in self._waiting if self._is_ready(node) and node.name not in self._checked]
            if not new:
                return
            for node in new:
                self._stop.check()
                self._checked.add(node.name)
                if manifest := standing_or_erased(node, self._graph, self._store):
                    self._waiting.remove(node)
                    self._end(Done(node, manifest, cached=True))

    def _is_ready(self, node: Node) -> bool:
        return all(source in self._finished for source in node.inputs.values())

    def _claim(self, node: Node, ready: Sequence[Node]) -> Claim | None:
        """What an instance is to use; None if that is not free. The first to run always gets what it needs."""
        free = Machine(
            self._machine.cores - sum(running.claim.cores for running in self._running),
            self._machine.memory - sum(running.claim.memory for running in self._running),
            tuple(self._gpus),
        )
        most = 1
        if _has_parts(node):  # instances with parts divide what is free among themselves
            most = math.ceil((len(free.gpus) if self._on_gpu(node) else free.cores) / sum(map(_has_parts, ready)))
        for count in range(most, 0, -1):
            claim = self._claim_of(node, count)
            fits = claim.cores <= free.cores and claim.memory <= free.memory and claim.gpus <= len(free.gpus)
            if fits or (count == 1 and not self._running):
                return claim
        return None

    def _claim_of(self, node: Node, count: int) -> Claim:
        """What an instance uses. count: how many processes may divide it, if it has parts."""
        stage, section, machine = node.stage, node.section, self._machine
        knobs: tuple[str, ...] = ()
        processes, workers, threads = 1, 1, 1
        if stage.kind is Kind.TRAINING:
            processes = section.ranks or (min(len(machine.gpus), section.optim.batch_size) if self._on_gpu(node) else 1)
            threads = section.threads or max(1, machine.cores // processes)
        elif _has_workers(node):
            workers = min(count, section.workers or count)
            knobs = (f"{stage.name}.workers={workers}",)
        elif stage.kind is Kind.PARTS:
            processes = min(count, self._parts(node))
        elif stage.gpu:
            threads = getattr(section, "threads", None) or machine.cores
        if self._on_gpu(node):
            processes = min(processes, len(machine.gpus))
            share = machine.cores // len(machine.gpus)
            # Processes that feed a GPU mostly wait for it.
            cores, threads = processes * max(1, share // 2), max(1, share)
        else:
            cores = max(processes * threads, workers)
        return Claim(
            processes,
            min(cores, machine.cores),
            max(processes, workers) * PROCESS_MEMORY + (0 if self._on_gpu(node) else node.cost.memory),
            processes if self._on_gpu(node) else 0,
            threads,
            knobs,
        )

    def _on_gpu(self, node: Node) -> bool:
        return node.stage.gpu and bool(self._machine.gpus)

    def _parts(self, node: Node) -> int:
        """Number of parts of an instance, as far as known: more processes than that would have nothing to do."""
        videos = [self._finished[source].manifest.metrics.get("videos") for source in node.inputs.values()]
        known = [count for count in videos if isinstance(count, int)]
        size = getattr(node.section, "videos_per_shard", None)
        return max(1, math.ceil(max(known) / size)) if known and size else 1

    # ---------------------------------------------------------------------------------------------- processes
    def _launch(self, node: Node, claim: Claim) -> None:
        self._starting(node, claim)
        gpus, self._gpus = self._gpus[: claim.gpus], self._gpus[claim.gpus :]
        knobs = [word for knob in claim.knobs for word in ("--set", knob)]
        arguments = [*self._before, "stage", *node.options.split(), *self._command, *knobs]
        meeting = _reserved_port() if node.stage.kind is Kind.TRAINING and claim.processes > 1 else None
        running = Running(node, claim, gpus, [], meeting)
        self._running.append(running)
        for number in range(claim.processes):
            share, environment = [], {"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {}
            if meeting is not None:
                environment = {
                    "RANK": str(number),
                    "WORLD_SIZE": str(claim.processes),
                    "LOCAL_RANK": str(self._machine.gpus.index(gpus[number]) if gpus else number),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(meeting.getsockname()[1]),
                    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
                }
            elif claim.processes > 1:
                share = ["--share", f"{number}/{claim.processes}"]
            running.processes.append(StageProcess([*arguments, *share], environment, claim.threads))

    def _listen(self) -> None:
        """Wait for anything to happen, and show what the processes say."""
        left = [(running, process) for running in self._running for process in running.left]
        wait([sign for _, process in left for sign in process.signs], LOOK_EVERY)
        for running, process in left:
            code = process.code  # read before its last words
            process.listen(partial(self._display.heard, running.node.name, running.processes.index(process)))
            if code is not None:
                running.ended.append(process)
                if code:
                    running.failed_at = running.failed_at or time.monotonic()

    def _collect(self) -> None:
        """Handle processes that have ended, successfully or not."""
        for running in list(self._running):
            if running.failed_at is not None:
                running.stop()
                if time.monotonic() - running.failed_at > PATIENCE:
                    running.give_up()
            if running.left:
                continue
            self._running.remove(running)
            self._gpus += running.gpus
            self._display.ended(running.node.name)
            for process in running.processes:
                process.close()
            if running.meeting is not None:
                running.meeting.close()
            if running.failed_at is not None:
                self._failed = self._failed or _verdict(running)
                continue
            manifest = read_manifest(self._store, running.node.stage.name, running.node.fingerprint)
            if manifest is None:
                raise TransientError(f"{running.node.name}: what it made is gone from {self._store.uri}; run it again")
            self._end(Done(running.node, manifest, cached=False, seconds=time.monotonic() - running.started))

    def _end(self, done: Done) -> None:
        self._finished[done.node.name] = done
        self._done(done)

    def _stop_all_if_asked(self) -> None:
        asked = [running for running in self._running if not running.told_to_stop] if self._failed or self._stop.signal else []
        if asked:
            say(f"stopping {', '.join(running.node.name for running in asked)}")
        for running in asked:
            running.stop()


def _has_parts(node: Node) -> bool:
    return node.stage.kind is Kind.PARTS


def _has_workers(node: Node) -> bool:
    return _has_parts(node) and hasattr(node.section, "workers")


def _most_urgent_first(graph: Mapping[str, Node]) -> list[Node]:
    """The instances, ordered by the length of the chain that waits for them."""
    height = dict.fromkeys(graph, 0)
    for name in reversed(list(graph)):
        for source in graph[name].inputs.values():
            height[source] = max(height[source], height[name] + 1)
    return sorted(graph.values(), key=lambda node: -height[node.name])


def _reserved_port() -> socket.socket:
    """A socket that reserves a free port, on which the ranks' meeting place can still listen."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def _verdict(running: Running) -> PhysionError:
    """The error of an instance: that of its first process to fail, unless that failed only because it lost another."""
    failed = [process for process in running.ended if process.code and process not in running.given_up]
    late = (TransientError.exit_code, Preempted.exit_code)
    first = min(failed, key=lambda process: (process.code in late, not process.error))
    code = first.code or 0
    if first.error:
        return of_exit_code(code, first.error)
    name, number = running.node.name, running.processes.index(first)
    what = name if running.claim.processes == 1 else f"process {number} of {name}"
    if code == 128 + signal.SIGTERM:
        return Preempted(f"{what} was stopped by SIGTERM before it began")
    if code > 128:
        with suppress(ValueError):
            by = signal.Signals(code - 128).name
            return TransientError(f"{what} was killed by {by} (out of memory?); the same command resumes from what is saved")
    return of_exit_code(code, f"{what} ended with exit code {code}; what it said is above")
