"""The command line's groups of commands (`physion store ...`), and the options that all commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from physion.config.load import preset_names
from physion.errors import ConfigError
from physion.store.cache import ShardCache, default_limit
from physion.store.store import Store, open_store

Preset = Annotated[
    str, typer.Option("--preset", "-p", envvar="PHYSION_PRESET", help=f"One of: {', '.join(preset_names())}; or a YAML file.")
]
StoreURI = Annotated[
    str, typer.Option("--store", "-s", envvar="PHYSION_STORE", help="Where artifacts lie: file:///path (or a plain path).")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, such as train-steve.optim.lr=2e-4. Repeatable."),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
CacheFolder = Annotated[
    Path, typer.Option(envvar="PHYSION_CACHE", metavar="FOLDER", help="Where files of a remote store are kept on this machine.")
]
CacheLimit = Annotated[
    str | None,
    typer.Option(
        envvar="PHYSION_CACHE_LIMIT",
        metavar="SIZE",
        help="How much is kept there, such as 50GB. Default: half of the disk's room.",
    ),
]


DEFAULT_CACHE = Path("~/.cache/physion")
_cache: tuple[Path, str | None] = (DEFAULT_CACHE, None)


def choose_cache(folder: Path, limit: str | None) -> None:
    """Remember `--cache` and `--cache-limit`, which stand before the command, for the store that the command opens."""
    global _cache
    _cache = (folder, limit)


def chosen_store(uri: str) -> Store:
    """The store of `--store`, with the chosen cache where it is remote."""
    if "://" not in uri or uri.startswith("file:"):
        return open_store(uri)
    folder, limit = _cache[0].expanduser().absolute(), _cache[1]
    return open_store(uri, ShardCache(folder, parse_bytes(limit) if limit else default_limit(folder)))


def parse_bytes(text: str) -> int:
    """Bytes of `50GB`, `1.5 TB` or `1000000`; units are powers of 1000.

    Raises ConfigError.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size <= 0:
        raise ConfigError(f"cache limit '{text}': not a size such as 50GB (B, kB, MB, GB or TB; PHYSION_CACHE_LIMIT)")
    return size
