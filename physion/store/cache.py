"""Objects of a remote store on this node's disk: bounded, verified, shared by all processes and containers that see the folder.

    objects/<sha256>          the content, complete and verified
    partial/<sha256>-<size>/  a download: a flock in it shows that it is alive; its name says how much space it takes
    lock                      held briefly by whoever adds or removes objects; holds a bound on their total size

Nothing here refers to process numbers, so containers can share the directory. A killed process holds no flock, and the next
download removes what it left in `partial/`. An object is hashed on arrival and flushed to the disk. Its modification time is
then set to a stamp that means "verified, and not written to since". With any other stamp it is hashed again before use, and
fetched again if it is wrong. (Silent disk corruption of a file that nobody writes to goes unnoticed.) Anyone who can write here
can forge a stamp, so only the owner has access to the directory. The access time is set explicitly at every use, so mount
options do not matter; it decides what is evicted first.
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
SLACK = 0.05  # share of the limit freed when it is reached, so that not every small object triggers a scan of all the others


def default_limit(root: Path) -> int:
    """Half the disk space available to a cache at `root`, but no more than a few times what the whole study takes."""
    place = next(parent for parent in (root.absolute(), *root.absolute().parents) if parent.is_dir())
    return min(LARGEST_DEFAULT, (shutil.disk_usage(place).free + (_noted(root / "lock") or 0)) // 2)


def _noted(ledger: Path) -> int | None:
    """The number of bytes in a ledger; None if it has none."""
    with suppress(OSError, ValueError):
        return int(ledger.read_bytes()[:20]) if ledger.is_file() else None
    return None


class WrongContent(DataError):
    """The store's content does not have the expected SHA-256."""


class ShardCache:
    """At most `limit` bytes of objects below `root`, a dedicated folder; the least recently used go first.

    Each thread holds a lease on its newest object: the object stays until the thread asks for another one or ends. A caller
    thus has plenty of time to open the file, and the limit holds as long as it has room for one object per thread; beyond that
    the cache grows, with a warning. A caller that keeps a file open or mapped for longer keeps its data, but also its space on
    the disk.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._objects, self._partial = root / "objects", root / "partial"
        self._paths: dict[str, Path] = {}  # a hit takes microseconds, and making a Path would be a large part of that
        self._thread = threading.local()
        self._own = self._looked = self._warned = False

    def get(self, sha256: str, size: int, download: Callable[[Path], bool]) -> Path:
        """A file with this content; never write to it. One process calls `download(path)` for it, others wait.

        `download` returns whether it has checked the SHA-256 of what it received.

        Raises WrongContent if no download has that content, TransientError if the disk is full, ConfigError if the directory
        cannot be written or is not ours, and whatever `download` raises.
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
        return ShardCache, (self.root, self.limit)  # another process has its own leases

    def _path(self, sha256: str) -> Path:
        if sha256 not in self._paths:
            self._paths[sha256] = self._objects / sha256_name(sha256)
        return self._paths[sha256]

    def _lease(self, sha256: str, size: int) -> bool:
        """Lease an object to this thread, replacing its last lease; False, with no lease, if it is not there intact."""
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
            if not facts.st_nlink or facts.st_size != size:  # just evicted, or damaged
                return False
            if facts.st_mtime_ns != stamp and sha256_of(path) != sha256:
                return False
            os.utime(lease.file, ns=(time.time_ns(), stamp))
            self._thread.lease = lease
            return True
        return False

    @contextmanager
    def _claim(self, name: str) -> Iterator[Path | None]:
        """A directory to download into, for one process at a time; None if another one removed it meanwhile."""
        place = self._partial / name
        with suppress(FileNotFoundError):  # another process has just removed it
            (real_folder(place, private=True) / LOCK).touch(mode=0o600)
        with locked(place / LOCK) as mine:
            try:
                yield place if mine else None
            finally:
                if mine:
                    shutil.rmtree(place, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        """Account for `size` more bytes, already claimed, and evict what has to go for them."""
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
        """Remove dead downloads and, if the limit is exceeded, somewhat more objects than necessary. Returns the bytes left."""
        for place in self._downloads():
            with suppress(OSError):
                place.rmdir()  # from a process that was killed before it had locked it
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
            path.unlink(missing_ok=True)  # from a killed process, or from the previous attempt
            verified = download(path)
            if path.stat().st_size == size and (verified or sha256_of(path) == sha256):
                break
        else:
            raise WrongContent(f"the store is corrupt: none of {ATTEMPTS} downloads has the SHA-256 {sha256}")
        path.chmod(0o600)
        flush(path)  # a stamp must not survive a power cut that the content did not
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
    """A shared flock on an object, held as long as something refers to this."""

    def __init__(self, sha256: str, file: int) -> None:
        self.sha256, self.file = sha256, file

    def __del__(self) -> None:
        os.close(self.file)


def _stamp(sha256: str) -> int:
    """A modification time in nanoseconds: whole seconds, which every file system keeps, in years long past."""
    return int(sha256[:7], 16) * 10**9
