"""Objects of a remote store on this node's disk: bounded, verified, shared by all processes and containers that see them.

    objects/<sha256>          the content, complete and verified
    partial/<sha256>-<size>/  a download: a flock in it says that it is alive, the name how much room it takes
    lock                      held for an instant by whoever adds or removes objects; a bound of the bytes in them

Nothing here is known by process number, so containers can share the directory; a killed process holds no flock, and what it
left in `partial/` is removed by the next download. An object was hashed when it came and flushed to the disk, and its time of
modification is a stamp for that: it says "verified, and not written to since". With another stamp it is hashed again before it
is used, and fetched again when it is wrong. (Bits that turn on the disk, under a file that nobody writes to, are not noticed.)
Whoever can write here can forge a stamp, so the directory is its user's alone. The time of access is set at every use, so the
mount's options do not matter, and orders what goes first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from physion.errors import ConfigError, DataError, TransientError
from physion.progress import byte_count, say
from physion.store.checksums import flush, sha256_of
from physion.store.folders import locked, own_folder, real_folder, take
from physion.store.keys import SHA256, sha256_name

LARGEST_DEFAULT = 200 * 10**9
ATTEMPTS = 3  # downloads of an object before it counts as damaged in the store
LOCK = "lock"
SLACK = (
    0.05  # share of the limit that is freed when it is reached, so that not every small object takes a look at all the others
)


def default_limit(root: Path) -> int:
    """Half of what the disk could give to a cache at `root`, and no more than the whole study takes a few times over."""
    place = next(parent for parent in (root.absolute(), *root.absolute().parents) if parent.is_dir())
    return min(LARGEST_DEFAULT, (shutil.disk_usage(place).free + (_noted(root / "lock") or 0)) // 2)


def _noted(ledger: Path) -> int | None:
    """The bytes that a ledger notes; None where it notes none."""
    with suppress(OSError, ValueError):
        return int(ledger.read_bytes()[:20]) if ledger.is_file() else None
    return None


class WrongContent(DataError):
    """What the store gives is not what has the wanted SHA-256."""


class ShardCache:
    """At most `limit` bytes of objects below `root`, a folder of its own; the least recently used go first.

    The newest object of every thread is leased to it: it stays until the thread asks for another one or ends. So a caller has
    all the time it needs to open the file, and the limit holds wherever it has room for one object a thread; beyond that the
    cache grows, and says so. Whoever keeps a file open or mapped for longer keeps its data, but also its room on the disk.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._objects, self._partial = root / "objects", root / "partial"
        self._paths: dict[str, Path] = {}  # a hit takes microseconds, of which making a Path would be many
        self._thread = threading.local()
        self._own = self._looked = self._warned = False

    def get(self, sha256: str, size: int, download: Callable[[Path], bool]) -> Path:
        """A file with this content, never to be written to; one process calls `download(path)` for it, others wait.

        `download` tells whether it has checked the SHA-256 of what came.

        Raises WrongContent when downloads never give that content, TransientError when the disk is full, ConfigError when the
        directory cannot be written or is not ours, and whatever `download` raises.
        """
        try:
            if not self._own:
                own_folder(self.root, private=True)
                for folder in (self._objects, self._partial):
                    real_folder(folder, private=True)
                self._own = True
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
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
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
            self._paths[sha256] = self._objects / sha256_name(sha256)
        return self._paths[sha256]

    def _lease(self, sha256: str, size: int) -> bool:
        """Lease an object to this thread, in place of its last one; False, with no lease, when it is not there intact."""
        held: _Lease | None = getattr(self._thread, "lease", None)
        if held is not None and held.sha256 == sha256:
            facts = os.fstat(held.file)
            if facts.st_nlink and facts.st_size == size and facts.st_mtime_ns == _stamp(sha256):
                return True
        self._thread.lease = held = None
        with suppress(FileNotFoundError):
            lease = _Lease(sha256, os.open(path := self._path(sha256), os.O_RDONLY | os.O_NOFOLLOW))
            take(lease.file, fcntl.LOCK_SH, path)
            facts, stamp = os.fstat(lease.file), _stamp(sha256)
            if not facts.st_nlink or facts.st_size != size:  # evicted just now, or damaged
                return False
            if facts.st_mtime_ns != stamp and sha256_of(path) != sha256:
                return False
            os.utime(lease.file, ns=(time.time_ns(), stamp))
            self._thread.lease = lease
            return True
        return False

    @contextmanager
    def _claim(self, name: str) -> Iterator[Path | None]:
        """A directory to download into, for one process at a time; None where another one removed it meanwhile."""
        place = self._partial / name
        with suppress(FileNotFoundError):  # another one removed it just now
            (real_folder(place, private=True) / LOCK).touch(mode=0o600)
        with locked(place / LOCK) as mine:
            try:
                yield place if mine else None
            finally:
                if mine:
                    shutil.rmtree(place, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        """Take note of `size` more bytes, claimed already, and remove what has to go for them."""
        with self._alone():
            ledger = self.root / "lock"
            noted = _noted(ledger)
            used = noted + size if noted is not None and self._looked else self.limit + 1
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
        for place in self._downloads():
            with suppress(OSError):
                place.rmdir()  # of a process that was killed before it had locked it
            with locked(place / LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB) as dead:
                if dead:
                    shutil.rmtree(place, ignore_errors=True)
        objects = []
        for path in self._objects.iterdir():
            if SHA256.fullmatch(path.name):
                facts = path.lstat()
                objects.append((facts.st_atime_ns, facts.st_size, path))
        used = sum(taken for _, taken, _ in objects)
        used += sum(int(place.name.rpartition("-")[2]) for place in self._downloads())
        goal = self.limit * (1 - SLACK) if used > self.limit else used
        for _, taken, path in sorted(objects):
            if used <= goal:
                break
            with locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as unused:
                if unused:
                    path.unlink()
                    used -= taken
        return used

    def _downloads(self) -> list[Path]:
        return [place for place in self._partial.iterdir() if re.fullmatch(r"[0-9a-f]{64}-[0-9]+", place.name)]

    def _download(self, sha256: str, size: int, download: Callable[[Path], bool], place: Path) -> None:
        for _ in range(ATTEMPTS):
            path = place / "object"
            path.unlink(missing_ok=True)  # of a killed process, or of the attempt before
            verified = download(path)
            if path.stat().st_size == size and (verified or sha256_of(path) == sha256):
                break
        else:
            raise WrongContent(f"the store is corrupt: what was downloaded {ATTEMPTS} times never has the SHA-256 {sha256}")
        path.chmod(0o600)
        flush(path)  # a stamp must not outlive a power cut that the content did not
        os.utime(path, ns=(time.time_ns(), _stamp(sha256)))
        with self._alone():
            path.replace(self._path(sha256))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = self.root / "lock"
        lock.touch(mode=0o600)
        with locked(lock):
            yield


class _Lease:
    """A shared flock on an object, for as long as somebody refers to this."""

    def __init__(self, sha256: str, file: int) -> None:
        self.sha256, self.file = sha256, file

    def __del__(self) -> None:
        os.close(self.file)


def _stamp(sha256: str) -> int:
    """A time of modification in nanoseconds: whole seconds, which every file system keeps, and years that are over."""
    return int(sha256[:7], 16) * 10**9
