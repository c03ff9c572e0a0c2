"""What a store is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from physion.store.cache import ShardCache


MOST_READ = 256 * 2**20  # bytes of an object that is read as a whole into memory


@dataclass(frozen=True)
class Upload:
    """Parts of an object that are not put together: an upload under way, or what a dead one left."""

    key: str
    id: str
    bytes: int
    age: float
    """Seconds since it was begun, or since its newest part came."""


class Readable(Protocol):
    """Where objects can be read by their key."""

    uri: str

    def read(self, key: str) -> bytes | None:
        """The bytes of a small object; None when there is none. Raises DataError when it is larger than `MOST_READ`."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on, fewer where it ends. Raises DataError when there is no such object."""


class Store(Readable, Protocol):
    """A flat map from keys (`a/b/c`) to immutable objects; an object is seen whole or not at all."""

    @property
    def cache(self) -> ShardCache | None:
        """Where a remote store keeps what it fetched; None when `fetch` gives the object itself."""

    def scratch(self) -> Path:
        """A fresh local directory from which `upload` is cheap."""

    def size(self, key: str) -> int | None:
        """Size of an object in bytes; None when there is none."""

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write a small object; with `if_absent`, only when there is none yet. Tells whether it wrote."""

    def upload(self, key: str, path: Path, *, sha256: str | None = None) -> bool:
        """Make a local file an object unless there is one already; the file goes. Tells whether it did.

        `sha256` is the file's, from a caller who knows it.
        """

    def fetch(self, key: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """A local, read-only file that holds the object.

        Raises FileNotFoundError when there is none, DataError when it is not what `size` and `sha256` say. With a cache and
        `sha256`, the file may go when this thread fetches another one. Without, a remote store gives a copy, the caller's own.
        """

    def list(self, prefix: str) -> list[str]:
        """Keys below a prefix (a folder), sorted; names that are none of ours (`keys.safe_key`) are left out."""

    def age(self, key: str) -> float | None:
        """Seconds since an object was written; None when there is none."""

    def delete(self, key: str) -> None:
        """Remove an object, if there is one."""

    def unfinished_uploads(self) -> Sequence[Upload]:
        """Uploads in the whole store that are under way or dead; they take room, and no listing of objects shows them."""

    def abort(self, upload: Upload) -> None:
        """Remove the parts of an unfinished upload, if they are still there."""

    def create(self) -> None:
        """Make the bucket or folder, unless it is there."""

    def clock_skew(self) -> float | None:
        """Seconds that this machine's clock is ahead of the store's; None where both are the same clock."""
