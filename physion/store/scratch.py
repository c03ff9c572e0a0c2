"""Directories for files on their way, which do not outlive the process that made them.

Each holds a lock file that its process keeps locked: the system lets go of it however the process ends, in whichever container
it ran. (A process number would say nothing to a container with a number space of its own.)
"""

from __future__ import annotations

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = ".lock"
_held: dict[Path, IO[str]] = {}


def make_scratch(root: Path) -> Path:
    """A fresh directory below `root`; what processes that no longer run left there is removed.

    Raises OSError where it cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    # One process or thread at a time: nobody takes a directory between its making and its locking for a dead one's.
    with root.with_name(root.name + LOCK).open("w", encoding="utf-8") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for path in [path for path in list(_held) if not path.exists()]:
            _held.pop(path).close()
        for entry in root.iterdir():
            if not _in_use(entry):
                shutil.rmtree(entry, ignore_errors=True)
        path = root / uuid.uuid4().hex
        path.mkdir()
        lock = (path / LOCK).open("w", encoding="utf-8")
        fcntl.flock(lock, fcntl.LOCK_EX)
        _held[path] = lock
    return path


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A fresh directory below `root` that is gone afterwards."""
    path = make_scratch(root)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _in_use(path: Path) -> bool:
    try:
        with (path / LOCK).open("r+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        pass
    return False
