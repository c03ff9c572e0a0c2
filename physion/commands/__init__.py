"""The command line's groups of commands (`physion store ...`), and the options that all commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from physion.config.load import preset_names

Preset = Annotated[
    str, typer.Option("--preset", "-p", envvar="PHYSION_PRESET", help=f"One of: {', '.join(preset_names())}; or a YAML file.")
]
StoreURI = Annotated[
    str,
    typer.Option(
        "--store", "-s", envvar="PHYSION_STORE", help="Where artifacts lie: a path, file:///path or s3://bucket/prefix."
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, such as train-steve.optim.lr=2e-4. Repeatable."),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
