"""The whole Physion visual-question-answering study as resumable batch stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from physion.study import Study

__version__ = "0.1.0"


def open(store: str, preset: str, overrides: Sequence[str] = (), cache: Path | None = None) -> Study:
    """The study of a preset with overrides (`train-steve.optim.lr=2e-4`) in a store: a path or s3://bucket/prefix.

    cache: where to keep files of a remote store; default ~/.cache/physion. Raises ConfigError for an invalid store or preset.
    """
    from physion.study import Study  # imports numpy and more: importing only the package stays light

    return Study(store, preset, overrides, cache)
