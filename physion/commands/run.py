"""`physion run`: the whole study on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from physion import __version__
from physion.commands import (
    AsJSON,
    Overrides,
    Precision,
    Preset,
    StoreURI,
    copy_out,
    headline,
    stopping,
    study,
    with_precision,
)
from physion.errors import ConfigError
from physion.pipeline.graph import Node
from physion.progress import duration, say
from physion.store.artifacts import Artifact


def run(
    preset: Preset,
    store: StoreURI,
    overrides: Overrides = [],  # noqa: B006
    precision: Precision = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="Copy the report to this file at the end.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Run the whole study; what is done already is reused, what was interrupted goes on."""
    from physion.pipeline.runner import Done, run_graph, standing

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "physion run is one process; start several ranks only of a training: torchrun ... physion stage train-..."
        )
    graph, target = study(preset, with_precision(preset, overrides, precision), store)
    say(f"physion {__version__}: preset {preset}, {len(graph)} stages, store {target.uri}")

    def starting(node: Node) -> None:
        if standing(node, graph, target) is None:
            taken = next((f"take {artifact.prefix}" for artifact in node.weights.values()), None)
            say(f"{node.name}: {taken or node.stage.summary}")

    def done(result: Done) -> None:
        took = "cached" if result.cached else f"done in {duration(result.seconds)}"
        say(f"{result.node.name}: {took}{headline(result.manifest.metrics)}")

    with stopping() as stop:
        finished = run_graph(graph, target, stop, starting=starting, done=done)
    last = finished[-1].manifest
    report = f"{target.uri}/artifacts/evaluate/{last.fingerprint}/report.html"
    if report_to is not None:
        copy_out(Artifact(target, last).path("report.html"), report_to)
        report = str(report_to)
    if as_json:
        print(json.dumps({"metrics": last.metrics, "report": report, "fingerprint": last.fingerprint}, indent=1))
    else:
        Console().print(f"\n{last.metrics.get('headline', '')}", highlight=False, soft_wrap=True)
        print(f"report: {report}")
