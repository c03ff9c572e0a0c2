"""What the tests of a real cluster share: kubectl, and a training's stand-in that does what a test tells it to."""

import functools
import json
import subprocess
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
IMAGE = "alpine:3.10"  # has a shell; physion's own image is too big for every test
UNPRIVILEGED = {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
PATIENCE = 120.0
# Writes its counting lines until a file says with which code to end; on SIGTERM it takes a moment to "save".
STAND_IN = """
trap 'echo saving; sleep 1; echo saved; exit 143' TERM
echo "preset=$PHYSION_PRESET store=$PHYSION_STORE set=$PHYSION_SET ranks=$PET_NPROC_PER_NODE nodes=$PET_NNODES"
echo "train-dvae: 3/10 steps (30 %), 1 min left"
n=0
until [ -s /told/code ]; do n=$((n + 1)); echo "line $n"; sleep 0.05; done
read code < /told/code
echo "line $((n + 1))"
echo "last words of $HOSTNAME"
exit $code
"""


# Of the pods of a job: the label that names it, the one that says which pod it is, and the middle of their host names.
LABELS = {
    "pytorchjob": ("training.kubeflow.org/job-name", "training.kubeflow.org/replica-index", "worker"),
    "trainjob": ("jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-completion-index", "node-0"),
}


@functools.cache
def kind_there():
    """The kind of job that `physion launch` should choose in this cluster."""
    known = subprocess.run(["kubectl", "get", "crd", "-o", "name"], capture_output=True, text=True, check=True).stdout
    return "pytorchjob" if "/pytorchjobs.kubeflow.org" in known else "trainjob"


def until(condition, what):
    """What `condition` returns once that is true; `what` it waits for may be a function, for what is known only then."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what() if callable(what) else what}"
        time.sleep(0.2)
    return answer


class Namespace:
    """A namespace of the test's own, seen through kubectl: not through what is tested."""

    def __init__(self, name):
        self.name = name

    def kubectl(self, *words, given=None, check=True):
        ended = subprocess.run(
            ["kubectl", "-n", self.name, *map(str, words)], input=given, capture_output=True, text=True, timeout=PATIENCE
        )
        assert not check or ended.returncode == 0, f"kubectl {' '.join(map(str, words))}: {ended.stdout}{ended.stderr}"
        return ended.stdout if check else ended.stdout + ended.stderr

    def apply(self, **thing):
        return self.kubectl("create", "-f", "-", given=json.dumps(thing))

    def objects(self, kind, *selection):
        return json.loads(self.kubectl("get", kind, *selection, "-o", "json"))["items"]

    def workers(self, job):
        """The job's pods by their index: of two, as when one takes the place of the other, the one that stays."""
        label, index, _ = LABELS[kind_there()]
        pods = sorted(self.objects("pods", "-l", f"{label}={job}"), key=lambda pod: "deletionTimestamp" not in pod["metadata"])
        return {int(pod["metadata"]["labels"][index]): pod for pod in pods}

    def running(self, job, count=1):
        """The job's pods, once so many of them run."""

        def look():
            found = self.workers(job)
            up = [pod for pod in found.values() if pod["status"]["phase"] == "Running"]
            return found if len(up) == count else None

        return until(look, f"{count} running workers")

    def replaced(self, job, lost):
        """Wait for another pod in the place of this first worker."""

        def look():
            pod = self.workers(job).get(0)
            return pod and pod["metadata"]["uid"] != lost

        until(look, "another pod")

    def end(self, job, index, code):
        """Let the stand-in in this pod of a job end. Returns the pod's name."""
        pod = self.workers(job)[index]["metadata"]["name"]
        # The stand-in may end, and with it this shell (137), before kubectl has heard that it has written.
        said = self.kubectl("exec", pod, "--", "sh", "-c", f"echo {code} > /told/code", check=False)
        assert said in ("", "command terminated with exit code 137\n"), said
        return pod

    def owner(self, name):
        """A pod that does nothing but own, as a launcher's does. Returns its identity."""
        container = {"name": "main", "image": IMAGE, "command": ["sleep", "3600"], "securityContext": RESTRICTED}
        spec = {"containers": [container], "securityContext": UNPRIVILEGED, "terminationGracePeriodSeconds": 0}
        self.apply(apiVersion="v1", kind="Pod", metadata={"name": name}, spec=spec)
        return self.kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}")


def host_of(job, index):
    """What a worker of a job calls itself."""
    return f"{job}-{LABELS[kind_there()][2]}-{index}"


def stand_in(script=STAND_IN, container=(), **spec):
    """The documents of a manifest of the shape of those of jobs/, of the kind that is there."""
    works = {
        "name": "pytorch" if kind_there() == "pytorchjob" else "node",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "volumeMounts": [{"name": "told", "mountPath": "/told"}],
        "env": [],
        **dict(container),
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 10,
        "securityContext": UNPRIVILEGED,
        "containers": [works],
        "volumes": [{"name": "told", "emptyDir": {}}],
        **spec,
    }
    if kind_there() == "trainjob":
        runtime, job = yaml.safe_load_all((ROOT / "jobs" / "trainjob.yaml").read_text())
        runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"] = {
            "spec": pod | {"restartPolicy": "Never"}
        }
        return [runtime, job]
    return [
        {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": "train-dvae"},
            "spec": {
                "nprocPerNode": "1",
                "elasticPolicy": {"rdzvBackend": "c10d", "minReplicas": 1, "maxReplicas": 1, "maxRestarts": 3},
                "runPolicy": {"cleanPodPolicy": "Running", "ttlSecondsAfterFinished": 3600},
                "pytorchReplicaSpecs": {"Worker": {"replicas": 1, "restartPolicy": "ExitCode", "template": {"spec": pod}}},
            },
        }
    ]
