from pathlib import Path

import pytest
import urllib3
import yaml

from physion.errors import ConfigError
from physion.kubernetes.jobs import KINDS, chosen
from physion.kubernetes.launcher import first_failure
from physion.kubernetes.manifest import Shape, job_name, merged, read_mapping, training_job
from physion.kubernetes.pods import PodLog, obstacle
from physion.kubernetes.queue import QUEUED, why_queued
from physion.stages import STAGES, Kind

ROOT = Path(__file__).parents[2]
MANIFEST = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "train-dvae", "namespace": "elsewhere", "labels": {"mine": "kept"}},
    "spec": {
        "nprocPerNode": "1",
        "elasticPolicy": {"rdzvBackend": "c10d", "minReplicas": 1, "maxReplicas": 1},
        "pytorchReplicaSpecs": {
            "Worker": {
                "replicas": 1,
                "restartPolicy": "ExitCode",
                "template": {
                    "spec": {
                        "nodeSelector": {"disk": "fast"},
                        "containers": [
                            {
                                "name": "pytorch",
                                "image": "physion:latest",
                                "env": [
                                    {
                                        "name": "PHYSION_STORE",
                                        "valueFrom": {"configMapKeyRef": {"name": "physion", "key": "store"}},
                                    },
                                    {"name": "AWS_REGION", "value": "eu-north-1"},
                                ],
                                "resources": {"limits": {"memory": "8Gi", "nvidia.com/gpu": 1}},
                            }
                        ],
                    }
                },
            }
        },
    },
}
ENVIRONMENT = {"PHYSION_PRESET": "tiny", "PHYSION_STORE": "s3://b/p", "PHYSION_SET": "train-dvae.optim.lr=1"}


PYTORCHJOB, TRAINJOB = KINDS["pytorchjob"], KINDS["trainjob"]


@pytest.fixture
def jobs(tmp_path):
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(MANIFEST))
    return tmp_path


def built(jobs, **shape):
    (job,) = training_job(
        PYTORCHJOB, jobs, "train-dvae", "train-dvae-12", Shape(**shape), ENVIRONMENT, {"physion/store": "s3://b/p"}
    )
    pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    return job, pod, pod["containers"][0]


def test_the_shape_of_the_command_line_replaces_that_of_the_manifest(jobs):
    job, _, container = built(jobs, nodes=3, gpus=2, image="registry/physion:1", queue="research")
    assert job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 3
    assert job["spec"]["elasticPolicy"] == {"rdzvBackend": "c10d", "minReplicas": 3, "maxReplicas": 3}
    assert job["spec"]["nprocPerNode"] == "2"  # a string in the CRD
    assert container["image"] == "registry/physion:1"
    by_digest = f"registry:5000/physion@sha256:{'0123456789abcdef' * 4}"
    assert built(jobs, image=by_digest)[2]["image"] == by_digest
    assert container["resources"] == {"limits": {"memory": "8Gi", "nvidia.com/gpu": 2}}
    metadata = job["metadata"]
    assert (metadata["name"], "namespace" in metadata) == ("train-dvae-12", False)
    assert metadata["labels"]["mine"] == "kept"
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert metadata["annotations"] == {"physion/store": "s3://b/p"}


def test_without_gpus_none_is_asked_for_and_ranks_can_differ_from_gpus(jobs):
    job, _, container = built(jobs, ranks=4)
    assert container["resources"] == {"limits": {"memory": "8Gi"}}
    assert container["image"] == "physion:latest"
    assert job["spec"]["nprocPerNode"] == "4"
    assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]


def test_variables_of_the_command_line_win_over_the_manifests_and_others_stay(jobs):
    _, _, container = built(jobs)
    assert {each["name"]: each.get("value") for each in container["env"]} == ENVIRONMENT | {"AWS_REGION": "eu-north-1"}


