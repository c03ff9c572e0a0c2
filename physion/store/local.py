"""A store in a directory: `file:///path`. Every object appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from physion.errors import ConfigError, DataError
from physion.store.checksums import flush, sha256_of
from physion.store.disk_errors import clear_errors, explained
from physion.store.folders import NoLocks, locked, mark_of, own_folder
from physion.store.keys import checked_key, is_key
from physion.store.protocol import MOST_READ
from physion.store.scratch import make_scratch, scratch

if TYPE_CHECKING:
    from physion.store.protocol import Upload

STAGING = ".staging"
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
ATTEMPTS = 100  # to put a file into a folder that others keep removing


class LocalStore:
    """Objects are files below a root directory.

    An object is written beside its final place (in `.staging/`), flushed to disk and renamed, so neither a kill nor a power cut
    leaves half an object under its name. The root may be a symbolic link, but nothing is written or deleted through one below
    it. Listings skip what is not a key of this program, and what NFS leaves of files that were removed while open (`.nfs...`).
    """

    cache = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()

    def scratch(self) -> Path:
        """A new directory on the store's own file system, so that `upload` is a rename."""
        with clear_errors(f"store {self.uri}: cannot make a scratch directory"):
            return make_scratch(self.root / STAGING)

    def size(self, key: str) -> int | None:
        """Size of an object in bytes; None if it does not exist."""
        try:
            return self._path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explained(error, f"store {self.uri}: cannot look at {key}") from error

    def digest(self, key: str) -> str | None:
        """SHA-256 of an object's bytes; None if it does not exist."""
        try:
            return sha256_of(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explained(error, f"store {self.uri}: cannot read {key}") from error

    def read(self, key: str) -> bytes | None:
        """The bytes of a small object; None if it does not exist."""
        try:
            with self._path(key).open("rb") as file:
                data = file.read(MOST_READ + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explained(error, f"store {self.uri}: cannot read {key}") from error
        if len(data) > MOST_READ:
            raise DataError(f"{self.uri}/{key} is far too large for what it should be")
        return data

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on, fewer if it ends before. Raises DataError if there is no such object."""
        try:
            with self._path(key).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError as error:
            raise DataError(f"{self.uri}/{key} is missing") from error
        except OSError as error:
            raise explained(error, f"store {self.uri}: cannot read {key}") from error

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write a small object; with `if_absent`, only if there is none yet. Returns whether it wrote."""
        target = self._own_path(key)
        with clear_errors(f"store {self.uri}: cannot write {key}"), scratch(self.root / STAGING) as staging:
            staged = staging / "object"
            staged.write_bytes(data)
            flush(staged)
            return _put(staged, target, self._link if if_absent else _replace)

    def upload(self, key: str, path: Path, *, sha256: str | None = None) -> bool:
        """Move the file at `path` into the store unless the object already exists. Returns whether it did."""
        target = self._own_path(key)
        with clear_errors(f"store {self.uri}: cannot write {key}"):
            self.root.mkdir(parents=True, exist_ok=True)
            if path.stat().st_dev != self.root.stat().st_dev:
                with scratch(self.root / STAGING) as staging:
                    return self.upload(key, Path(shutil.move(path, staging / "object")))
            flush(path)
            made = _put(path, target, self._link)
            path.unlink(missing_ok=True)
        return made

    def fetch(self, key: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """A local file that holds the object: here, the object itself. Never write to it.

        Raises FileNotFoundError if there is none, DataError if it does not match `size` and `sha256`, what `explained` makes of
        it if it cannot be read.
        """
        path = self._path(key)
        try:
            found = path.stat().st_size
            differs = (size is not None and found != size) or (sha256 is not None and sha256_of(path) != sha256)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explained(error, f"store {self.uri}: cannot read {key}") from error
        if differs:
            raise DataError(f"{self.uri}/{key} is corrupt (its SHA-256 is not the manifest's)")
        return path

    def list(self, prefix: str) -> list[str]:
        """Keys below a prefix (a folder), sorted."""
        top = self._path(prefix)

        def failed(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):  # it never existed, or a delete removed it
                raise error

        with clear_errors(f"store {self.uri}: cannot list {prefix}"):
            found = (Path(folder, name) for folder, _, names in os.walk(top, onerror=failed) for name in names)
            keys = sorted(path.relative_to(self.root).as_posix() for path in found if not path.name.startswith(".nfs"))
            return [key for key in keys if is_key(key)]

    def age(self, key: str) -> float | None:
        """Seconds since an object was written; None if it does not exist."""
        try:
            return time.time() - self._path(key).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def delete(self, key: str) -> None:
        """Remove an object, if it exists, and the folders left empty."""
        path = self._own_path(key)
        with clear_errors(f"store {self.uri}: cannot delete {key}"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another object is there
            for folder in itertools.takewhile(lambda folder: folder != self.root, path.parents):
                folder.rmdir()

    def unfinished_uploads(self) -> Sequence[Upload]:
        """None: files in progress are in `.staging/`; making the next scratch directory removes those of dead processes."""
        return ()

    def abort(self, upload: Upload) -> None:
        """Does nothing: there are no unfinished uploads."""

    def create(self) -> None:
        """Create the folder, unless it exists."""
        with clear_errors(f"store {self.uri}: cannot make the folder"):
            self.root.mkdir(parents=True, exist_ok=True)

    def lacks(self) -> Sequence[str]:
        """What the disk does not support: `hard links`, `file locks`."""
        missing = []
        with clear_errors(f"store {self.uri}: cannot try the disk"), scratch(self.root / STAGING) as folder:
            (folder / "one").touch()
            try:
                os.link(folder / "one", folder / "two")
            except OSError as error:
                missing += ["hard links"] if error.errno in NO_LINKS else []
            try:
                with locked(folder / "one"):
                    pass
            except NoLocks:
                missing.append("file locks")
        return missing

    def clock_skew(self) -> float | None:
        """None: there is only one clock."""
        return None

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _own_path(self, key: str) -> Path:
        """A path that may be written to or deleted."""
        path = self._path(key)
        for folder in itertools.takewhile(lambda folder: folder != self.root, path.parents):
            if folder.is_symlink():
                raise ConfigError(f"{folder} is a symbolic link: a store writes and deletes in folders of its own only")
        return path

    def _link(self, path: Path, target: Path) -> bool:
        """A file system's conditional write: returns whether there was no `target` yet."""
        try:
            os.link(path, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return self._move(path, target, error)
        return True

    def _move(self, path: Path, target: Path, why: OSError) -> bool:
        """The same on a disk without hard links, where a lock excludes others."""
        try:
            with locked(mark_of(own_folder(self.root / STAGING))):
                return not os.path.lexists(target) and _replace(path, target)
        except NoLocks as error:
            raise ConfigError(
                f"store {self.uri}: this disk has neither hard links ({why.strerror}) nor file locks, so two commands at once "
                "would overwrite each other's files; choose a --store on another disk or in a bucket"
            ) from error


def _put(path: Path, target: Path, place: Callable[[Path, Path], bool]) -> bool:
    """Move a file into place durably, in a folder that a delete may remove whenever it is empty."""
    for attempt in itertools.count(1):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            made = place(path, target)
            break
        except (FileNotFoundError, FileExistsError):  # from mkdir, if the folder was there and has just been removed
            if attempt == ATTEMPTS or not path.exists():
                raise
    with contextlib.suppress(FileNotFoundError):
        flush(target.parent)
    return made


def _replace(path: Path, target: Path) -> bool:
    path.replace(target)
    return True
