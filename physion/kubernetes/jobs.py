"""The kinds of jobs in which a cluster trains: PyTorchJob of Kubeflow's training operator, TrainJob of Kubeflow Trainer v2.

Each is filled in from a file of `jobs/`, and read back; a launcher and `physion status` know no more of a kind than this.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from physion.errors import ConfigError, PhysionError, nearest
from physion.kubernetes.cluster import Cluster, Conflict
from physion.kubernetes.pods import SECOND, name_of, refusal

Json = dict[str, Any]
HEARD_OF = 15.0  # seconds after which every controller must know what has been made
REFUSED = ("FailedCreate", "JobCreationFailed", "HeadlessServiceCreationFailed", "TrainJobResourcesCreationFailed")
IN_USE = "trainer.kubeflow.org/resource-in-use"  # the finalizer that Trainer takes from a runtime when no TrainJob names it


class JobKind(ABC):
    """A kind of job.

    name: as people write it. resource: as the API does. maker: who makes its pods. manifest: its file in `jobs/`, whose last
    document is the job. container: in each of its pods, the one that trains. job_label, index_label: of its pods, whose they
    are and which of them. success: the condition of a job that has succeeded. form: what a manifest must hold.
    """

    name: ClassVar[str]
    resource: ClassVar[str]
    maker: ClassVar[str]
    manifest: ClassVar[str]
    container: ClassVar[str]
    job_label: ClassVar[str]
    index_label: ClassVar[str]
    success: ClassVar[str]
    form: ClassVar[str]

    @abstractmethod
    def template(self, documents: list[Json]) -> Json:
        """The pod template in the documents of a manifest. Raises LookupError or TypeError if there is none."""

    @abstractmethod
    def shape(self, documents: list[Json], name: str, nodes: int, ranks: int) -> None:
        """Write how many pods of how many ranks into the documents; raises LookupError or TypeError where there is no place."""

    @abstractmethod
    def nodes(self, job: Json) -> int:
        """How many pods train together."""

    @abstractmethod
    def is_suspended(self, job: Json) -> bool:
        """Whether it waits to be let in by a queue."""

    @abstractmethod
    def refusals(self, cluster: Cluster, job: Json) -> list[str]:
        """Why pods could not be made, as events say."""

    def create(self, cluster: Cluster, documents: list[Json]) -> Json:
        """Create the job. Raises Conflict when there is one of its name."""
        return cluster.create(self.resource, documents[-1])

    def delete(self, cluster: Cluster, job: Json) -> None:
        """Delete the job, its pods first."""
        cluster.delete(self.resource, job, propagation="Foreground")

    def pods(self, cluster: Cluster, name: str) -> list[Json]:
        """The pods of a job, also those that are being deleted."""
        return cluster.listed("pods", f"{self.job_label}={name}")

    def is_first(self, pod: Json) -> bool:
        """Whether rank 0 is in it."""
        return bool(pod["metadata"]["labels"].get(self.index_label) == "0")

    def outcome(self, job: Json) -> str | None:
        """Succeeded or Failed; None while it goes on."""
        holds = {each["type"] for each in job.get("status", {}).get("conditions", []) if each["status"] == "True"}
        return "Succeeded" if self.success in holds else "Failed" if "Failed" in holds else None

    def why_failed(self, job: Json) -> str:
        """What its last condition says of its failure."""
        conditions = job["status"]["conditions"]
        return next(str(each["message"]) for each in reversed(conditions) if each["type"] == "Failed")


class PyTorchJob(JobKind):
    """Of the training operator. Only Workers, elastic; one that is lost is made anew under its name while the others wait."""

    name = "PyTorchJob"
    resource = "pytorchjobs"
    maker = "the training operator"
    manifest = "training.yaml"
    container = "pytorch"
    job_label = "training.kubeflow.org/job-name"
    index_label = "training.kubeflow.org/replica-index"
    success = "Succeeded"
    form = "no elastic PyTorchJob of Workers"

    def template(self, documents: list[Json]) -> Json:
        """Of the Workers."""
        (job,) = documents
        template: Json = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
        return template

    def shape(self, documents: list[Json], name: str, nodes: int, ranks: int) -> None:
        """As many replicas as an elastic job may have at least and at most."""
        spec = documents[-1]["spec"]
        elastic = spec["elasticPolicy"]
        spec["pytorchReplicaSpecs"]["Worker"]["replicas"] = elastic["minReplicas"] = elastic["maxReplicas"] = nodes
        spec["nprocPerNode"] = str(ranks)  # a string in the CRD

    def nodes(self, job: Json) -> int:
        """Replicas of the Workers."""
        return int(job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"])

    def is_suspended(self, job: Json) -> bool:
        """By its run policy."""
        return bool(job["spec"].get("runPolicy", {}).get("suspend"))

    def refusals(self, cluster: Cluster, job: Json) -> list[str]:
        """Events of the job itself."""
        about = f"involvedObject.uid={job['metadata']['uid']},type=Warning,reason=FailedCreatePod"
        return [refusal(event["message"]) for event in cluster.listed("events", fields=about)]


class TrainJob(JobKind):
    """Of Trainer, which makes a JobSet `NAME` of a Job `NAME-node-0`. When a pod is lost, all are made anew.

    Its pods' form stands in a TrainingRuntime of the same name, which goes with the job.
    """

    name = "TrainJob"
    resource = "trainjobs"
    maker = "Kubeflow Trainer"
    manifest = "trainjob.yaml"
    container = "node"
    job_label = "jobset.sigs.k8s.io/jobset-name"
    index_label = "batch.kubernetes.io/job-completion-index"
    success = "Complete"
    form = "no TrainingRuntime with a replicated job 'node' and no TrainJob with a trainer"

    def template(self, documents: list[Json]) -> Json:
        """Of the replicated job `node` of the runtime."""
        runtime, _ = documents
        (node,) = (each for each in runtime["spec"]["template"]["spec"]["replicatedJobs"] if each["name"] == "node")
        template: Json = node["template"]["spec"]["template"]
        return template

    def shape(self, documents: list[Json], name: str, nodes: int, ranks: int) -> None:
        """Into the trainer; and the name into what refers to it."""
        _, job = documents
        job["spec"]["trainer"] |= {"numNodes": nodes, "numProcPerNode": ranks}
        job["spec"]["runtimeRef"]["name"] = name
        (container,) = (each for each in self.template(documents)["spec"]["containers"] if each["name"] == self.container)
        for variable in container.get("env", []):
            if variable["name"] == "PET_RDZV_ENDPOINT":
                variable["value"] = f"{name}-node-0-0.{name}:29500"

    def nodes(self, job: Json) -> int:
        """Of the trainer."""
        return int(job["spec"]["trainer"]["numNodes"])

    def is_suspended(self, job: Json) -> bool:
        """By its own field."""
        return bool(job["spec"].get("suspend"))

    def refusals(self, cluster: Cluster, job: Json) -> list[str]:
        """Events of its Job (whose pods are refused), its JobSet (whose Job is) and its own; there is no condition."""
        found = []
        for name in (name_of(job), f"{name_of(job)}-node-0"):
            found += cluster.listed("events", fields=f"involvedObject.name={name},type=Warning")
        since = job["metadata"]["creationTimestamp"][:SECOND]  # an earlier one had the same name
        times = [(event.get("lastTimestamp") or event.get("eventTime") or since)[:SECOND] for event in found]
        refused = [event for event, time in zip(found, times, strict=True) if event["reason"] in REFUSED and time >= since]
        return [refusal(event["message"]) for event in refused]

    def delete(self, cluster: Cluster, job: Json) -> None:
        """Delete the job first: as long as it is there, Trainer makes anew what goes, and a change of it needs its webhook."""
        cluster.delete(self.resource, job)

    def create(self, cluster: Cluster, documents: list[Json]) -> Json:
        """The runtime first, without which a TrainJob is refused, even when it is only to go; so it goes after the job.

        Trainer sees to that by a finalizer, but a moment late: a job that is deleted in that moment could stay for ever.
        """
        runtime, job = documents
        runtime = runtime | {"metadata": runtime["metadata"] | {"finalizers": [IN_USE]}}
        try:
            cluster.create("trainingruntimes", runtime)
        except Conflict:  # of an earlier job, or of a launcher that ended before it made one
            owners = runtime["metadata"].get("ownerReferences", [])
            mine = {"spec": runtime["spec"], "metadata": {"finalizers": [IN_USE], "ownerReferences": owners}}
            old = cluster.patch("trainingruntimes", name_of(runtime), mine)
            if old is None or "deletionTimestamp" in old["metadata"]:
                raise
        until = time.monotonic() + HEARD_OF
        while True:
            try:
                made = cluster.create(self.resource, job)
                break
            except ConfigError as error:  # who checks it may not have heard of the runtime yet
                if "not found" not in str(error) or time.monotonic() > until:
                    raise
                cluster.pause(0.5)
        owner = {"apiVersion": job["apiVersion"], "kind": "TrainJob", "name": name_of(made), "uid": made["metadata"]["uid"]}
        try:
            cluster.patch("trainingruntimes", name_of(runtime), {"metadata": {"ownerReferences": [owner]}})
        except PhysionError:
            self.delete(cluster, made)
            raise
        return made


KINDS: dict[str, JobKind] = {kind.name.lower(): kind for kind in (PyTorchJob(), TrainJob())}


def kinds_of(cluster: Cluster) -> list[JobKind]:
    """Those that the cluster has, the preferred one first."""
    return [kind for kind in KINDS.values() if cluster.serves(kind.resource)]


def chosen(cluster: Cluster, name: str | None) -> JobKind:
    """The kind of this name, else the preferred one of the cluster. Raises ConfigError."""
    if name is not None:
        if name.lower() not in KINDS:
            raise ConfigError(
                f"--kind {name}: there is no such kind of job{nearest(name.lower(), list(KINDS))}; there are {', '.join(KINDS)}"
            )
        return KINDS[name.lower()]
    if not (there := kinds_of(cluster)):
        raise ConfigError(
            f"the cluster at {cluster.server} has neither PyTorchJobs (the Kubeflow training operator) nor TrainJobs (Kubeflow "
            "Trainer), which train: docs/kubernetes.md says how to install either"
        )
    return there[0]
