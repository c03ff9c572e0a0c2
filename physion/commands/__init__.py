"""The command line's groups of commands (`physion store ...`), and the options that all commands share."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from physion.config.load import load_config, preset_names
from physion.config.schema import Study, TrainingStage
from physion.errors import ConfigError, DataError
from physion.job import Stop
from physion.pipeline.graph import Node, build_graph
from physion.progress import duration
from physion.stages import STAGES
from physion.store.cache import ShardCache, default_limit
from physion.store.protocol import Store
from physion.store.uri import open_store

if TYPE_CHECKING:
    from physion.pipeline.runner import Done

JSON_VERSION = 1  # raised when something of docs/json.md goes, or means something else
Preset = Annotated[
    str, typer.Option("--preset", "-p", envvar="PHYSION_PRESET", help=f"One of: {', '.join(preset_names())}; or a YAML file.")
]
StoreURI = Annotated[
    str,
    typer.Option(
        "--store", "-s", envvar="PHYSION_STORE", help="Where artifacts are: a path, file:///path or s3://bucket/prefix."
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", envvar="PHYSION_SET", help="Override a value: train-steve.optim.lr=2e-4. Repeatable."
    ),
]
Sweep = Annotated[
    list[str],
    typer.Option(
        metavar="KEY=VALUE,VALUE",
        envvar="PHYSION_SWEEP",
        help="Variants of the study: one with each value, or each combination if repeated.",
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and errors as JSON on standard error.")]


def folder(given: str | Path) -> Path:
    """Parse the path of a folder. An empty one, as from an unset variable, does not mean the current folder: ConfigError."""
    if not str(given).strip():
        raise ConfigError("an empty path was given for a folder: give a path, or . for the current folder")
    return Path(given)


CacheFolder = Annotated[
    Path,
    typer.Option(
        parser=folder, envvar="PHYSION_CACHE", metavar="FOLDER", help="Where this machine caches files of a remote store."
    ),
]
CacheLimit = Annotated[
    str | None,
    typer.Option(
        envvar="PHYSION_CACHE_LIMIT",
        metavar="SIZE",
        help="Size limit of the cache, such as 50GB. Default: half of the available disk space, at most 200 GB.",
    ),
]


@dataclass
class CacheOptions:
    """The values of `--cache` and `--cache-limit`; set before any command runs."""

    folder: Path = field(default_factory=lambda: Path("~/.cache/physion").expanduser())
    limit: str | None = None

    @property
    def pulls(self) -> Path:
        """Where named weights are kept while they are fetched."""
        return self.folder / "physion-pulls"


cache_options = CacheOptions()


def chosen_store(uri: str) -> Store:
    """The store of `--store`, with the cache of `--cache` and `--cache-limit` if it is remote."""
    if "://" not in uri or uri.startswith("file:"):
        return open_store(uri)
    folder, limit = cache_options.folder / "physion-cache", cache_options.limit
    return open_store(uri, ShardCache(folder, parse_bytes(limit) if limit else default_limit(folder)))


def raise_each(problems: Sequence[str]) -> None:
    """Raise one DataError that names everything that could not be used; do nothing if there is none."""
    if problems:
        raise DataError("\n".join(problems))


def print_json(result: Any) -> None:
    """Print what `--json` asks for: docs/json.md."""
    print(json.dumps({"version": JSON_VERSION, "result": result}, indent=1))


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal allows, nothing cut off; as paragraphs, if it would have to break words.

    What space there is beyond each column's longest word goes to the columns from left to right, so that names stay whole.
    """
    console = Console()
    texts = [[_plain(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    longest = [max(len(word) for cell in cells for word in ["", *cell.split()]) for cells in texts]
    gap = 2 if sum(longest) + 2 * len(longest) <= console.width else 1
    room = console.width - sum(longest) - gap * len(longest)
    if room < 0:
        _print_paragraphs(table)
        return
    table.padding = (0, gap, 0, 0)
    for column, cells, word in zip(table.columns, texts, longest, strict=True):
        column.width = min(max(len(line) for cell in cells for line in ["", *cell.splitlines()]), word + room)
        room -= column.width - word
    console.print(table)


def _print_paragraphs(table: Table) -> None:
    """Each row's first cell on a line of its own, and the others below it, after their columns' names."""
    console = Console(highlight=False)
    for line in filter(None, (table.title, *_paragraphs(table), table.caption)):
        console.print(line)


def _paragraphs(table: Table) -> Iterator[RenderableType]:
    headers = [str(column.header) for column in table.columns[1:]]
    for first, *others in zip(*(column.cells for column in table.columns), strict=True):
        yield first
        cells = [f"{header} {cell}" for header, cell in zip(headers, others, strict=True) if cell not in ("", "-")]
        yield Padding("; ".join(cells).replace("\n", " "), (0, 0, 0, 2))


def _plain(cell: RenderableType) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else ""


def copy_out(source: Path, destination: Path) -> None:
    """Copy a file so that it appears whole or not at all."""
    partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        partial.replace(destination)
    except OSError as error:
        raise ConfigError(f"{destination}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def parse_bytes(text: str) -> int:
    """Bytes of `50GB`, `1.5 TB` or `1000000`; units are powers of 1000.

    Raises ConfigError.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip(), re.IGNORECASE)
    size = round(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size <= 0:
        raise ConfigError(f"cache limit '{text}': not a size such as 50GB (B, kB, MB, GB or TB; PHYSION_CACHE_LIMIT)")
    return size


Precision = Annotated[
    str | None,
    typer.Option(help="For every training: auto, fp32, bf16 or fp16; like --set train-....precision.", show_default=False),
]


def for_trainings(preset: str, overrides: list[str], **given: str | int | None) -> list[str]:
    """Overrides that also give every training these values, unless they are None."""
    values = [(key, value) for key, value in given.items() if value is not None]
    if not values:
        return overrides
    config = load_config(preset, overrides)
    trainings = [
        stage.name for stage in STAGES.values() if stage.section and isinstance(config.section(stage.name), TrainingStage)
    ]
    return [*overrides, *(f"{stage}.{key}={value}" for key, value in values for stage in trainings)]


def load_study(preset: str, overrides: list[str], store: str) -> tuple[Study, dict[str, Node], Store]:
    """A preset with overrides, in a store: the configuration, the stage instances with their fingerprints, the store."""
    config, target = load_config(preset, overrides), chosen_store(store)
    return config, build_graph(config, target), target


def study(preset: str, overrides: list[str], store: str) -> tuple[dict[str, Node], Store]:
    """The stage instances of a preset with overrides, and the store."""
    _, graph, target = load_study(preset, overrides, store)
    return graph, target


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """SIGTERM and the first Ctrl-C ask the stage to save and stop; a second Ctrl-C ends it at once."""
    stop = Stop()

    def on_signal(number: int, _: Any) -> None:
        if stop.signal == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number).name

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def result_facts(result: Done, store: Store) -> dict[str, Any]:
    """The result of one stage, for `--json`."""
    where, metrics = f"{store.uri}/{result.node.prefix}", result.manifest.metrics
    return {"artifact": where, "published": True, "cached": result.cached, "metrics": metrics}


def tell_result(result: Done, store: Store, as_json: bool) -> None:
    """Print the result of one stage, and where its artifact is."""
    if as_json:
        print_json(result_facts(result, store))
        return
    took = "cached" if result.cached else f"done in {duration(result.seconds)}"
    print(f"{result.node.name}: {took}{headline(result.manifest.metrics)}\n{store.uri}/{result.node.prefix}")


def headline(metrics: dict[str, Any]) -> str:
    """A stage's headline numbers, for a log line."""
    shown = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    cells = (
        f"{key.replace('_', ' ')} {value:,.4g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value:,}"
        for key, value in shown.items()
    )
    return f" ({', '.join(cells)})" if shown else ""
