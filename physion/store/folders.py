"""Folders of this program's own, of which it removes what it no longer needs; and locks.

Such a folder has a mark beside it, `<name>.lock`, from the moment that it holds anything. Without one, or behind a symbolic
link, it is not ours.
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
    """This disk knows no locks."""


def real_folder(path: Path, *, private: bool = False) -> Path:
    """The folder itself, made unless it is there; with `private`, nobody else can write into it or read it.

    Raises ConfigError when it is a symbolic link, or is to be private and is another user's or open to others; OSError where it
    cannot be made.
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
            f"{path} belongs to user {facts.st_uid} and has mode {facts.st_mode & 0o7777:o}: who can write there could put "
            f"anything into the place of verified files. Make it yours alone (chmod 700), {_or_else(private)}"
        )
    return path


def own_folder(path: Path, *, private: bool = False) -> Path:
    """A `real_folder` with our mark. Raises ConfigError also when it holds things although it has none."""
    mark = mark_of(real_folder(path, private=private))
    if not mark.exists() and any(path.iterdir()) and not mark.exists():  # another process may have marked and filled it since
        raise ConfigError(
            f"{path} holds files and was not made by physion, which removes what it finds in folders of its own: rename it, "
            f"{_or_else(private)}"
        )
    os.close(os.open(mark, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666))
    return path


def _or_else(private: bool) -> str:
    return "or point PHYSION_CACHE to another directory" if private else "or choose another --store"


def mark_of(path: Path) -> Path:
    """The mark of a folder of our own, which is also the file to lock for whoever changes what is in it."""
    return path.with_name(f"{path.name}.lock")


@contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[bool]:
    """Hold a flock on a file; False when it is taken (where `how` does not wait) or is no longer at `path`.

    Raises NoLocks where the disk has none, OSError where `path` is a symbolic link.
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
                fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it to a child process that was forked meanwhile
    finally:
        os.close(file)


def take(file: int, how: int, path: Path) -> bool:
    """flock an open file; False when it is taken and `how` does not wait. Raises NoLocks, naming `path`."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLocks(
                f"{path}: this disk knows no file locks (flock: {error.strerror}), without which processes would spoil each "
                "other's files; choose a folder on another disk, or mount it with locks (Lustre: -o flock)"
            ) from error
        raise
    return True


def _open(path: Path) -> int:
    with suppress(PermissionError):
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)  # NFS wants to write where a lock is exclusive
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False
