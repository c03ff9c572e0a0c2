"""`physion plan`: what a run will do and take, and why, before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from physion.commands import AsJSON, Overrides, Preset, StoreURI, load_study
from physion.pipeline.graph import Node, left_to_do, select
from physion.progress import byte_count
from physion.store.artifacts import Manifest
from physion.store.protocol import Store

SUSTAINED = 100e12  # FLOP/s assumed for accelerator time: about a tenth of an H100's bf16 peak


def plan(
    preset: Preset,
    store: StoreURI,
    overrides: Overrides = [],  # noqa: B006
    why: Annotated[
        bool, typer.Option("--why", help="Say for each stage to be made what differs from the nearest artifact.")
    ] = False,
    only: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="This stage alone.")] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For workflows/: write there, for each task, the list of what it has to do."),
    ] = None,
    pods: Annotated[
        list[str], typer.Option(metavar="STAGE=N", help="With --tasks: how many pods share a stage. Repeatable.")
    ] = [],  # noqa: B006
    as_json: AsJSON = False,
) -> None:
    """Show every stage with its fingerprint, whether it is done, and what it will take, before anything is spent."""
    from physion.kubernetes.tasks import parse_pods, work_lists, write_work_lists
    from physion.pipeline.runner import all_standing, published

    config, graph, target = load_study(preset, overrides, store)
    shown = select(graph, only, {}) if only else list(graph.values())
    manifests = published(graph, target)
    done = all_standing(graph, manifests)
    if tasks is not None:
        left = left_to_do(graph, lambda node: node.name in done)
        write_work_lists(tasks, work_lists(config, left, parse_pods(pods)))
    rows = [_row(node, config, manifests[node.name] if node.name in done else None) for node in shown]
    if why:
        _say_why(rows, graph, done, target, as_json)
    elif as_json:
        print(json.dumps(rows, indent=1))
    else:
        _print_table(rows, f"preset {preset}, store {target.uri}")


def _row(node: Node, config: Any, manifest: Manifest | None) -> dict[str, Any]:
    """What the plan says of an instance; the manifest is that of the artifact, if it needs not be made."""
    cost = node.stage.cost(config, node.params)
    return {
        "name": node.name,
        "stage": node.stage.name,
        "fingerprint": node.fingerprint,
        "inputs": node.inputs,
        "cached": manifest is not None,
        "weights": next((artifact.prefix for artifact in node.weights.values()), None),
        "bytes": cost.bytes,
        "flops": cost.flops,
        "accelerator_hours": cost.flops / SUSTAINED / 3600,
        "note": node.stage.note(config, node.params, manifest.metrics if manifest else None),
    }


def _say_why(rows: list[dict[str, Any]], graph: Mapping[str, Node], done: set[str], target: Store, as_json: bool) -> None:
    from physion.pipeline.why import Reason, why

    found = {row["name"]: why(graph[row["name"]], graph, target) for row in rows if not row["cached"]}
    for name, reasons in found.items():
        if not reasons:  # it is as it should be, but for what it stands on
            sources = dict.fromkeys(graph[name].inputs.values())
            reasons.extend(Reason("again", source) for source in sources if source not in done)
    if as_json:
        print(json.dumps({name: [reason.as_json() for reason in reasons] for name, reasons in found.items()}, indent=1))
        return
    told: set[str] = set()
    for name, reasons in found.items():
        print(name)
        for reason in reasons:
            for line in reason.lines(told, 1):
                print(line)
        told.add(name)
    if not found:
        print("nothing is to be made")


def _print_table(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    for column in ("stage", "fingerprint", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("output", "FLOPs", "GPU time"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        state = "[green]cached[/]" if row["cached"] else f"take {row['weights']}" if row["weights"] else "to do"
        table.add_row(row["name"], row["fingerprint"][:12], state, *_cost_cells(row))
    todo = [row for row in rows if not row["cached"]]
    total = {key: sum(row[key] for row in todo) for key in ("bytes", "flops", "accelerator_hours")}
    table.add_row("[bold]still to do", "", f"{len(todo)} of {len(rows)}", *_cost_cells(total))
    table.caption = f"Output and FLOPs are estimates; GPU time assumes {SUSTAINED / 1e12:.0f} TFLOP/s sustained."
    Console().print(table)
    for row in rows:
        if row["note"]:
            print(f"{row['name']}: {row['note']}")


def _cost_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    if not row["flops"]:
        return byte_count(row["bytes"]) if row["bytes"] else "-", "-", "-"
    hours = row["accelerator_hours"]
    time = "< 1 min" if hours < 1 / 60 else f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"
    return byte_count(row["bytes"]), f"{row['flops']:.0e}", time
