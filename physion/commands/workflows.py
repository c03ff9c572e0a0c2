"""Workflows on a Kubernetes cluster: `physion submit`, `status` and `logs`."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from physion.commands import AsJSON, Overrides, stopping
from physion.commands.launch import Namespace, for_pods
from physion.config.load import load_config
from physion.errors import ConfigError, Interrupted, Preempted, of_exit_code
from physion.progress import duration, say

if TYPE_CHECKING:
    from physion.kubernetes.cluster import Cluster

Workflow = Annotated[str, typer.Argument(help="Its name, or @latest.")]
FOLLOW_INTERVAL = 2.0  # seconds
COLOURS = {"Succeeded": "green", "Running": "cyan", "Failed": "red", "Error": "red"}


def submit(
    preset: Annotated[
        str | None, typer.Option("--preset", "-p", envvar="PHYSION_PRESET", help="Default: the cluster's.", show_default=False)
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", "-s", envvar="PHYSION_STORE", help="As pods see it. Default: the cluster's.", show_default=False
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    parameters: Annotated[
        list[str], typer.Option("--param", metavar="NAME=VALUE", help="Of the workflow: train-steve-gpus=8. Repeatable.")
    ] = [],  # noqa: B006
    namespace: Namespace = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it, and end as it ends.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Start the whole study as a workflow on a cluster, after a check of its configuration."""
    given = {"preset": preset, "store": store, "overrides": " ".join(overrides)}
    chosen = {key: value for key, value in given.items() if value} | dict(_pair(text) for text in parameters)
    if "://" not in chosen.get("store", "://"):
        raise ConfigError(
            f"store {chosen['store']}: a folder of this machine, which pods do not see; name an s3://bucket/prefix"
        )
    for_pods(chosen.get("preset", ""), overrides)
    if "preset" in chosen:
        load_config(chosen["preset"], chosen.get("overrides", "").split())

    from physion.kubernetes import workflows
    from physion.kubernetes.cluster import PATIENCE, Cluster

    cluster = Cluster(namespace)
    known = workflows.template_parameters(cluster)
    workflows.check_parameters(chosen, known)
    if "preset" not in chosen and (default := known.get("preset")):
        load_config(default, chosen.get("overrides", "").split())
    name = workflows.submit(cluster, chosen)
    if as_json and not wait:
        print(json.dumps({"name": name, "namespace": cluster.namespace, "parameters": chosen}, indent=1))
    elif not as_json:
        where = f" -n {cluster.namespace}" if namespace else ""
        print(f"submitted {name} to namespace {cluster.namespace}")
        print(f"  physion status {name}{where}\n  physion logs {name} --follow{where}")
    if wait:
        cluster.patience = PATIENCE
        _wait(cluster, name, as_json)


def status(
    workflow: Annotated[str | None, typer.Argument(help="Its name, or @latest; without, a list of all.")] = None,
    namespace: Namespace = None,
    as_json: AsJSON = False,
) -> None:
    """How far a workflow is, why it waits, what went wrong and what to do about it."""
    from physion.kubernetes import workflows
    from physion.kubernetes.cluster import Cluster

    cluster = Cluster(namespace)
    if workflow is not None:
        _show(cluster, workflows.found(cluster, workflow), as_json)
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
        print(json.dumps(rows, indent=1))
    elif not rows:
        print(f"no workflow in namespace {cluster.namespace}; physion submit starts one")
    else:
        table = Table("workflow", "phase", "steps", "started", "took", box=None, pad_edge=False)
        for row in rows:
            table.add_row(row["name"], _coloured(row["phase"]), row["progress"], row["created"], _took(row["seconds"]))
        Console().print(table)


