"""`physion logs`: the logs of a workflow's pods."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from physion.commands import stopping
from physion.commands.launch import Namespace
from physion.progress import say

Workflow = Annotated[str, typer.Argument(help="Its name, or @latest.")]
FOLLOW_INTERVAL = 2.0  # seconds
READING = 0.05


def logs(
    workflow: Workflow,
    stage: Annotated[str | None, typer.Argument(help="Only this: train-steve, frames-test, ...", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep following until the workflow has ended.")] = False,
    namespace: Namespace = None,
) -> None:
    """Show the logs of a workflow's pods, each line with the name of its step."""
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
                while not follow and reader.is_alive():  # one after the other
                    cluster.pause(READING)
            if over or not follow:
                break
            cluster.pause(FOLLOW_INTERVAL)
            found = workflows.found(cluster, found["metadata"]["name"])
        while any(reader.is_alive() for reader in readers.values()):
            cluster.pause(READING)
    for node in nodes:
        if node["id"] in readers and (trouble := readers[node["id"]].trouble):
            say(f"{node['displayName']}: the rest of its log cannot be read: {trouble}")
        if node["id"] not in readers and node.get("phase") in workflows.ENDED:
            say(f"{node['displayName']}: its pod is gone, and its log with it ({node['phase']})")


def _prefixed(name: str, line: str) -> None:
    if not (line.startswith("time=") and " argo=true" in line):  # what Argo's own process adds to a stage's log
        print(f"{name} | {line}", flush=True)
