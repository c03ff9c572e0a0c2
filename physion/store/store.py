"""What a store is, and how a URI becomes one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from physion.errors import ConfigError
from physion.store.local import LocalStore

if TYPE_CHECKING:
    from physion.store.cache import ShardCache


class Store(Protocol):
    """A flat map from keys (`a/b/c`) to immutable objects; an object is seen whole or not at all."""

    uri: str

    @property
    def cache(self) -> ShardCache | None:
        """Where a remote store keeps what it fetched; None when `fetch` gives the object itself."""

    def scratch(self) -> Path:
        """A fresh local directory from which `upload` is cheap."""

    def size(self, key: str) -> int | None:
        """Size of an object in bytes; None when there is none."""

    def read(self, key: str) -> bytes | None:
        """The bytes of a small object; None when there is none."""

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write a small object; with `if_absent`, only when there is none yet. Tells whether it wrote."""

    def upload(self, key: str, path: Path) -> bool:
        """Make a local file an object unless there is one already; the file may be moved. Tells whether it did."""

    def fetch(self, key: str, *, size: int | None = None, sha256: str | None = None) -> Path:
        """A local, read-only file that holds the object.

        Raises FileNotFoundError when there is none, DataError when it is not what `size` and `sha256` say. With a cache and
        `sha256`, the file may go when this thread fetches another one. Without, a remote store gives a copy, the caller's own.
        """

    def list(self, prefix: str) -> list[str]:
        """Keys below a prefix (a folder), sorted."""

    def age(self, key: str) -> float | None:
        """Seconds since an object was written; None when there is none."""

    def delete(self, key: str) -> None:
        """Remove an object, if there is one."""


def open_store(uri: str, cache: ShardCache | None = None) -> Store:
    """The store at `file:///path` (or a plain path). A remote one keeps what it fetches in `cache`.

    Raises ConfigError for another scheme; `s3://` is not there yet.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        raise ConfigError(f"store {uri}: s3:// is not supported yet; use file:///path")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigError(f"store {uri}: a file URI has three slashes: file:///path")
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme:
        raise ConfigError(f"store {uri}: unknown scheme '{parts.scheme}'; use file:///path")
    return LocalStore(Path(uri).absolute())
