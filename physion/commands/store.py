"""`physion store ...`."""

from __future__ import annotations

import typer

from physion.commands.serve import serve

store_app = typer.Typer(help="Look after stores.", no_args_is_help=True)
store_app.command("serve", epilog="Example: physion store serve runs/s3")(serve)
