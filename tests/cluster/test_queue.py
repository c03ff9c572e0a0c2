"""Kueue: a study waits, is admitted, is preempted in mid-training and goes on; `physion status` says which, and why."""

import json
import os

import pytest
from live import FROM_SLOTFORMER, ROOT, assert_same, command, kind, kubectl, objects, status, succeeded, until

# Alone in its cluster, as what takes things away: while it runs, the installed workflow's pods are queued.
pytestmark = [pytest.mark.cluster, pytest.mark.chaos]
CORES = 3.0  # of the queue: enough for a whole study
API = "kueue.x-k8s.io/v1beta2"


def quota(**amounts):
    return [{"name": name.replace("_", "-"), "nominalQuota": amount} for name, amount in amounts.items()]


@pytest.fixture(scope="module")
def queue(undisturbed, tmp_path_factory):
    """One queue for all of the namespace, by the component that docs/kubernetes.md tells to add."""
    if "localqueues.kueue.x-k8s.io" not in command("kubectl", "get", "crd", "-o", "name"):
        pytest.skip("no Kueue in this cluster")
    flavor = {"name": "any", "resources": quota(cpu=str(CORES), memory="100Gi", ephemeral_storage="500Gi")}
    spec = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": [each["name"] for each in flavor["resources"]], "flavors": [flavor]}],
    }
    things = [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "any"}},
        {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": "physion"}, "spec": spec},
        {"apiVersion": API, "kind": "LocalQueue", "metadata": {"name": "physion"}, "spec": {"clusterQueue": "physion"}},
        {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": "urgent"}, "value": 1000},
    ]
    for each in things:
        kubectl("apply", "-f", "-", given=json.dumps(each))
    until(lambda: holds(objects("localqueues")[0], "Active"), 60)
    overlay = tmp_path_factory.mktemp("overlay")
    there = os.path.relpath(ROOT / "k8s", overlay.resolve())
    lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
    lines += [f"resources: [{there}/overlays/local]", f"components: [{there}/components/queue]"]
    (overlay / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    apply = ("kubectl", "apply", "--server-side", "--force-conflicts", "-k")
    command(*apply, overlay)
    yield
    command(*apply, "k8s/overlays/local")
    for each in reversed(things):
        kubectl("delete", "--ignore-not-found", "-f", "-", given=json.dumps(each))


def holds(thing, condition):
    found = thing.get("status", {}).get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in found)


@pytest.fixture
def other(queue):
    """Makes a job of somebody else that asks for this much of the queue; it asks, and does nothing."""

    def make(cores, **labels):
        container = {
            "name": "other",
            "image": json.loads(kubectl("get", "configmap", "physion", "-o", "json"))["data"]["image"],
            "command": ["sleep", "infinity"],
            "resources": {"requests": {"cpu": f"{cores:.3f}"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        pod = {
            "containers": [container],
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        }
        labels = {f"kueue.x-k8s.io/{key.replace('_', '-')}": value for key, value in labels.items()}
        metadata = {"name": "other", "labels": {"kueue.x-k8s.io/queue-name": "physion", **labels}}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}}
        kubectl("create", "-f", "-", given=json.dumps(job))
        until(lambda: any("job-other-" in each["metadata"]["name"] and holds(each, "Admitted") for each in workloads()), 60)

    yield make
    kubectl("delete", "job", "other", "--ignore-not-found")


def workloads():
    return objects("workloads.kueue.x-k8s.io")


def gone():
    kubectl("delete", "job", "other")


def used():
    """Cores of the queue that are in use."""
    spent = json.loads(command("kubectl", "get", "clusterqueue", "physion", "-o", "json"))["status"]["flavorsReservation"]
    (cores,) = (each["total"] for each in spent[0]["resources"] if each["name"] == "cpu")
    return int(cores[:-1]) / 1000 if cores.endswith("m") else float(cores)


WAITS = "it waits to be admitted by its queue (couldn't assign flavors"


def test_a_study_waits_until_there_is_room(undisturbed, other):
    """Each of its pods, and each training as a whole, has a Workload of its own."""
    study, expected = undisturbed
    study.drop(*FROM_SLOTFORMER)
    other(CORES)
    name = study.submit()
    until(lambda: WAITS in status(name), 60)
    gone()
    seen = set()

    def done():
        seen.update(each["metadata"]["name"] for each in workloads())
        return "Succeeded" in status(name).splitlines()[0]

    until(done)
    succeeded(name)
    assert_same(study, expected)
    assert any(each.startswith(f"{kind().name.lower()}-train-slotformer") for each in seen)
    for template in ("plan", "bulk", "stage", "training", "evaluate", "summary"):
        assert any(each.startswith(f"pod-{name}-{template}") for each in seen), (template, seen)


@pytest.mark.parametrize("launcher_too", [False, True], ids=["its workers", "its workers and the launcher"])
def test_a_preempted_training_goes_on(undisturbed, other, launcher_too):
    """Somebody more important comes, and goes."""
    study, expected = undisturbed
    name = study.trains_again()
    other(CORES if launcher_too else CORES - used() + 0.1, priority_class="urgent")
    waits = (WAITS,) if launcher_too else (WAITS, f"{kind().name} train-slotformer")
    until(lambda: all(words in said for said in [status(name)] for words in waits), 180)
    gone()
    succeeded(name)
    assert_same(study, expected)
