"""Objects of a remote store on this node's disk: bounded, verified, shared by all processes and containers that see them.

    objects/<sha256>          the content, complete and verified
    partial/<sha256>-<size>/  a download: a flock on the directory says that it is alive, the name how much room it takes
    lock                      held for an instant by whoever adds or removes objects; a bound of the bytes in them

Nothing here is known by process number, so containers can share the directory; a killed process holds no flock, and what it
left in `partial/` is removed by the next download. An object was hashed when it came, and its time of modification is a stamp
for that: it says "verified since this machine was booted, and not written to since". With another stamp it is hashed again
before it is used, and fetched again when it is wrong. (Bits that turn on the disk, under a file that nobody writes to, are not
noticed.) The time of access is set at every use, so the mount's options do not matter, and orders what goes first.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from physion.errors import ConfigError, DataError, TransientError
from physion.progress import byte_count, say
from physion.store.checksums import sha256_of

LARGEST_DEFAULT = 200 * 10**9
ATTEMPTS = 3  # downloads of an object before it counts as damaged in the store
SLACK = (
    0.05  # share of the limit that is freed when it is reached, so that not every small object takes a look at all the others
)


def default_limit(root: Path) -> int:
    """Half of what the disk could give to a cache at `root`, and no more than the whole study takes a few times over."""
    place = next(parent for parent in (root.absolute(), *root.absolute().parents) if parent.is_dir())
    ledger = root / "lock"
    used = int(text) if ledger.is_file() and (text := ledger.read_text(encoding="utf-8")).isdecimal() else 0
    return min(LARGEST_DEFAULT, (shutil.disk_usage(place).free + used) // 2)


class WrongContent(DataError):
    """What the store gives is not what has the wanted SHA-256."""


class ShardCache:
    """At most `limit` bytes of objects below `root`; the least recently used go first.

    The newest object of every thread is leased to it: it stays until the thread asks for another one or ends. So a caller has
    all the time it needs to open the file, and the limit holds wherever it has room for one object a thread; beyond that the
    cache grows, and says so. Whoever keeps a file open or mapped for longer keeps its data, but also its room on the disk.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._objects, self._partial = root / "objects", root / "partial"
        self._paths: dict[str, Path] = {}  # a hit takes microseconds, of which making a Path would be many
        self._thread = threading.local()
        self._looked = self._warned = False

    def get(self, sha256: str, size: int, download: Callable[[Path], bool]) -> Path:
        """A read-only file with this content; where there is none, one process calls `download(path)`, others wait for it.

        `download` tells whether it has checked the SHA-256 of what came.

        Raises WrongContent when downloads never give that content, TransientError when the disk is full, ConfigError when the
        directory cannot be written, and whatever `download` raises.
        """
        try:
            while not self._lease(sha256, size):
                with self._claim(f"{sha256}-{size}") as place:
                    if place is not None and not self._lease(sha256, size):
                        self._make_room(size)
                        self._download(sha256, size, download, place)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise TransientError(
                    f"cache {self.root}: no space left on the disk; free some, lower PHYSION_CACHE_LIMIT (it is "
                    f"{byte_count(self.limit)}) or point PHYSION_CACHE to another disk, and run the same command again"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                raise ConfigError(
                    f"cache {self.root}: {error.strerror}; give this user write access or point PHYSION_CACHE to another "
                    "directory"
                ) from error
            raise
        return self._path(sha256)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardCache, (self.root, self.limit)  # another process has leases of its own

    def _path(self, sha256: str) -> Path:
        if sha256 not in self._paths:
            self._paths[sha256] = self._objects / sha256
        return self._paths[sha256]

    def _lease(self, sha256: str, size: int) -> bool:
        """Lease an object to this thread, in place of its last one; False, with no lease, when it is not there intact."""
        held: _Lease | None = getattr(self._thread, "lease", None)
        if held is not None and held.sha256 == sha256 and os.fstat(held.file).st_nlink:
            return True
        self._thread.lease = held = None
        with suppress(FileNotFoundError):
            lease = _Lease(sha256, os.open(path := self._path(sha256), os.O_RDONLY))
            fcntl.flock(lease.file, fcntl.LOCK_SH)
            facts, stamp = os.fstat(lease.file), _stamp(sha256)
            if not facts.st_nlink or facts.st_size != size:  # evicted just now, or damaged
                return False
            if facts.st_mtime_ns != stamp and sha256_of(path) != sha256:
                return False
            with suppress(PermissionError):  # another user's file
                os.utime(lease.file, ns=(time.time_ns(), stamp))
            self._thread.lease = lease
            return True
        return False

    @contextmanager
    def _claim(self, name: str) -> Iterator[Path | None]:
        """A directory to download into, for one process at a time; None where another one removed it meanwhile."""
        place = self._partial / name
        self._partial.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # mkdir(exist_ok=True) would look again, and raise where it is gone by then
            place.mkdir()
        with _locked(place, fcntl.LOCK_EX) as mine:
            try:
                yield place if mine else None
            finally:
                if mine:
                    shutil.rmtree(place, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        """Take note of `size` more bytes, claimed already, and remove what has to go for them."""
        with self._alone():
            ledger = self.root / "lock"
            text = ledger.read_text(encoding="utf-8")
            used = int(text) + size if text.isdecimal() and self._looked else self.limit + 1
            if used > self.limit:
                used = self._evict()
            ledger.write_text(str(used), encoding="utf-8")
        self._looked = True
        if used > self.limit and not self._warned:
            self._warned = True
            say(
                f"cache {self.root}: an object of {byte_count(size)} does not fit beside those in use; it takes "
                f"{byte_count(used - self.limit)} more than PHYSION_CACHE_LIMIT={byte_count(self.limit)}: raise that, or data "
                "will be downloaded again and again"
            )

    def _evict(self) -> int:
        """Remove dead downloads and, where the limit is passed, some more objects than must go. Returns the bytes left."""
        for place in self._partial.iterdir():
            with _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB) as dead:
                if dead:
                    shutil.rmtree(place, ignore_errors=True)
        objects = [(facts.st_atime_ns, facts.st_size, path) for path in self._objects.iterdir() if (facts := path.stat())]
        used = sum(taken for _, taken, _ in objects)
        used += sum(int(place.name.rpartition("-")[2]) for place in self._partial.iterdir())
        goal = self.limit * (1 - SLACK) if used > self.limit else used
        for _, taken, path in sorted(objects):
            if used <= goal:
                break
            with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as unused:
                if unused:
                    path.unlink()
                    used -= taken
        return used

    def _download(self, sha256: str, size: int, download: Callable[[Path], bool], place: Path) -> None:
        for _ in range(ATTEMPTS):
            for left in place.iterdir():  # by a killed process, or by the attempt before
                left.unlink()
            path = place / "object"
            verified = download(path)
            if path.stat().st_size == size and (verified or sha256_of(path) == sha256):
                break
        else:
            raise WrongContent(f"the store is corrupt: what was downloaded {ATTEMPTS} times never has the SHA-256 {sha256}")
        path.chmod(0o444)
        os.utime(path, ns=(time.time_ns(), _stamp(sha256)))
        with self._alone():
            path.replace(self._path(sha256))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._objects.mkdir(exist_ok=True)
        lock = self.root / "lock"
        lock.touch()
        with _locked(lock, fcntl.LOCK_EX):
            yield


class _Lease:
    """A shared flock on an object, for as long as somebody refers to this."""

    def __init__(self, sha256: str, file: int) -> None:
        self.sha256, self.file = sha256, file

    def __del__(self) -> None:
        os.close(self.file)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[bool]:
    """Hold a flock on a file or directory; False when it is taken (where `how` does not wait) or is no longer at `path`."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(file, how)
        mine = _is_at(file, path)
    except BlockingIOError:
        mine = False
    try:
        yield mine
    finally:
        if mine:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it to a child process that was forked meanwhile
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@functools.cache
def _stamp(sha256: str) -> int:
    """A time of modification in nanoseconds: whole seconds, which every file system keeps, and years that are over."""
    return int(hashlib.sha256(f"{sha256} {_boot()}".encode()).hexdigest()[:7], 16) * 10**9


@functools.cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
