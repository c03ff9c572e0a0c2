"""`physion plan`: what a run will do and cost, and why, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from physion.commands import AsJSON, Overrides, Preset, StoreURI, Sweep, load_study, print_json, print_table
from physion.config.load import variants
from physion.errors import ConfigError
from physion.machine import Machine, device_name, this_machine
from physion.pipeline.graph import Node, left_to_do, select
from physion.progress import byte_count
from physion.stages import last_stage
from physion.store.artifacts import Manifest
from physion.store.protocol import Store

if TYPE_CHECKING:
    from physion.pipeline.measured import Measured

SUSTAINED = 100e12  # FLOP/s assumed for accelerator time: about a tenth of an H100's bf16 peak


def plan(
    preset: Preset,
    store: StoreURI,
    overrides: Overrides = [],  # noqa: B006
    sweep: Sweep = [],  # noqa: B006
    why: Annotated[
        bool, typer.Option("--why", help="For each stage to be made, say what differs from the nearest artifact.")
    ] = False,
    only: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Only this stage.")] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For workflows/: write here, for each task, the list of its work."),
    ] = None,
    pods: Annotated[
        list[str], typer.Option(metavar="STAGE=N", help="With --tasks: how many pods divide a stage. Repeatable.")
    ] = [],  # noqa: B006
    on: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Estimate times for this device, such as H100, instead of this machine."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Show every stage with its fingerprint, whether it is done, and what it will cost, before anything is spent.

    Times are based on what the store's artifacts took on this machine, or on the device that --on names. With --sweep, each
    variant is shown with what it does not share with those before it.
    """
    if sweep and why:
        raise ConfigError("--why explains one study: give it a variant's values with --set instead of --sweep")
    studies = [(variant, *load_study(preset, [*overrides, *variant], store)) for variant in variants(sweep)]
    from physion.kubernetes.tasks import parse_pods, work_lists, write_work_lists
    from physion.pipeline.measured import Measured
    from physion.pipeline.provenance import changed_since, warning
    from physion.pipeline.runner import all_standing, published

    device = on or device_name()
    left, results, seen = [], [], set[str]()
    for variant, config, graph, target in studies:
        shown = [node for node in (select(graph, only, {}) if only else graph.values()) if node.fingerprint not in seen]
        seen |= {node.fingerprint for node in shown}
        manifests = published(graph, target)
        done = all_standing(graph, manifests)
        # A report that is there is listed, too: its task hands it to the workflow.
        left.append((variant, left_to_do(graph, lambda node: node.name in done) or [graph[last_stage().name]]))  # noqa: B023
        kept = {node.name: manifest for node in shown if node.name in done and (manifest := manifests[node.name])}
        if why:
            _say_why(shown, graph, kept, done, target, as_json)
            return
        changed = {name: changed_since(manifest, graph[name], graph) for name, manifest in kept.items()}
        measured = Measured(shown, target, device)
        rows = [_row(node, config, measured, kept.get(node.name), changed.get(node.name, [])) for node in shown]
        results.append({"overrides": variant, "stages": rows})
        if not as_json:
            title = escape(", ".join([f"preset {preset}, store {target.uri}", *variant]))
            todo = [node for node in shown if node.name not in done]
            _print_table(rows, todo, device, this_machine() if on is None else None, title)
            if any(changed.values()):
                print(f"warning: {warning(changed)}")
    if tasks is not None:
        write_work_lists(tasks, work_lists(studies[0][1], left, parse_pods(pods)))
    if as_json:
        print_json(results if sweep else results[0]["stages"])


