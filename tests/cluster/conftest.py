"""A real cluster, whatever KUBECONFIG says, with Argo Workflows and the training operator in it and the image on its nodes.

Everything happens in the namespace `physion`, as k8s/overlays/local makes it; `kubectl` and `argo` are needed here. Where parts
of the cluster can be taken away, PHYSION_CLUSTER_PART names the command that does it (`kill NAME`, `start NAME`, `lose NODE`).
"""

import json
import os
import secrets

import pytest
from live import FROM_SLOTFORMER, Study, command, kubectl, objects, succeeded, until


def pytest_collection_modifyitems(items):
    """The study first: it takes the longest, and the other files are done beside it."""
    items.sort(key=lambda item: item.path.name != "test_study.py")


@pytest.fixture(scope="session", autouse=True)
def deployed():
    """All set-up besides Argo and the operator is one command."""
    if not os.environ.get("KUBECONFIG"):
        pytest.fail(
            "KUBECONFIG names no cluster: docs/kubernetes.md says how to get one, or run this on a machine that has one"
        )
    command("kubectl", "apply", "--server-side", "--force-conflicts", "-k", "k8s/overlays/local")
    kubectl("rollout", "status", "statefulset/s3", "--timeout=300s")
    until(lambda: not objects("jobs") or objects("jobs")[0]["status"].get("succeeded"), 300)


@pytest.fixture(scope="session")
def toolbox(deployed):
    """Runs Python in a pod that sees the store as a stage does."""
    name = f"toolbox-{secrets.token_hex(4)}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "physion"}},
        "spec": {
            "serviceAccountName": "stage",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "toolbox",
                    "image": json.loads(kubectl("get", "configmap", "physion", "-o", "json"))["data"]["image"],
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "envFrom": [{"configMapRef": {"name": "physion-s3"}}, {"secretRef": {"name": "physion-s3"}}],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                }
            ],
            "nodeName": objects("nodes")[0]["metadata"]["name"],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }
    kubectl("create", "-f", "-", given=json.dumps(pod))
    kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
    yield lambda *words, **options: kubectl("exec", name, "--", *words, **options)
    kubectl("delete", "pod", name)


@pytest.fixture(scope="session")
def undisturbed(toolbox):
    """A study that nothing happened to, with a SlotFormer that takes a while to train, and what it published."""
    overrides = (
        "train-readout.features=[rollout]",
        "train-readout.optim.steps=100",
        "train-slotformer.optim.steps=200",
        "train-slotformer.checkpoint-every=20",
        "train-slotformer.heldout-every=100",
    )
    parameters = {"readout-seeds": "0", "cpu-ranks": "2", "train-slotformer-nodes": "2"}
    study = Study(toolbox, "chaos", overrides=" ".join(overrides), **parameters)
    study.drop(*FROM_SLOTFORMER)  # by an earlier run of these tests
    succeeded(study.submit())
    return study, study.manifests()
