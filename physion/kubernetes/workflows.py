"""Workflows for people without the argo CLI: what is submitted, how far it is and why it waits."""

from __future__ import annotations

import base64
import gzip
import json
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from physion.errors import ConfigError, nearest
from physion.kubernetes.cluster import Cluster
from physion.kubernetes.jobs import JobKind, kinds_of
from physion.kubernetes.launcher import first_failure
from physion.kubernetes.pods import ending, is_gated, last_lines, name_of, obstacle, refusal
from physion.kubernetes.queue import why_queued

TEMPLATE = "physion-vqa"
MAIN = "main"  # Argo's name for the container that works
OF_WORKFLOW = "workflows.argoproj.io/workflow"
NODE_ID = "workflows.argoproj.io/node-id"
SHOWN = ("Pod", "Retry", "Skipped")
ENDED = ("Succeeded", "Failed", "Error")


def installed(cluster: Cluster) -> dict[str, Any]:
    """The WorkflowTemplate. Raises ConfigError when it is not there."""
    template = cluster.find("workflowtemplates", TEMPLATE)
    if template is None:
        raise ConfigError(
            f"no WorkflowTemplate {TEMPLATE} in namespace {cluster.namespace}: kubectl apply -k k8s/overlays/... first, "
            "or name its namespace with -n"
        )
    return template


def require_tasks(template: dict[str, Any], needed: Iterable[str]) -> None:
    """Raise ConfigError when a study needs tasks that the workflow does not have, which would show only once it runs."""
    known = [task["name"] for each in template["spec"].get("templates", []) for task in each.get("dag", {}).get("tasks", [])]
    if "plan" in known and (absent := [name for name in dict.fromkeys(needed) if name not in known]):
        raise ConfigError(
            f"WorkflowTemplate {TEMPLATE} has no task {', '.join(absent)}: `python -m physion.kubernetes.template --preset "
            "...` writes those of a preset, and kubectl apply -k k8s/overlays/... brings them in"
        )


def parameters_of(cluster: Cluster, template: dict[str, Any]) -> dict[str, str | None]:
    """The workflow's parameters and their defaults (None: given by a ConfigMap that is not there)."""
    defaults = {}
    maps: dict[str, dict[str, Any]] = {}
    for parameter in template["spec"].get("arguments", {}).get("parameters", []):
        source = parameter.get("valueFrom", {}).get("configMapKeyRef")
        if source and source["name"] not in maps:
            maps[source["name"]] = (cluster.find("configmaps", source["name"]) or {}).get("data", {})
        defaults[parameter["name"]] = maps[source["name"]].get(source["key"]) if source else parameter.get("value")
    return defaults


def check_parameters(given: Mapping[str, str], known: Mapping[str, Any]) -> None:
    """Raise ConfigError for a parameter that the workflow does not have."""
    for name in given:
        if name not in known:
            raise ConfigError(f"--param {name}: no such parameter{nearest(name, list(known))}; there are {', '.join(known)}")


def submit(cluster: Cluster, parameters: Mapping[str, str]) -> str:
    """Create a workflow with these parameters. Returns its name."""
    # Named here, not by the API server: a request that is repeated because its answer was lost makes no second workflow.
    name = f"{TEMPLATE}-{secrets.token_hex(3)}"
    cluster.create(
        "workflows",
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": name},
            "spec": {
                "workflowTemplateRef": {"name": TEMPLATE},
                "arguments": {"parameters": [{"name": key, "value": value} for key, value in parameters.items()]},
            },
        },
    )
    return name


def found(cluster: Cluster, name: str) -> dict[str, Any]:
    """A workflow by name, or the newest as `@latest`. Raises ConfigError naming the nearest."""
    if name != "@latest" and (workflow := cluster.find("workflows", name)):
        return workflow
    known = newest_first(cluster)
    if name == "@latest" and known:
        return known[0]
    if not known:
        raise ConfigError(f"there is no workflow in namespace {cluster.namespace}: physion submit starts one, -n names another")
    names = [name_of(each) for each in known]
    raise ConfigError(f"there is no workflow {name} in namespace {cluster.namespace}{nearest(name, names)}; newest: {names[0]}")


def newest_first(cluster: Cluster) -> list[dict[str, Any]]:
    """All workflows of the namespace."""
    return sorted(cluster.listed("workflows"), key=lambda each: str(each["metadata"]["creationTimestamp"]), reverse=True)


def phase(workflow: dict[str, Any]) -> str:
    """Pending, Running, Succeeded, Failed or Error."""
    return str(workflow.get("status", {}).get("phase") or "Pending")


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes that do a stage's work, in the order of their starts: pods, or what retries them instead of each attempt."""
    nodes = _nodes(workflow)
    attempts = {child for node in nodes.values() if node["type"] == "Retry" for child in node.get("children", [])}
    shown = [node for node in nodes.values() if node["type"] in SHOWN and node["id"] not in attempts]
    return sorted(shown, key=lambda node: str(node.get("startedAt") or "9"))


