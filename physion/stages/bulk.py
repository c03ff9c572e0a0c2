"""Bulk stages work part by part: finished parts are never made again, and a stop loses at most the part in progress."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from physion.data.layout import Video, raise_problems
from physion.data.shards import INDEX, Shards, in_groups, index_bytes, index_item, shard_name, write_shard
from physion.errors import DataError, PartsMissing, PhysionError, TransientError
from physion.job import Job
from physion.machine import cores
from physion.progress import progress


@dataclass
class Result:
    """What one part produced: files (name in the artifact -> local file), entries, and problems that forbid storing it."""

    files: dict[str, Path] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """One part: its name, how many videos it has, and the arguments of its function."""

    part: str
    videos: int
    arguments: tuple[Any, ...]


_note: Path | None = None  # in a worker process: the file that says what it works on
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)


def working_on(video: str) -> None:
    """Record which video this process works on: if the process dies of it, the error names it."""
    if _note is not None:
        _note.write_text(video)


def part_name(number: int, made_from: Any) -> str:
    """Name of a part, which identifies what it is made from: a part made from something else gets another name."""
    canonical = json.dumps(made_from, sort_keys=True, separators=(",", ":"))
    return f"{number:05d}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def run_parts(
    job: Job, work: Sequence[Work], compute: Callable[..., Result], *, workers: int | None = 0
) -> list[dict[str, Any]]:
    """Make the missing parts of this process's share, in `workers` processes (0: in this one; None: one per core).

    Returns the entries of all parts in order. Problems of all parts are raised together as one DataError; parts without
    problems are kept. Raises PartsMissing if other processes have not finished theirs yet.
    """
    finished = job.output.part_names()
    mine = work[job.share]
    todo = [w for w in mine if w.part not in finished]
    problems: list[str] = []
    done = sum(w.videos for w in mine) - sum(w.videos for w in todo)
    with progress(job.instance, sum(w.videos for w in mine), "videos", done) as bar:
        for piece, result in _results(todo, compute, cores() if workers is None else workers, job):
            if result.problems:
                problems += result.problems
            else:
                job.output.add_part(piece.part, result.files, result.items, result.seconds)
            bar.advance(piece.videos)
    raise_problems(sorted(problems))
    parts = job.output.parts()
    if missing := [number for number, w in enumerate(work) if w.part not in parts]:
        raise PartsMissing(job.instance, missing, len(work))
    return [item for w in work for item in job.output.keep(w.part).items]


def publish_index(job: Job, items: Sequence[dict[str, Any]]) -> None:
    """Add `index.json` to the artifact."""
    path = job.output.scratch / INDEX
    path.write_bytes(index_bytes(items))
    job.output.add_part("index", {INDEX: path})


def map_shards(
    job: Job, source: Shards, per_shard: int, kind: str, compute: Callable[[list[Video]], Iterator[tuple[str, np.ndarray]]]
) -> dict[str, Any]:
    """One output shard for every `per_shard` videos of `source`; `<video>/<kind>` is what `compute` yields.

    Only what `compute` holds on to is in memory: a shard is written as it comes, and the source's shards for the next one are
    fetched meanwhile. Returns the headline metrics of a bulk stage.
    """
    groups = in_groups(source.videos, per_shard)
    mine = range(len(groups))[job.share]
    contents = {role: artifact.manifest.content for role, artifact in job.inputs.items()}
    parts = [part_name(number, [contents, [asdict(video) for video in group]]) for number, group in enumerate(groups)]

    def shard(number: int) -> Result:
        source.prefetch(video for coming in mine[mine.index(number) :][:2] for video in groups[coming])
        name = shard_name(parts[number])
        path = job.output.scratch / name
        write_shard(path, (f"{video.name}/{kind}" for video in groups[number]), arrays(groups[number]))
        return Result({name: path}, [index_item(video, name) for video in groups[number]])

    def arrays(videos: list[Video]) -> Iterator[tuple[str, np.ndarray]]:
        for video, array in compute(videos):
            job.stop.check()
            yield f"{video}/{kind}", array

    work = [Work(parts[number], len(group), (number,)) for number, group in enumerate(groups)]
    items = run_parts(job, work, shard)
    publish_index(job, items)
    return {"videos": len(items)}


def _results(work: Sequence[Work], compute: Callable[..., Result], workers: int, job: Job) -> Iterator[tuple[Work, Result]]:
    if workers == 0:
        for piece in work:
            job.stop.check()
            yield piece, _timed(compute, *piece.arguments)
        return
    if not work:
        return
    # spawn: forking a process that runs torch's threads can hang
    known = (os.getpid(), job.output.scratch)
    pool = ProcessPoolExecutor(min(workers, len(work)), get_context("spawn"), _prepare_worker, known)
    try:
        waiting: dict[Future[Result], Work] = {}
        queue = list(reversed(work))
        while queue or waiting:
            while queue and len(waiting) < 2 * workers:
                piece = queue.pop()
                with _interrupts_held():  # submitting starts workers
                    waiting[pool.submit(_timed, compute, *piece.arguments)] = piece
            finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                yield waiting.pop(future), future.result()
            job.stop.check()
    except BrokenProcessPool as error:
        job.stop.check()  # the workers may also have received the signal, one while still starting
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=True)  # only then is it known how each one ended
        raise _death(job, processes) from error
    finally:
        # Stopping must not wait for parts in progress. (Python 3.14 has pool.kill_workers().)
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _death(job: Job, processes: Sequence[BaseProcess]) -> PhysionError:
    """Why the pool broke: over a video that no process survives, or over something that may go better next time."""
    died: dict[str, int] = {}
    for process in processes:
        note = job.output.scratch / f"{process.pid}.note"
        if process.exitcode not in (None, -signal.SIGTERM) and note.exists():  # SIGTERM: stopped because another one died
            died[note.read_text()] = -process.exitcode
    if crashed := [f"{video}: the process that read it died of {signal.Signals(number).name}"
                   for video, number in sorted(died.items()) if number in _CRASHES]:  # fmt: skip
        return DataError("\n".join(crashed))
    what = f" over {' and '.join(sorted(died))}" if died else ""
    return TransientError(
        f"{job.instance}: a worker process died{what} (out of memory?); what is done is saved. Run the same command again, "
        f"with fewer workers: --set {job.instance.split('-')[0]}.workers=1"
    )


def _timed(compute: Callable[..., Result], *arguments: Any) -> Result:
    started = time.monotonic()
    result = compute(*arguments)
    result.seconds = round(time.monotonic() - started, 3)
    return result


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C; a process started inside inherits that permanently, so it ignores Ctrl-C from its first instant."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(parent: int, notes: Path) -> None:
    """Ends when the parent is killed. The parent decides about Ctrl-C: see `_interrupts_held`."""
    global _note
    _note = notes / f"{os.getpid()}.note"
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
