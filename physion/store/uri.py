"""Opens the store that a URI names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from physion.errors import ConfigError
from physion.store.local import LocalStore
from physion.store.protocol import Store

if TYPE_CHECKING:
    from physion.store.cache import ShardCache

BUILTIN = "builtin:"


class BuiltinStore(LocalStore):
    """The weights included with the package; read-only."""

    def __init__(self) -> None:
        super().__init__(Path(__file__).parents[1] / "builtin")
        self.uri = BUILTIN

    def scratch(self) -> Path:
        """Raises ConfigError."""
        raise self._read_only()

    def _own_path(self, key: str) -> Path:
        raise self._read_only()

    def _read_only(self) -> ConfigError:
        return ConfigError(f"{BUILTIN} holds the weights included with physion and is read-only: name another --store")


def open_store(uri: str, cache: ShardCache | None = None) -> Store:
    """The store at `s3://bucket/prefix`, `file:///path` or a plain path; `builtin:` holds the weights included with the
    package.

    A remote store keeps what it fetches in `cache`, and files in progress beside it.

    Raises ConfigError if the URI is not a store.
    """
    if not uri.strip():
        raise ConfigError("--store is empty: give a path, file:///path or s3://bucket/prefix (or set PHYSION_STORE)")
    parts = urlsplit(uri)
    if "@" in parts.netloc or (parts.scheme == "s3" and ":" in parts.netloc):  # not shown: it may hold a secret
        raise ConfigError(
            "a store is s3://bucket/prefix, without credentials or a port: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, and AWS_ENDPOINT_URL"
        )
    if parts.scheme == "s3":
        from physion.store.s3 import S3Store, parse_uri  # boto3 takes a while to load

        beside = Path.home() / ".cache" / "physion" / "physion-cache" if cache is None else cache.root
        return S3Store(*parse_uri(uri), scratch=beside.with_name("physion-scratch"), cache=cache)
    if uri == BUILTIN:
        return BuiltinStore()
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigError(f"store {uri}: a file URI has three slashes: file:///path")
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme:
        raise ConfigError(f"--store has the unknown scheme '{parts.scheme}'; use s3://bucket/prefix or file:///path")
    return LocalStore(Path(uri).absolute())
