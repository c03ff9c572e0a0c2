"""`physion status`: the progress of workflows on a Kubernetes cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from physion.commands import AsJSON, print_json, print_table
from physion.commands.launch import Namespace
from physion.progress import duration

if TYPE_CHECKING:
    from physion.kubernetes.cluster import Cluster

COLORS = {"Succeeded": "green", "Running": "cyan", "Failed": "red", "Error": "red"}


def status(
    workflow: Annotated[str | None, typer.Argument(help="Its name, or @latest; default: list all.")] = None,
    namespace: Namespace = None,
    as_json: AsJSON = False,
) -> None:
    """Show how far a workflow is, why it waits, what went wrong and what to do about it."""
    from physion.kubernetes import workflows
    from physion.kubernetes.cluster import Cluster

    cluster = Cluster(namespace)
    if workflow is not None:
        show(cluster, workflows.found(cluster, workflow), as_json)
        return
    rows: list[dict[str, Any]] = [
        {
            "name": each["metadata"]["name"],
            "phase": workflows.phase(each),
            "progress": each.get("status", {}).get("progress", ""),
            "created": each["metadata"]["creationTimestamp"],
            "seconds": workflows.seconds(each.get("status", {})),
        }
        for each in workflows.newest_first(cluster)
    ]
    if as_json:
        print_json(rows)
    elif not rows:
        print(f"no workflow in namespace {cluster.namespace}; physion submit starts one")
    else:
        table = Table("workflow", "phase", "steps", "started", "took", box=None, pad_edge=False)
        for row in rows:
            table.add_row(row["name"], _colored(row["phase"]), row["progress"], row["created"], _took(row["seconds"]))
        print_table(table)


def show(cluster: Cluster, workflow: dict[str, Any], as_json: bool) -> None:
    """Print the progress of one workflow."""
    from physion.kubernetes import workflows

    rows, name, phase = workflows.report(cluster, workflow), workflow["metadata"]["name"], workflows.phase(workflow)
    progress = workflow.get("status", {}).get("progress", "")
    if as_json:
        print_json({"name": name, "phase": phase, "progress": progress, "steps": rows})
        return
    table = Table("step", "phase", "progress", "took", box=None, pad_edge=False)
    reached = [row for row in rows if row["phase"] not in ("Omitted", "Skipped")]
    for row in reached:
        done = row["progress"] if row["phase"] == "Running" else ""
        table.add_row(escape(row["name"]), _colored(row["phase"]), done, _took(row["seconds"]))
    Console().print(f"{name}: {_colored(phase)} {progress}", highlight=False)
    if reached:
        print_table(table)
    for kind, why in (("Skipped", "had nothing to do"), ("Omitted", "were not reached")):
        if count := sum(row["phase"] == kind for row in rows):
            print(f"{count} more {why}")
    if message := workflow.get("status", {}).get("message"):
        print(message)
    for row in rows:
        for message in row["messages"]:
            print(f"{row['name']}: {message}")


def _colored(phase: str) -> str:
    return f"[{COLORS[phase]}]{phase}[/]" if phase in COLORS else phase


def _took(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
