"""Whatever is taken away while a training runs, the same artifacts come out and nothing published is made again."""

import os
import time

import pytest
import yaml
from live import (
    ROOT,
    argo,
    assert_same,
    command,
    ended,
    kind,
    kubectl,
    objects,
    phase,
    status,
    succeeded,
    until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]


@pytest.fixture
def training(undisturbed):
    """The study again from its SlotFormer on: its workflow, once the training has checkpoints in the store."""
    study, _ = undisturbed
    name = study.trains_again()
    yield name
    kubectl("delete", "workflow", name, "--ignore-not-found")


def part(*words):
    tool = os.environ.get("PHYSION_CLUSTER_PART")
    if not tool:
        pytest.skip("parts of this cluster cannot be taken away: PHYSION_CLUSTER_PART is not set")
    command(tool, *words)


def workers():
    return sorted(pod["metadata"]["name"] for pod in objects("pods", "-l", kind().job_label))


def pods_of(component):
    chosen = objects("pods", "-l", f"app.kubernetes.io/component={component}")
    return [pod["metadata"]["name"] for pod in chosen if pod["status"]["phase"] == "Running"]


def delete_a_worker(name):
    kubectl("delete", "pod", workers()[1], "--wait=false")


def delete_the_first_worker(name):
    kubectl("delete", "pod", workers()[0], "--wait=false")


def kill_a_worker(name):
    """As the kernel does when memory is short: no time to save."""
    kubectl("delete", "pod", workers()[1], "--grace-period=0", "--force")


def delete_the_launcher(name):
    (launcher,) = pods_of("train-slotformer-launcher")
    kubectl("delete", "pod", launcher, "--wait=false")


def delete_a_stage_pod(name):
    readout = until(lambda: pods_of("train-readout-rollout-0"))
    kubectl("delete", "pod", readout[0], "--wait=false")


def restart_the_workflow_controller(name):
    command("kubectl", "-n", "argo", "delete", "pod", "-l", "app=workflow-controller", "--wait=false")


def restart_the_operator(name):
    """Of each kind all controllers; other namespaces are not there."""
    for namespace in ("kubeflow", "kubeflow-system", "jobset-system"):
        command("kubectl", "-n", namespace, "delete", "pod", "--all", "--wait=false", check=False)


def restart_the_api_server(name):
    part("kill", "apiserver")
    time.sleep(5)
    part("start", "apiserver")


def delete_the_s3_pod(name):
    kubectl("delete", "pod", "s3-0", "--wait=false")


def stop_and_retry(name):
    argo("stop", name)
    assert ended(name)["status"]["phase"] == "Failed"
    assert not workers()
    argo("retry", name)
    until(lambda: phase(name) == "Running")


DISTURBANCES = [
    delete_a_worker,
    delete_the_first_worker,
    kill_a_worker,
    delete_the_launcher,
    delete_a_stage_pod,
    restart_the_workflow_controller,
    restart_the_operator,
    restart_the_api_server,
    delete_the_s3_pod,
    stop_and_retry,
]


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda each: each.__name__)
def test_the_same_comes_out(undisturbed, training, disturb):
    disturb(training)
    succeeded(training)
    assert_same(*undisturbed)


@pytest.mark.parametrize("launcher_too", [False, True], ids=["its worker", "its worker and the launcher"])
def test_a_lost_node(undisturbed, tmp_path, launcher_too):
    """Two nodes: the one without the S3 server is gone for good, as when the machine is taken away."""
    study, _ = undisturbed
    names = [node["metadata"]["name"] for node in objects("nodes")]
    if len(names) < 2:
        pytest.skip("the cluster has one node")
    stays = next(pod["spec"]["nodeName"] for pod in objects("pods") if pod["metadata"]["name"] == "s3-0")
    lost = next(name for name in names if name != stays)
    chosen = {"key": "kubernetes.io/hostname", "operator": "In", "values": [lost if launcher_too else stays]}
    preferred = [{"weight": 100, "preference": {"matchExpressions": [chosen]}}]
    workflow = yaml.safe_load((ROOT / "workflows" / "physion_vqa.yaml").read_text())
    workflow["spec"]["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(workflow))
    name = study.trains_again(tmp_path / "workflow.yaml")
    placed = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in objects("pods") if pod["spec"].get("nodeName")}
    (launcher,) = pods_of("train-slotformer-launcher")
    assert placed[launcher] == (lost if launcher_too else stays)
    assert any(placed[worker] == lost for worker in workers())
    try:
        part("lose", lost)
        if launcher_too:  # nobody in the study could know whether it still runs there
            until(lambda: f"its node {lost} does not answer" in status(name))
            command("kubectl", "delete", "node", lost)  # as a cloud does, and as `physion status` advises
        succeeded(name)
        assert_same(*undisturbed)
    finally:
        part("start", f"kubelet{lost[-1]}")
        command("kubectl", "wait", "--for=condition=Ready", f"node/{lost}", "--timeout=120s", check=False)
        kubectl("delete", "workflow", name, "--ignore-not-found")


def test_a_deleted_workflow_leaves_nothing(undisturbed, training):
    study, expected = undisturbed
    claims = objects("pvc")
    kubectl("delete", "workflow", training)

    def nothing_left():
        left = [name for pod in objects("pods") if not (name := pod["metadata"]["name"]).startswith(("s3-0", "toolbox-"))]
        there = [workflow["metadata"]["name"] for workflow in objects("workflows")]
        return not left and not objects(kind().resource) and training not in there

    until(nothing_left, 60)
    assert len(objects("pvc")) == len(claims)
    succeeded(study.submit())  # and its work is not lost
    assert_same(study, expected)
