"""The interface of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from physion.store.cache import ShardCache


MOST_READ = 256 * 2**20  # largest object that is read into memory whole, bytes


@dataclass(frozen=True)
class Upload:
    """Parts of an object that are not assembled: an upload in progress, or the remains of a dead one."""

    key: str
    id: str
    bytes: int
    age: float
    """Seconds since it began, or since its newest part arrived."""


class Readable(Protocol):
    """Something whose objects can be read by key."""

    uri: str

    def read(self, key: str) -> bytes | None:
        """The bytes of a small object; None if it does not exist. Raises DataError if it is larger than `MOST_READ`."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on, fewer if it ends before. Raises DataError if there is no such object."""


class Store(Readable, Protocol):
    """A flat map from keys (`a/b/c`) to immutable objects; an object is visible whole or not at all."""

    @property
    def cache(self) -> ShardCache | None:
        """Where a remote store keeps what it fetched; None if `fetch` returns the object itself."""

    def scratch(self) -> Path:
        """A new local directory from which `upload` is cheap."""

    def size(self, key: str) -> int | None:
        """Size of an object in bytes; None if it does not exist."""

    def digest(self, key: str) -> str | None:
        """SHA-256 of an object, hexadecimal, as the store has it now; None if it does not exist."""

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write a small object; with `if_absent`, only if there is none yet. Returns whether it wrote."""

    def upload(self, key: str, path: Path, *, sha256: str | None = None) -> bool:
        """Move a local file into the store unless the object already exists. Returns whether it did.

        `sha256` is the file's digest, if the caller knows it.
        """

    def fetch(self, key: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """A local, read-only file that holds the object.

        Raises FileNotFoundError if there is none, DataError if it does not match `size` and `sha256`. With a cache and
        `sha256`, the file may disappear when this thread fetches another one. Otherwise a remote store returns a copy that the
        caller owns.
        """

    def list(self, prefix: str) -> list[str]:
        """Keys below a prefix (a folder), sorted; names that are not ours (`keys.safe_key`) are left out."""

    def age(self, key: str) -> float | None:
        """Seconds since an object was written; None if it does not exist."""

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""

    def unfinished_uploads(self) -> Sequence[Upload]:
        """Uploads in the whole store that are in progress or dead; they take space, and no listing of objects shows them."""

    def abort(self, upload: Upload) -> None:
        """Remove the parts of an unfinished upload, if they still exist."""

    def create(self) -> None:
        """Create the bucket or folder, unless it exists."""

    def clock_skew(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the store's; None if both are the same clock."""
