"""`physion contact-sheet`: one simulated video of each scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from physion.errors import ConfigError


def contact_sheet(
    path: Annotated[Path, typer.Argument(help="PNG to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels per side of a picture.", min=32, max=512)] = 128,
) -> None:
    """Draw one simulated video of each scenario as a row of pictures."""
    from physion.simulation import require_engine

    require_engine()
    from physion.simulation.sheet import write_contact_sheet

    try:
        write_contact_sheet(path, seed, size)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error
    print(path)
