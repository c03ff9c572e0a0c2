"""Progress that a person can follow: a live bar with ETA in a terminal, an occasional plain line in a log."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL = 15.0  # seconds between lines in a log
ARGO_INTERVAL = 3.0  # as often as Argo reads it
RELAY_INTERVAL = 0.5
RELAYED = "\x1e"  # starts a line of standard error that holds a Bar's state

console = Console(stderr=True, highlight=False)


class Output:
    """Where progress goes besides standard error; set once by the command line."""

    quiet = False  # on all ranks but the first
    argo_file: Path | None = None  # where Argo Workflows looks for `done/total`
    relayed = False  # in a process of `physion run`, which shows the progress of all of them


def say(line: str) -> None:
    """Print a log line without disturbing a live bar."""
    if Output.quiet:
        return
    if console.is_terminal and not Output.relayed:
        console.print(line, markup=False)
    else:
        print(line, file=sys.stderr, flush=True)


def tell_argo(done: int, total: int) -> None:
    """Record the progress where Argo Workflows reads it."""
    if Output.argo_file is None or Output.quiet:
        return
    with contextlib.suppress(OSError):  # a lost progress file is no reason to stop
        part = Output.argo_file.with_name(f"{Output.argo_file.name}.part")
        part.write_text(f"{done}/{total}", encoding="utf-8")
        part.replace(Output.argo_file)


class Bar:
    """Counts finished units of one stage."""

    def __init__(self, name: str, total: int, unit: str, done: int, live: Progress | None) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._live = live
        self._task = live.add_task(name, total=total, completed=done, note="") if live else None
        self._started = self._printed = self._written = time.monotonic()
        self._resumed_at = done
        tell_argo(done, total)
        self._relay("")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note` says how it is going (a loss, a rate)."""
        self.update(self.done + count, self.total, note)

    def update(self, done: int, total: int, note: str = "") -> None:
        """Set the number of units, and how many are done."""
        self.done, self.total = done, total
        now = time.monotonic()
        if now - self._written >= ARGO_INTERVAL or done == total:
            self._written = now
            tell_argo(done, total)
        if Output.relayed:
            if now - self._printed >= RELAY_INTERVAL or done == total:
                self._printed = now
                self._relay(note)
        elif self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, total=total, note=note or f"[dim]{self.unit}")
        elif now - self._printed >= PLAIN_INTERVAL and done < total and not Output.quiet:
            self._printed = now
            said = [f"{self.name}: {done}/{total} {self.unit} ({100 * done // total} %)"]
            if done > self._resumed_at:  # before that nothing tells how long it takes
                said.append(f"{duration((now - self._started) / (done - self._resumed_at) * (total - done))} left")
            print(", ".join([*said, note] if note else said), file=sys.stderr, flush=True)

    def remove(self) -> None:
        """Remove it from the display."""
        if self._live is not None and self._task is not None:
            self._live.remove_task(self._task)

    def _relay(self, note: str) -> None:
        if Output.relayed and not Output.quiet:
            state = {"name": self.name, "done": self.done, "total": self.total, "unit": self.unit, "note": note}
            os.write(sys.stderr.fileno(), f"{RELAYED}{json.dumps(state)}\n".encode())  # in one piece


@contextmanager
def progress(name: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
    """A bar for `total` units of work of which `done` were finished by an earlier run."""
    with _live() as live:
        yield Bar(name, total, unit, done, live)


class Display:
    """The progress of several stages running side by side, each in one or more processes, as a context."""

    def __init__(self) -> None:
        self._bars: dict[tuple[str, str], Bar] = {}
        self._states: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}

    def __enter__(self) -> Display:
        self._context = _live()
        self._live = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def heard(self, stage: str, process: int, line: str) -> None:
        """Show a line of standard error from one of a stage's processes."""
        if not line.startswith(RELAYED):
            say(line if line.startswith(f"{stage}: ") else f"{stage}: {line}")
            return
        state = json.loads(line.removeprefix(RELAYED))
        which = stage, state["name"]
        states = self._states.setdefault(which, {})
        states[process] = state["done"], state["total"]
        done, total = (sum(numbers) for numbers in zip(*states.values(), strict=True))
        if which not in self._bars:
            self._bars[which] = Bar(state["name"], total, state["unit"], done, self._live)
        self._bars[which].update(done, total, state["note"])

    def ended(self, stage: str) -> None:
        """Stop showing a stage's progress."""
        for which in [which for which in self._bars if which[0] == stage]:
            self._bars.pop(which).remove()


@contextmanager
def _live() -> Iterator[Progress | None]:
    """What draws bars in a terminal; None if there is no terminal."""
    if not console.is_terminal or Output.quiet or Output.relayed:
        yield None
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as live:
        yield live


def duration(seconds: float) -> str:
    """Seconds as people write them: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def byte_count(count: float) -> str:
    """Bytes as people write them: `512 B`, `1.3 kB`, `16 GB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"