def test_a_patch_is_merged_into_the_pods(jobs):
    patch = {
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "containers": [{"name": "pytorch", "resources": {"limits": {"memory": "64Gi"}}}],
    }
    _, pod, container = built(jobs, patch=patch, gpus=1)
    assert pod["nodeSelector"] == {"disk": "fast", "gpu": "h100"}
    assert pod["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    assert container["resources"] == {"limits": {"memory": "64Gi", "nvidia.com/gpu": 1}}
    assert container["image"] == "physion:latest"


def test_merging():
    assert merged({"a": [1, 2], "b": {"c": 1, "d": 2}}, {"a": [3], "b": {"c": None}}) == {"a": [3], "b": {"d": 2}}
    assert merged({"containers": [{"name": "a", "x": 1}]}, {"containers": [{"name": "b"}, {"name": "a", "x": 2}]}) == {
        "containers": [{"name": "a", "x": 2}, {"name": "b"}]
    }


@pytest.mark.parametrize("text", ["kind: Job", "spec: {pytorchReplicaSpecs: {Worker: {template: {spec: {containers: []}}}}}"])
def test_a_manifest_that_is_no_elastic_job_is_refused_by_name(jobs, text):
    (jobs / "training.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"training\.yaml: no elastic PyTorchJob of Workers with a container 'pytorch'"):
        built(jobs)


@pytest.mark.parametrize("text", ["tolerations: [", "tolerations: 2026-99-99", "[" * 3000], ids=lambda text: text[:40])
def test_a_patch_that_is_no_yaml_is_refused_by_name(tmp_path, text):
    (tmp_path / "pod.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"--patch .*pod\.yaml: (not valid YAML|nested too deep)"):
        read_mapping(tmp_path / "pod.yaml", "--patch")


def test_a_trainjob_and_the_runtime_that_it_names():
    shape = Shape(nodes=3, gpus=2, image="registry/physion:1", queue="research", patch={"priorityClassName": "high"})
    runtime, job = training_job(TRAINJOB, ROOT / "jobs", "train-dvae", "train-dvae-12", shape, ENVIRONMENT, {"physion/a": "b"})
    assert job["spec"]["trainer"] == {"numNodes": 3, "numProcPerNode": 2}
    assert job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": "train-dvae-12"}
    for each in (runtime, job):
        assert (each["metadata"]["name"], each["metadata"]["annotations"]) == ("train-dvae-12", {"physion/a": "b"})
    queue = "kueue.x-k8s.io/queue-name"
    assert (runtime["metadata"]["labels"].get(queue), job["metadata"]["labels"][queue]) == (None, "research")
    pod = TRAINJOB.template([runtime, job])["spec"]
    assert pod["priorityClassName"] == "high"
    (container,) = pod["containers"]
    assert container["image"] == "registry/physion:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert ENVIRONMENT.items() <= given.items()
    assert given["PET_RDZV_ENDPOINT"] == "train-dvae-12-node-0-0.train-dvae-12:29500"
    assert "STAGE" not in str((runtime, job))


@pytest.mark.parametrize("name", ["pytorch", "node"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_patch_of_the_container_that_trains_is_for_either_kind(kind, name):
    patch = {"containers": [{"name": name, "resources": {"limits": {"memory": "64Gi"}}}]}
    documents = training_job(kind, ROOT / "jobs", "train-dvae", "train-dvae-12", Shape(patch=patch), ENVIRONMENT, {})
    (container,) = kind.template(documents)["spec"]["containers"]
    assert container["name"] == kind.container
    assert container["resources"]["limits"]["memory"] == "64Gi"
    assert container["image"].startswith("physion:")


@pytest.mark.parametrize("text", ["kind: TrainJob", "kind: A\n---\nkind: B", "spec: {}\n---\nspec: {trainer: }"])
def test_a_manifest_that_is_no_trainjob_is_refused_by_name(tmp_path, text):
    (tmp_path / "trainjob.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"trainjob\.yaml: no TrainingRuntime .* with a container 'node'"):
        training_job(TRAINJOB, tmp_path, "train-dvae", "train-dvae-12", Shape(), ENVIRONMENT, {})


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no trainjob\.yaml, the manifest of a TrainJob, in .*--jobs"):
        training_job(TRAINJOB, tmp_path, "train-dvae", "train-dvae-12", Shape(), ENVIRONMENT, {})


def by_hand(kind, stage):
    """With sed."""
    return list(yaml.safe_load_all((ROOT / "jobs" / kind.manifest).read_text().replace("STAGE", stage)))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("stage", STAGES.of_kind(Kind.TRAINING))
def test_the_manifests_of_the_repository_are_for_every_training(stage, kind):
    launched = training_job(kind, ROOT / "jobs", stage, f"{stage}-12", Shape(), ENVIRONMENT, {})
    assert "STAGE" not in str(launched)
    assert by_hand(kind, stage)[-1]["metadata"]["name"] == stage
    for documents in (launched, by_hand(kind, stage)):
        template = kind.template(documents)
        component = {"app.kubernetes.io/component": stage}
        assert all(component.items() <= each["metadata"]["labels"].items() for each in documents)
        assert component.items() <= template["metadata"]["labels"].items()
        assert template["spec"]["topologySpreadConstraints"][0]["labelSelector"] == {"matchLabels": component}
        assert template["spec"]["containers"][0]["args"] == ["stage", stage]


def test_the_pods_of_both_kinds_are_the_same_but_for_how_they_meet():
    pods = [kind.template(by_hand(kind, "train-dvae")) for kind in (PYTORCHJOB, TRAINJOB)]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        container["env"] = [each for each in container["env"] if not each["name"].startswith("PET_")]
        container.pop("name")
        pod["spec"].pop("restartPolicy", None)
    assert pods[0] == pods[1]


@pytest.mark.parametrize(
    ("kind", "conditions", "outcome"),
    [
        (PYTORCHJOB, [("Created", "True"), ("Running", "False"), ("Succeeded", "True")], "Succeeded"),
        (PYTORCHJOB, [("Running", "True"), ("Failed", "False")], None),
        (PYTORCHJOB, [("Failed", "True")], "Failed"),
        (TRAINJOB, [], None),
        (TRAINJOB, [("Suspended", "False")], None),
        (TRAINJOB, [("Suspended", "False"), ("Complete", "True")], "Succeeded"),
        (TRAINJOB, [("Failed", "True"), ("Complete", "False")], "Failed"),
    ],
)
def test_how_a_job_has_ended(kind, conditions, outcome):
    said = [{"type": name, "status": status, "message": f"it {name}"} for name, status in conditions]
    job = {"status": {"conditions": said} if said else {}}
    assert kind.outcome(job) == outcome
    if outcome == "Failed":
        assert kind.why_failed(job) == "it Failed"


@pytest.mark.parametrize(("name", "kind"), [("PyTorchJob", PYTORCHJOB), ("trainjob", TRAINJOB)])
def test_a_kind_that_is_asked_for_by_name(name, kind):
    assert chosen(None, name) is kind


def test_a_kind_that_there_is_none_of():
    with pytest.raises(ConfigError, match=r"no such kind of job, did you mean 'trainjob'.*; there are pytorchjob, trainjob"):
        chosen(None, "trainjobs")


class ForgetfulCluster:
    """A fake, for a moment that no test of a real one can choose: its webhooks have not heard of the newest runtime yet."""

    def __init__(self, refusals):
        self.refusals, self.asked, self.finalizers = list(refusals), [], {}

    def create(self, kind, body):
        self.asked.append(f"create {kind}")
        self.finalizers[kind] = body["metadata"].get("finalizers")
        if kind == "trainjobs" and self.refusals:
            raise ConfigError(self.refusals.pop(0))
        return body | {"metadata": body["metadata"] | {"uid": "u"}}

    def patch(self, kind, name, body):
        self.asked.append(f"patch {kind} {body['metadata']['ownerReferences'][0]['uid']}")

    def pause(self, seconds):
        self.asked.append("pause")


def test_a_trainjob_whose_runtime_is_not_known_yet_is_made_a_moment_later():
    cluster = ForgetfulCluster(["runtime 'train-dvae' not found"])
    TRAINJOB.create(cluster, by_hand(TRAINJOB, "train-dvae"))
    made = ["create trainingruntimes", "create trainjobs", "pause", "create trainjobs", "patch trainingruntimes u"]
    assert cluster.asked == made
    # A TrainJob without its runtime cannot go: its finalizers can be changed no more.
    assert cluster.finalizers == {"trainingruntimes": ["trainer.kubeflow.org/resource-in-use"], "trainjobs": None}
    with pytest.raises(ConfigError, match="exceeded quota"):
        TRAINJOB.create(ForgetfulCluster(["exceeded quota"]), by_hand(TRAINJOB, "train-dvae"))


class LostNode:
    """A fake, of an API server that cannot reach the node which has the log."""

    def impatient(self):
        return self

    def find(self, kind, name):
        return pod(phase="Running", containerStatuses=[{"name": "main", "state": {"running": {}}}])

    def log(self, *names, **options):
        yield b"2026-01-01T00:00:00.1Z as far as it came\n"
        raise urllib3.exceptions.HTTPError("500: no route to host")


def test_a_log_that_cannot_be_read_to_its_end_says_so(monkeypatch):
    monkeypatch.setattr("physion.kubernetes.pods.LOG_PAUSE", 0)
    lines = []
    cluster = LostNode()
    log = PodLog(cluster, cluster.find("pods", "p"), "main", lines.append, follow=False)
    log.run()
    assert (lines, log.trouble) == (["as far as it came"], "500: no route to host")


def test_a_job_has_one_name_for_each_training_and_store():
    name = job_name("train-slotformer", "a" * 20, "s3://b/p")
    assert name == job_name("train-slotformer", "a" * 20, "s3://b/p")
    assert name != job_name("train-slotformer", "b" * 20, "s3://b/p")
    assert name != job_name("train-slotformer", "a" * 20, "s3://b/q")
    assert len(f"{name}-worker-1000") <= 63


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([("3", 3), ("1", 2)], 2),  # the first one counts
        ([("1", 0), ("2", 3)], 3),  # those that succeeded do not
        ([("1", 75), ("1", 3)], 3),  # who lost the others in the same second is not the cause
        ([("1", 1)], 1),
        ([("1", 137)], 75),
        ([("1", 139)], 75),
        ([("1", 143)], 143),
        ([], 75),
    ],
)
def test_a_job_ends_as_the_worker_that_failed_first(ends, code):
    assert first_failure([{"finishedAt": f"2026-01-01T00:00:0{at}Z", "exitCode": end} for at, end in ends]) == code


def pod(**status):
    return {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"nodeName": "node2"}, "status": status}


def ready(**conditions):
    return pod(phase="Running", conditions=[{"type": name, "status": str(holds)} for name, holds in conditions.items()])


def waiting(reason, message):
    return pod(
        containerStatuses=[{"name": "pytorch", "image": "x:1", "state": {"waiting": {"reason": reason, "message": message}}}]
    )


def unscheduled(message, reason="Unschedulable"):
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}])