def attempts_of(workflow: dict[str, Any], step: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod nodes of a step, the last attempt last."""
    nodes = _nodes(workflow)
    if step["type"] != "Retry":
        return [step]
    return [nodes[child] for child in step.get("children", []) if child in nodes and nodes[child]["type"] == "Pod"]


def pod_nodes(workflow: dict[str, Any], stage: str | None) -> list[dict[str, Any]]:
    """The nodes that are pods, of one stage or all, in the order of their starts.

    Raises ConfigError when the workflow has steps, but none of this name.
    """
    nodes = [node for node in _nodes(workflow).values() if node["type"] == "Pod"]
    names = sorted({_step_name(node) for node in nodes})
    if stage is not None and names and stage not in names and phase(workflow) in ENDED:
        raise ConfigError(f"{name_of(workflow)} has run no step {stage}{nearest(stage, names)}; it has run {', '.join(names)}")
    chosen = [node for node in nodes if stage in (None, _step_name(node), node["displayName"])]
    return sorted(chosen, key=lambda node: str(node.get("startedAt") or "9"))


def pods_of(
    cluster: Cluster, workflow: dict[str, Any], nodes: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Those of these nodes whose pods are still there, with them."""
    pods = cluster.listed("pods", f"{OF_WORKFLOW}={name_of(workflow)}")
    by_node = {pod["metadata"].get("annotations", {}).get(NODE_ID): pod for pod in pods}
    return [(node, by_node[node["id"]]) for node in nodes if node["id"] in by_node]


def _step_name(node: dict[str, Any]) -> str:
    """`train-dvae` of its attempt `train-dvae(0:train-dvae)(1)`."""
    return str(node["displayName"]).partition("(")[0]


def _nodes(workflow: dict[str, Any]) -> dict[str, Any]:
    status = workflow.get("status", {})
    if packed := status.get("compressedNodes"):  # of a workflow that is too big for an object of Kubernetes
        found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
        return found
    return dict(status.get("nodes") or {})


def exit_code(workflow: dict[str, Any]) -> int:
    """0 when it succeeded, else that of the step that failed first."""
    if phase(workflow) == "Succeeded":
        return 0
    ends = []
    for step in steps(workflow):
        if step["phase"] in ("Failed", "Error") and (tried := attempts_of(workflow, step)):
            code = int(tried[-1].get("outputs", {}).get("exitCode") or 75)
            ends.append({"exitCode": code, "finishedAt": step.get("finishedAt")})
    return first_failure(ends)


def seconds(thing: Mapping[str, Any]) -> float | None:
    """How long a workflow or node has taken so far; None when it has not begun."""
    if not thing.get("startedAt"):
        return None
    end = datetime.fromisoformat(thing["finishedAt"]) if thing.get("finishedAt") else datetime.now(UTC)
    return max(0.0, (end - datetime.fromisoformat(thing["startedAt"])).total_seconds())


def report(cluster: Cluster, workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each step: what it is, how far, and what is in its way or went wrong."""
    there = {node["id"]: pod for node, pod in pods_of(cluster, workflow, pod_nodes(workflow, None))}
    rows = []
    for step in steps(workflow):
        mine = [there[each["id"]] for each in attempts_of(workflow, step) if each["id"] in there]
        messages = []
        if step["phase"] in ("Failed", "Error"):
            last = attempts_of(workflow, step)[-1:]  # of a step that was tried again, the step itself only says that it was
            messages = [str(each["message"]) for each in last or [step] if each.get("message")]
            said = [line for pod in mine[-1:] for line in last_lines(cluster, pod, MAIN, 50) if line.startswith("error: ")]
            messages += [line for line in said[-1:] if line.removeprefix("error: ") not in "".join(messages)]
        elif step["phase"] in ("Pending", "Running"):
            messages += [text for pod in mine if (text := _waits(cluster, pod))]
            if not mine:  # the API server did not let Argo make the pod
                messages += [refusal(each["message"]) for each in attempts_of(workflow, step)[-1:] if each.get("message")]
            for kind, job in _jobs(cluster, mine):
                if kind.is_suspended(job):
                    messages.append(f"{kind.name} {name_of(job)} is suspended: {why_queued(cluster, job)}")
                    continue
                workers = kind.pods(cluster, name_of(job))
                messages += [f"{name_of(pod)}: {text}" for pod in workers if (text := _trouble(pod, kind.container))]
                if len(workers) < kind.nodes(job):
                    messages += kind.refusals(cluster, job)[-1:]
        rows.append(
            {
                "name": step["displayName"],
                "phase": step["phase"],
                "progress": step.get("progress", ""),
                "seconds": seconds(step),
                "messages": messages,
            }
        )
    return rows


def _jobs(cluster: Cluster, launchers: list[dict[str, Any]]) -> list[tuple[JobKind, dict[str, Any]]]:
    """The jobs that these pods made, or joined."""
    component = "app.kubernetes.io/component"
    identities = {
        pod["metadata"]["uid"] for pod in launchers if pod["metadata"]["labels"].get(component, "").endswith("-launcher")
    }
    if not identities:
        return []
    return [
        (kind, job)
        for kind in kinds_of(cluster)
        for job in cluster.listed(kind.resource)
        if identities & {owner["uid"] for owner in job["metadata"].get("ownerReferences", [])}
    ]


def _waits(cluster: Cluster, pod: dict[str, Any]) -> str | None:
    return why_queued(cluster, pod) if is_gated(pod) else obstacle(pod)


def _trouble(pod: dict[str, Any], container: str) -> str | None:
    end = ending(pod, container)
    return obstacle(pod) or (f"ended with exit code {end['exitCode']}" if end and end["exitCode"] else None)
