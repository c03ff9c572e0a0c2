"""Directories for files in progress, which do not outlive the process that made them.

Each holds a lock file that its process keeps locked: the system releases it however the process ends, in whatever container it
ran. (A process number would mean nothing to a container with its own numbering.) On a disk without locks nobody can tell
whether a directory is in use, so what dead processes left stays there.
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
    """A new directory below `root`, a folder of ours; removes what processes that no longer run left there.

    Raises OSError if it cannot be made, ConfigError if `root` is not ours (see `own_folder`).
    """
    own_folder(root, private=private)
    # One process or thread at a time, so that nobody takes a directory that is made but not yet locked for a dead one.
    try:
        with locked(mark_of(root)):
            for path in [path for path in list(_held) if not path.exists()]:
                _held.pop(path).close()
            for entry in root.iterdir():
                if re.fullmatch(r"[0-9a-f]{32}", entry.name) and not _in_use(entry):
                    shutil.rmtree(entry, ignore_errors=True)  # follows no symbolic link
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
    """A new directory below `root`, removed afterwards."""
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