@pytest.mark.parametrize(
    ("stuck", "words"),
    [
        (unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."), ("free GPUs", "fewer", "0/1 nodes")),
        (unscheduled("0/1 nodes are available: 1 Insufficient memory."), ("ask for less", "Insufficient memory")),
        (unscheduled("1 node(s) had untolerated taint {spot: true}."), ("tolerations",)),
        (unscheduled("", "SchedulingGated"), ("queue",)),
        (waiting("ImagePullBackOff", "Back-off pulling image"), ("image x:1", "tag", "imagePullSecrets")),
        (
            waiting("CreateContainerConfigError", 'secret "physion-s3" not found'),
            ("secret physion-s3 is missing", "namespace ns"),
        ),
        (waiting("CreateContainerError", "no such executable"), ("no such executable",)),
        (ready(PodScheduled=True, Ready=False, ContainersReady=True), ("node2 does not answer", "kubectl delete node node2")),
    ],
)
def test_why_a_pod_waits_and_what_to_do(stuck, words):
    reason = obstacle(stuck)
    assert all(word in reason for word in words), reason


class Queue:
    """A fake with the Workloads of one job; tests/cluster/test_queue.py asks a real Kueue."""

    def __init__(self, *conditions):
        self.conditions = conditions

    def listed(self, kind, labels):
        assert (kind, labels) == ("workloads", "kueue.x-k8s.io/job-uid=u")
        if not self.conditions:
            raise ConfigError("you may not list workloads")
        keys = ("type", "status", "message")
        return [{}, {"status": {"conditions": [dict(zip(keys, each, strict=True)) for each in self.conditions]}}]


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        (Queue(), QUEUED),
        (Queue(("QuotaReserved", "True", "reserved"), ("Admitted", "False", "on its way")), QUEUED),
        (Queue(("QuotaReserved", "False", "2 more needed"), ("Evicted", "True", "no")), f"{QUEUED} (2 more needed)"),
    ],
)
def test_why_a_queue_has_not_admitted_a_job(queue, said):
    assert why_queued(queue, {"metadata": {"uid": "u"}}) == said


def test_a_pod_that_merely_starts_has_no_obstacle():
    assert obstacle(waiting("ContainerCreating", "")) is None
    assert obstacle(pod(conditions=[{"type": "PodScheduled", "status": "True"}], containerStatuses=[])) is None
    assert obstacle(ready(PodScheduled=True, Ready=False, ContainersReady=False)) is None
    assert obstacle(ready(PodScheduled=True, Ready=True, ContainersReady=True)) is None
