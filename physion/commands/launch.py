"""`physion launch`: one training as a job on a Kubernetes cluster."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from physion.commands import (
    AsJSON,
    Overrides,
    Precision,
    Preset,
    StoreURI,
    for_trainings,
    stopping,
    study,
    tell_result,
)
from physion.config.schema import holds_secret
from physion.errors import ConfigError, nearest
from physion.pipeline.graph import select_one
from physion.stages import STAGES, Kind

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Default: the kubeconfig's, else physion.", show_default=False)
]


def launch(
    name: Annotated[str, typer.Argument(metavar="STAGE", help="A training, such as train-steve.")],
    preset: Preset,
    store: StoreURI,
    overrides: Overrides = [],  # noqa: B006
    precision: Precision = None,
    image: Annotated[str | None, typer.Option(help="Image to use instead of the manifest's.")] = None,
    nodes: Annotated[int, typer.Option(help="Pods that train together.", min=1)] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs per pod.", min=0)] = 0,
    ranks: Annotated[
        int | None, typer.Option(help="Processes per pod. Default: one per GPU.", min=1, show_default=False)
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Kueue LocalQueue that admits the job.")] = None,
    namespace: Namespace = None,
    jobs: Annotated[
        Path, typer.Option(envvar="PHYSION_JOBS", metavar="FOLDER", help="Folder with the manifests of both kinds of jobs.")
    ] = Path("jobs"),
    kind: Annotated[
        str | None,
        typer.Option(help="pytorchjob or trainjob. Default: what the cluster has, with both PyTorchJobs.", show_default=False),
    ] = None,
    patch: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML to merge into the pods' spec: tolerations, nodeSelector, ...")
    ] = None,
    pod_name: Annotated[str | None, typer.Option(envvar="POD_NAME", hidden=True)] = None,
    pod_uid: Annotated[str | None, typer.Option(envvar="POD_UID", hidden=True)] = None,
    pod_namespace: Annotated[str | None, typer.Option(envvar="POD_NAMESPACE", hidden=True)] = None,
    as_json: AsJSON = False,
) -> None:
    """Train on a cluster: create a PyTorchJob or TrainJob, or join the running one, follow it, and exit with its exit code."""
    for_pods(preset, overrides)
    overrides = for_trainings(preset, overrides, precision=precision)
    graph, target = study(preset, overrides, store)
    _check(name, jobs)  # now that plug-ins have added theirs
    node = select_one(graph, name, {})
    from physion.pipeline.runner import Done, published_input, standing

    if manifest := standing(node, graph, target):
        tell_result(Done(node, manifest, cached=True), target, as_json)
        return
    for source in node.inputs.values():
        published_input(graph[source], graph, target).close()

    from physion.kubernetes.cluster import PATIENCE, Cluster
    from physion.kubernetes.jobs import chosen
    from physion.kubernetes.launcher import Launcher
    from physion.kubernetes.manifest import Shape, job_name, read_mapping, training_job

    if pod_name and namespace not in (None, pod_namespace):
        raise ConfigError(f"--namespace {namespace}: a job is owned by this pod, so it must be in {pod_namespace}, too")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": pod_uid} if pod_name and pod_uid else None
    shape = Shape(nodes, gpus, ranks, image, queue, read_mapping(patch, "--patch") if patch else None)
    environment = {"PHYSION_PRESET": preset, "PHYSION_STORE": target.uri, "PHYSION_SET": " ".join(overrides)}
    notes = {"physion/fingerprint": node.fingerprint, "physion/store": target.uri, "physion/instance": node.name}
    started = time.monotonic()
    with stopping() as stop:
        cluster = Cluster(namespace or pod_namespace, PATIENCE, stop)
        made = chosen(cluster, kind)
        called = job_name(name, node.fingerprint, target.uri)
        documents = training_job(made, jobs, name, called, shape, environment, notes)
        Launcher(cluster, made, documents, owner, lambda: standing(node, graph, target) is not None).run()
    manifest = standing(node, graph, target)
    assert manifest is not None  # what Launcher.run promises
    tell_result(Done(node, manifest, cached=False, seconds=time.monotonic() - started), target, as_json)


def _check(name: str, jobs: Path) -> None:
    known = STAGES.of_kind(Kind.TRAINING)
    if name not in known:
        raise ConfigError(f"{name} is not a training{nearest(name, known)}; there are {', '.join(known)}")
    if not jobs.is_dir():
        raise ConfigError(f"no folder {jobs}: run it where jobs/ lies, or name that folder with --jobs")


def for_pods(preset: str, overrides: list[str]) -> None:
    """Raise ConfigError for anything that cannot be passed on to pods."""
    if preset.endswith((".yaml", ".yml")) and not Path(preset).is_absolute():
        raise ConfigError(
            f"preset {preset}: pods cannot see this local file; name a preset of the image and override the rest with --set, "
            "or mount the file in the pods and give its absolute path"
        )
    for override in overrides:
        if holds_secret(override):
            raise ConfigError(
                f"--set {override.partition('=')[0]}: the cluster would show the credentials in this address to everybody: "
                "put it into a preset file mounted from a Secret"
            )
        if re.search(r"\s", override):
            raise ConfigError(f"--set '{override}': overrides for a cluster must not contain spaces (write lists as [1,2])")
