"""`physion config`: presets and their options."""

from __future__ import annotations

import json
from typing import Annotated

import typer
import yaml

from physion.commands import AsJSON, Overrides, Preset, print_json
from physion.config.load import load_config, preset_text, read_preset, study_class

config_app = typer.Typer(help="Inspect presets and their options.", no_args_is_help=True)


@config_app.command("show", epilog="Example: physion config show --preset gpu --set frames.image-size=96")
def config_show(preset: Preset, overrides: Overrides = [], as_json: AsJSON = False) -> None:  # noqa: B006
    """Print a preset with every default and override filled in."""
    tree = load_config(preset, overrides).model_dump(mode="json")
    if as_json:
        print_json(tree)
        return
    for line in preset_text(preset).splitlines():
        if not line.startswith("#"):
            break
        print(line)
    print(yaml.safe_dump(tree, sort_keys=False, width=120), end="")


@config_app.command("schema", epilog="Example: physion config schema --preset mine.yaml > schema.json")
def config_schema(
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="Preset whose plug-ins' sections to include.")] = None,
) -> None:
    """Print the JSON schema of a preset, for editors."""
    if preset is not None:
        read_preset(preset)
    print(json.dumps(study_class().model_json_schema(by_alias=True), indent=1))
