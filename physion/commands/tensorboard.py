"""`physion tensorboard`: the trainings of a store in TensorBoard, under names that people can tell apart."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from physion.commands import StoreURI, chosen_store, copy_out
from physion.errors import ConfigError, DataError
from physion.pipeline.studies import apart
from physion.progress import say
from physion.store.artifacts import ArtifactWriter
from physion.store.local import LocalStore
from physion.store.protocol import Store
from physion.store.survey import Found, select, survey

LONGEST = 150  # bytes of a name


def tensorboard(
    store: StoreURI,
    names: Annotated[list[str] | None, typer.Argument(metavar="[ARTIFACT...]", help="A stage, an instance or more.")] = None,
    port: Annotated[int, typer.Option(help="On this machine; 0 takes any that is free.")] = 6006,
) -> None:
    """Show trainings in TensorBoard until Ctrl-C, each named by its instance and what tells it apart.

    Trainings that start later appear after a restart. A remote store is copied as it is at the start.
    """
    target = chosen_store(store)
    everything = survey(target)
    chosen = [found for name in names for found in select(everything, name)] if names else everything
    events = {name: keys for name, found in _named(target, chosen).items() if (keys := _events(found))}
    if not events:
        raise ConfigError(f"no training in {target.uri} has written anything yet: physion store ls lists what is there")

    def on_signal(*_: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell that starts it in the background has it ignored
        signal.signal(number, on_signal)
    with tempfile.TemporaryDirectory(prefix="physion-tensorboard-") as folder, suppress(KeyboardInterrupt):
        _lay_out(target, events, Path(folder))
        say(f"{len(events)} trainings: {', '.join(events)}")
        subprocess.run([sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", f"--port={port}"], check=False)


def _events(found: Found) -> list[str]:
    return [key for key in found.keys if key.endswith("tfevents")]


def _named(store: Store, chosen: list[Found]) -> dict[str, Found]:
    """Names that tell artifacts apart, such as `train-steve optim.lr=0.0002 1a2b3c`."""
    published = [found.manifest for found in chosen if found.manifest]
    differs = dict(zip((manifest.fingerprint for manifest in published), apart(published), strict=True))
    named = {}
    for found in chosen:
        instance = found.manifest.instance if found.manifest else _instance_at_work(store, found)
        words = " ".join(filter(None, [instance, differs.get(found.fingerprint, "")])).replace("/", "_")
        named[f"{words.encode()[:LONGEST].decode(errors='ignore')} {found.fingerprint[:6]}"] = found
    return named


def _instance_at_work(store: Store, found: Found) -> str:
    """The instance that unfinished work will be; its stage where nothing says."""
    with suppress(DataError):
        if begun := ArtifactWriter(store, found.stage, found.fingerprint).begun():
            return next((name for name, known in begun.study.items() if known == found.fingerprint), found.stage)
    return found.stage


def _lay_out(store: Store, events: Mapping[str, list[str]], folder: Path) -> None:
    """Make a folder for each name with its events: of a local store a link, in which what comes later shows, too."""
    for name, keys in events.items():
        if isinstance(store, LocalStore):
            (folder / name).symlink_to((store.root / keys[0]).parent)
        else:
            for key in keys:
                copy_out(store.fetch(key), folder / name / Path(key).name)
