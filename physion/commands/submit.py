"""`physion submit`: the whole study as a workflow on a Kubernetes cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from physion.commands import AsJSON, Overrides, Sweep, print_json, stopping
from physion.commands.launch import Namespace, for_pods
from physion.commands.status import show
from physion.config.load import load_config, variants
from physion.config.schema import Study
from physion.errors import ConfigError, Interrupted, Preempted, of_exit_code
from physion.progress import say

if TYPE_CHECKING:
    from physion.kubernetes.cluster import Cluster

LOOK_INTERVAL = 2.0  # seconds


def submit(
    preset: Annotated[
        str | None, typer.Option("--preset", "-p", envvar="PHYSION_PRESET", help="Default: the cluster's.", show_default=False)
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", "-s", envvar="PHYSION_STORE", help="As seen by the pods. Default: the cluster's.", show_default=False
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    sweep: Sweep = [],  # noqa: B006
    parameters: Annotated[
        list[str], typer.Option("--param", metavar="NAME=VALUE", help="Workflow parameter: train-steve-gpus=8. Repeatable.")
    ] = [],  # noqa: B006
    namespace: Namespace = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it, and exit with its result.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Start the whole study as a workflow on a cluster, after checking its configuration.

    With --sweep, one workflow runs all variants; what they share is made once.
    """
    given = {"preset": preset, "store": store, "overrides": " ".join(overrides), "sweep": " ".join(sweep)}
    chosen = {key: value for key, value in given.items() if value} | dict(_pair(text) for text in parameters)
    if "://" not in chosen.get("store", "://"):
        raise ConfigError(f"store {chosen['store']}: pods cannot see this local folder; name an s3://bucket/prefix")
    for variant in variants(sweep):
        for_pods(chosen.get("preset", ""), [*overrides, *variant])
    studies = _studies(chosen["preset"], chosen) if "preset" in chosen else []

    from physion.kubernetes import workflows
    from physion.kubernetes.cluster import PATIENCE, Cluster
    from physion.kubernetes.tasks import task_of
    from physion.pipeline.graph import build_graph

    cluster = Cluster(namespace)
    template = workflows.installed(cluster)
    known = workflows.parameters_of(cluster, template)
    workflows.check_parameters(chosen, known)
    if not studies and (default := known.get("preset")):
        studies = _studies(default, chosen)
    workflows.require_tasks(template, (task_of(node) for study in studies for node in build_graph(study).values()))
    name = workflows.submit(cluster, chosen)
    if as_json and not wait:
        print_json({"name": name, "namespace": cluster.namespace, "parameters": chosen})
    elif not as_json:
        where = f" -n {cluster.namespace}" if namespace else ""
        print(f"submitted {name} to namespace {cluster.namespace}")
        print(f"  physion status {name}{where}\n  physion logs {name} --follow{where}")
    if wait:
        cluster.patience = PATIENCE
        _wait(cluster, name, as_json)


def _studies(preset: str, chosen: Mapping[str, str]) -> list[Study]:
    """What a workflow with these parameters will make, each variant."""
    overrides = chosen.get("overrides", "").split()
    return [load_config(preset, [*overrides, *variant]) for variant in variants(chosen.get("sweep", "").split())]


def _wait(cluster: Cluster, name: str, as_json: bool) -> None:
    """Report changes until the workflow has ended, and exit with its result."""
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
                cluster.pause(LOOK_INTERVAL)
    except (Interrupted, Preempted) as error:
        raise type(error)(
            f"workflow {name} continues without this command; kubectl delete workflow {name} would end it"
        ) from error
    show(cluster, found, as_json)
    if code := workflows.exit_code(found):
        raise of_exit_code(code, f"workflow {name}: {workflows.phase(found)}; physion logs {name} says more")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--param {text}: not of the form NAME=VALUE, such as train-steve-gpus=8")
    return name, value
