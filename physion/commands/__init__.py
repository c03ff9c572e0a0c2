"""The command line's groups of commands (`physion store ...`), and the options that all commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from physion.config.load import preset_names
from physion.config.schema import Config, TrainingStage

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
Precision = Annotated[
    str | None,
    typer.Option(help="Of every training: auto, fp32, bf16 or fp16; as --set train-....precision.", show_default=False),
]


def with_precision(overrides: list[str], precision: str | None) -> list[str]:
    """Overrides that also give every training this precision."""
    stages = [field.alias for field in Config.model_fields.values() if is_training(field.annotation)]
    return [*overrides, *(f"{stage}.precision={precision}" for stage in stages if precision)]


def is_training(section: Any) -> bool:
    """Whether a field of the configuration is a section of a trained stage."""
    return isinstance(section, type) and issubclass(section, TrainingStage)