def _row(
    node: Node, config: Any, measured: Measured, manifest: Manifest | None, changed_since: Sequence[str]
) -> dict[str, Any]:
    """The plan's row for an instance; manifest: that of its artifact, if it need not be made."""
    from physion.pipeline.measured import device_of

    cost, last = node.cost, measured.last(node)
    return {
        "name": node.name,
        "stage": node.stage.name,
        "fingerprint": node.fingerprint,
        "inputs": node.inputs,
        "cached": manifest is not None,
        "changed_since": changed_since,
        "weights": next((artifact.prefix for artifact in node.weights.values()), None),
        "bytes": cost.bytes,
        "flops": cost.flops,
        "accelerator_hours": cost.flops / SUSTAINED / 3600,
        "seconds": measured.seconds(node),
        "took": last and {"seconds": last.seconds, "device": device_of(last)},
        "note": node.stage.note(config, node.params, manifest.metrics if manifest else None),
    }


def _say_why(
    nodes: list[Node], graph: Mapping[str, Node], kept: Mapping[str, Manifest], done: set[str], target: Store, as_json: bool
) -> None:
    """Say why. kept: the artifacts that need not be made; for these, say how the code that made them has changed."""
    from physion.pipeline.why import Reason, since, why

    found = {node.name: why(node, graph, target) for node in nodes if node.name not in kept}
    for name, reasons in found.items():
        if not reasons:  # it is up to date, except for its inputs
            sources = dict.fromkeys(graph[name].inputs.values())
            reasons.extend(Reason("again", source) for source in sources if source not in done)
    to_do = list(found)
    found |= {name: others for name, manifest in kept.items() if (others := since(manifest, graph[name], graph))}
    if as_json:
        print_json({name: [reason.as_json() for reason in reasons] for name, reasons in found.items()})
        return
    told: set[str] = set()
    for name, reasons in found.items():
        print(name if name in to_do else f"{name} is kept, but other code or packages would make it now:")
        for reason in reasons:
            for line in reason.lines(told, 1):
                print(line)
        told.add(name)
    if not to_do:
        print("nothing needs to be made")


def _print_table(rows: list[dict[str, Any]], left: list[Node], device: str, machine: Machine | None, title: str) -> None:
    """machine: what the instances that are `left` will share; None if unknown."""
    from physion.pipeline.measured import wall_clock

    table = Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    for column in ("stage", "fingerprint", "state"):
        table.add_column(column)
    for column in ("output", "FLOPs", "time", "took"):
        table.add_column(column, justify="right")
    for row in rows:
        state = "[green]cached[/]" if row["cached"] else f"take {row['weights']}" if row["weights"] else "to do"
        took = row["took"] and row["took"]["seconds"]
        table.add_row(row["name"], row["fingerprint"][:12], state, *_cells(row["bytes"], row["flops"], row["seconds"], took))
    todo = [row for row in rows if not row["cached"]]
    total = {key: sum(row[key] for row in todo) for key in ("bytes", "flops", "accelerator_hours")}
    known = {row["name"]: row["seconds"] for row in todo if row["seconds"] is not None}
    cells = _cells(total["bytes"], total["flops"], sum(known.values()) if known else None, None)
    table.add_row("[bold]still to do", "", f"{len(todo)} of {len(rows)}", *cells[:-1])
    lines = ["Output and FLOPs are estimates; took: the last time, on any machine."]
    if known:
        lines.append(f"Time: at the rates of {device} in this store; for stages with parts, summed over processes.")
    unknown = f", {len(todo) - len(known)} stages not counted" if len(known) < len(todo) else ""
    if known and machine:
        lines.append(f"Still to do here: at least {_time(wall_clock(left, known, machine))} of wall-clock time{unknown}.")
    if total["flops"] and len(known) < len(todo):
        gpu = f"{_time(3600 * total['accelerator_hours'])} at {SUSTAINED / 1e12:.0f} TFLOP/s sustained"
        lines.append(f"A GPU would take about {gpu} for all FLOPs (assumed, not measured).")
    table.caption = "\n".join(lines)
    print_table(table)
    for row in rows:
        if row["note"]:
            print(f"{row['name']}: {row['note']}")


def _cells(size: float, flops: float, seconds: float | None, took: float | None) -> tuple[str, str, str, str]:
    return byte_count(size) if size else "-", f"{flops:.0e}" if flops else "-", _time(seconds), _time(took)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
