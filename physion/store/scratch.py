"""Directories for files on their way, which do not outlive the process that made them.

Each holds a lock file that its process keeps locked: the system lets go of it however the process ends, in whichever container
it ran. (A process number would say nothing to a container with a number space of its own.) On a disk without locks nobody can
tell whether a directory is in use: what dead processes left stays there.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from physion.store.folders import NoLocks, locked, mark_of, own_folder, take

LOCK = ".lock"
_held: dict[Path, IO[str]] = {}


def make_scratch(root: Path, *, private: bool = False) -> Path:
    """A fresh directory below `root`, a folder of our own; what processes that no longer run left there is removed.

    Raises OSError where it cannot be made, ConfigError when `root` is somebody else's (see `own_folder`).
    """
    own_folder(root, private=private)
    # One process or thread at a time: nobody takes a directory between its making and its locking for a dead one's.
    try:
        with locked(mark_of(root)):
            for path in [path for path in list(_held) if not path.exists()]:
                _held.pop(path).close()
            for entry in root.iterdir():
                if re.fullmatch(r"[0-9a-f]{32}", entry.name) and not _in_use(entry):
                    shutil.rmtree(entry, ignore_errors=True)  # which follows no symbolic link
            path = root / uuid.uuid4().hex
            path.mkdir()
            lock = (path / LOCK).open("w", encoding="utf-8")
            take(lock.fileno(), fcntl.LOCK_EX, path)
            _held[path] = lock
    except NoLocks:
        path = root / uuid.uuid4().hex
        path.mkdir()
    return path


@contextmanager
def scratch(root: Path, *, private: bool = False) -> Iterator[Path]:
    """A fresh directory below `root` that is gone afterwards."""
    path = make_scratch(root, private=private)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _in_use(path: Path) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):
        lock = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        try:
            return not take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        finally:
            os.close(lock)
    return False
