"""Progress a person can follow: a live bar with ETA in a terminal, a plain line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL = 15.0  # seconds between lines in a log
ARGO_INTERVAL = 3.0  # as often as Argo looks

console = Console(stderr=True, highlight=False)


class Output:
    """Where progress goes beside standard error; set once by the command line."""

    quiet = False  # on all ranks but the first
    argo_file: Path | None = None  # where Argo Workflows looks for `done/total`


def say(line: str) -> None:
    """Print a line of the log, without disturbing a live bar."""
    if Output.quiet:
        return
    if console.is_terminal:
        console.print(line, markup=False)
    else:
        print(line, file=sys.stderr, flush=True)


def tell_argo(done: int, total: int) -> None:
    """Keep how far it is where Argo Workflows looks."""
    if Output.argo_file is None or Output.quiet:
        return
    with contextlib.suppress(OSError):  # a lost progress file is no reason to stop working
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

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note` says how it goes (a loss, a rate)."""
        self.done += count
        now = time.monotonic()
        if now - self._written >= ARGO_INTERVAL or self.done == self.total:
            self._written = now
            tell_argo(self.done, self.total)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, note=note or f"[dim]{self.unit}")
        elif now - self._printed >= PLAIN_INTERVAL and self.done < self.total and not Output.quiet:
            self._printed = now
            left = (now - self._started) / max(self.done - self._resumed_at, 1) * (self.total - self.done)
            print(
                f"{self.name}: {self.done}/{self.total} {self.unit} ({100 * self.done // self.total} %), "
                f"{duration(left)} left{', ' + note if note else ''}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def progress(name: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
    """A bar for `total` units of work of which `done` were finished by an earlier run."""
    if not console.is_terminal or Output.quiet:
        yield Bar(name, total, unit, done, None)
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as live:
        yield Bar(name, total, unit, done, live)


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def byte_count(count: float) -> str:
    """Bytes as people say them: `512 B`, `1.3 kB`, `16 GB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"