def logs(
    workflow: Workflow,
    stage: Annotated[str | None, typer.Argument(help="Only of this: train-steve, frames-test, ...", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the workflow has ended.")] = False,
    namespace: Namespace = None,
) -> None:
    """The logs of a workflow's pods, each line with the name of its step."""
    from physion.kubernetes import workflows
    from physion.kubernetes.cluster import PATIENCE, Cluster
    from physion.kubernetes.pods import PodLog, has_started

    with stopping() as stop:
        cluster = Cluster(namespace, PATIENCE if follow else 0.0, stop)
        found = workflows.found(cluster, workflow)
        readers: dict[str, PodLog] = {}
        while True:
            over = workflows.phase(found) in workflows.ENDED
            nodes = workflows.pod_nodes(found, stage)
            for node, pod in workflows.pods_of(cluster, found, nodes):
                if node["id"] in readers or not (follow or has_started(pod, workflows.MAIN)):
                    continue
                reader = PodLog(cluster, pod, workflows.MAIN, partial(_prefixed, node["displayName"]), follow)
                readers[node["id"]] = reader
                reader.start()
                if not follow:
                    reader.join()  # one after the other
            if over or not follow:
                break
            cluster.pause(FOLLOW_INTERVAL)
            found = workflows.found(cluster, found["metadata"]["name"])
        for reader in readers.values():
            reader.join()
    for node in nodes:
        if node["id"] not in readers and node.get("phase") in workflows.ENDED:
            say(f"{node['displayName']}: its pod is gone, and its log with it ({node['phase']})")


def _prefixed(name: str, line: str) -> None:
    if not (line.startswith("time=") and " argo=true" in line):  # what Argo's own process adds to a stage's log
        print(f"{name} | {line}", flush=True)


def _wait(cluster: Cluster, name: str, as_json: bool) -> None:
    """Say what changes until the workflow has ended, and end as it ended."""
    from physion.kubernetes import workflows

    said: dict[str, str] = {}
    try:
        with stopping() as stop:
            cluster.stop = stop
            while workflows.phase(found := workflows.found(cluster, name)) not in workflows.ENDED:
                for row in workflows.report(cluster, found):
                    line = "; ".join([row["phase"], *row["messages"]])
                    if said.get(row["name"]) != line:
                        said[row["name"]] = line
                        say(f"{row['name']}: {line}")
                cluster.pause(FOLLOW_INTERVAL)
    except (Interrupted, Preempted) as error:
        raise type(error)(
            f"workflow {name} goes on without this command; kubectl delete workflow {name} would end it"
        ) from error
    _show(cluster, found, as_json)
    if code := workflows.exit_code(found):
        raise of_exit_code(code, f"workflow {name}: {workflows.phase(found)}; physion logs {name} says more")


def _show(cluster: Cluster, workflow: dict[str, Any], as_json: bool) -> None:
    from physion.kubernetes import workflows

    rows, name, phase = workflows.report(cluster, workflow), workflow["metadata"]["name"], workflows.phase(workflow)
    progress = workflow.get("status", {}).get("progress", "")
    if as_json:
        print(json.dumps({"name": name, "phase": phase, "progress": progress, "steps": rows}, indent=1))
        return
    table = Table("step", "phase", "progress", "took", box=None, pad_edge=False)
    reached = [row for row in rows if row["phase"] not in ("Omitted", "Skipped")]
    for row in reached:
        done = row["progress"] if row["phase"] == "Running" else ""
        table.add_row(row["name"], _coloured(row["phase"]), done, _took(row["seconds"]))
    console = Console()
    console.print(f"{name}: {_coloured(phase)} {progress}", highlight=False)
    if reached:
        console.print(table)
    for kind, why in (("Skipped", "had nothing to do"), ("Omitted", "were not reached")):
        if count := sum(row["phase"] == kind for row in rows):
            print(f"{count} more {why}")
    if message := workflow.get("status", {}).get("message"):
        print(message)
    for row in rows:
        for message in row["messages"]:
            print(f"{row['name']}: {message}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--param {text}: not of the form NAME=VALUE, such as train-steve-gpus=8")
    return name, value


def _coloured(phase: str) -> str:
    return f"[{COLOURS[phase]}]{phase}[/]" if phase in COLOURS else phase


def _took(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
