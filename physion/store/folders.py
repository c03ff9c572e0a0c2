"""Folders that belong to this program, in which it removes what it no longer needs; and locks.

Such a folder has a marker beside it, `<name>.lock`, from the moment it holds anything. A folder without one, or behind a
symbolic link, is not ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from physion.errors import ConfigError

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}


class NoLocks(ConfigError):
    """The disk does not support locks."""


def real_folder(path: Path, *, private: bool = False) -> Path:
    """The folder itself, created if necessary; with `private`, nobody else can read it or write to it.

    Raises ConfigError if it is a symbolic link, or should be private but belongs to another user or is open to others; OSError
    if it cannot be created.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700 if private else 0o777, parents=True)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise ConfigError(
            f"{path} is a symbolic link or a file, not a folder that physion made: rename it, {_or_else(private)}"
        )
    if private and (facts.st_uid != os.geteuid() or facts.st_mode & 0o077):
        raise ConfigError(
            f"{path} belongs to user {facts.st_uid} and has mode {facts.st_mode & 0o7777:o}: anyone who can write there "
            f"could replace verified files. Make it yours alone (chmod 700), {_or_else(private)}"
        )
    return path


def own_folder(path: Path, *, private: bool = False) -> Path:
    """A `real_folder` with our marker. Also raises ConfigError if it holds anything without having one."""
    mark = mark_of(real_folder(path, private=private))
    if not mark.exists() and any(path.iterdir()) and not mark.exists():  # another process may have just marked and filled it
        raise ConfigError(
            f"{path} holds files and was not made by physion, which removes what it finds in its own folders: rename it, "
            f"{_or_else(private)}"
        )
    os.close(os.open(mark, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666))
    return path


def _or_else(private: bool) -> str:
    return "or point PHYSION_CACHE to another directory" if private else "or choose another --store"


def mark_of(path: Path) -> Path:
    """The marker of a folder of ours, which is also the file to lock before changing the folder's contents."""
    return path.with_name(f"{path.name}.lock")


@contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[bool]:
    """Hold a flock on a file; False if it is taken (and `how` does not wait) or is no longer at `path`.

    Raises NoLocks if the disk does not support locks, OSError if `path` is a symbolic link.
    """
    try:
        file = _open(path)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        mine = take(file, how, path) and _is_at(file, path)
        try:
            yield mine
        finally:
            if mine:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it to a child forked meanwhile
    finally:
        os.close(file)


def take(file: int, how: int, path: Path) -> bool:
    """flock an open file; False if it is taken and `how` does not wait. Raises NoLocks, naming `path`."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLocks(
                f"{path}: this disk does not support file locks (flock: {error.strerror}), without which processes would "
                "damage each other's files; choose a folder on another disk, or mount it with locks (Lustre: -o flock)"
            ) from error
        raise
    return True


def _open(path: Path) -> int:
    with suppress(PermissionError):
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)  # NFS requires write access for an exclusive lock
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False
