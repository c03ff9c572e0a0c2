"""Commands on the cluster of KUBECONFIG, and the study that runs in it."""

import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

from physion.kubernetes.jobs import KINDS
from physion.store.artifacts import WITH_TIMES

ROOT = Path(__file__).parents[2]
NAMESPACE = "physion"
PATIENCE = 900.0
DONE = ("Succeeded", "Failed", "Error")
FROM_SLOTFORMER = ("train-slotformer", "rollout", "train-readout", "evaluate")


def command(*words, check=True, given=None, env=None):
    """Standard output of a command."""
    ended = subprocess.run([*map(str, words)], input=given, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, env=env)
    assert not check or ended.returncode == 0, f"{' '.join(map(str, words))}: {ended.stdout}{ended.stderr}"
    return ended.stdout if check else ended


def kubectl(*words, **options):
    return command("kubectl", "-n", NAMESPACE, *words, **options)


def argo(*words, **options):
    return command("argo", "-n", NAMESPACE, *words, **options)


def objects(kind, *selection):
    return json.loads(kubectl("get", kind, *selection, "-o", "json"))["items"]


@functools.cache
def kind():
    """The kind of job that trains in this cluster."""
    known = command("kubectl", "get", "crd", "-o", "name")
    return KINDS["pytorchjob" if "/pytorchjobs.kubeflow.org" in known else "trainjob"]


def by_hand(stage):
    """The documents of a training as docs/kubernetes.md makes them, without `physion launch`; the last one is the job."""
    return list(yaml.safe_load_all(command("sed", f"s/STAGE/{stage}/g", f"jobs/{kind().manifest}")))


def until(condition, seconds=PATIENCE, pause=1.0):
    """What `condition` returns once it is true; the API server may be away meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if answer := condition():
                return answer
        except (AssertionError, json.JSONDecodeError):
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)


LIST = """
import boto3, json, sys
bucket, prefix = sys.argv[1:]
s3 = boto3.client("s3")
keys = [o["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/artifacts/")
        for o in page.get("Contents", [])]
found = [json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read()) for key in keys if key.endswith("/manifest.json")]
print(json.dumps(found))
"""
KEYS = """
import boto3, sys
for each in boto3.client("s3").list_objects_v2(Bucket=sys.argv[1], Prefix=sys.argv[2]).get("Contents", []):
    print(each["Key"])
"""
DROP = """
import boto3, sys
bucket, prefix, *drop = sys.argv[1:]
s3 = boto3.client("s3")
for name in drop:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/artifacts/{name}/"):
        for each in page.get("Contents", []):
            s3.delete_object(Bucket=bucket, Key=each["Key"])
"""


class Study:
    """A study in the cluster: its parameters and its store."""

    def __init__(self, toolbox, prefix, **parameters):
        self.toolbox, self.prefix = toolbox, prefix
        self.parameters = {"preset": "smoke", "store": f"s3://physion/{prefix}", **parameters}

    def submit(self, workflow="workflows/physion_vqa.yaml"):
        """The new workflow's name."""
        given = [word for key, value in self.parameters.items() for word in ("-p", f"{key}={value}")]
        return argo("submit", workflow, "-o", "name", *given).strip()

    def published(self):
        """Every published manifest."""
        return json.loads(self.toolbox("python", "-c", LIST, "physion", self.prefix))

    def manifests(self):
        """Those of a store with one study, by instance."""
        return {manifest["instance"]: manifest for manifest in self.published()}

    def checkpoints(self, stage):
        keys = self.toolbox("python", "-c", KEYS, "physion", f"{self.prefix}/artifacts/{stage}/").split()
        return [key for key in keys if "/checkpoints/" in key]

    def trains_again(self, *workflow):
        """The name of a new workflow that makes everything from SlotFormer on, once that has checkpoints in the store."""
        self.drop(*FROM_SLOTFORMER)
        name = self.submit(*workflow)
        until(lambda: self.checkpoints("train-slotformer"), pause=3.0)  # each look starts Python in a pod
        return name

    def drop(self, *stages):
        """Forget what these stages made, and begun."""
        self.toolbox("python", "-c", DROP, "physion", self.prefix, *stages)


def workflow(name):
    return json.loads(kubectl("get", "workflow", name, "-o", "json"))


def phase(name):
    return workflow(name).get("status", {}).get("phase")


def nodes(name):
    return list(workflow(name).get("status", {}).get("nodes", {}).values())


def status(name):
    """What `physion status` says of it."""
    return command(sys.executable, "-m", "physion.cli", "status", name, "-n", NAMESPACE)


def ended(name):
    """The workflow, once it has ended."""
    until(lambda: phase(name) in DONE)
    return workflow(name)


def succeeded(name):
    end = ended(name)
    assert end["status"]["phase"] == "Succeeded", [
        (node["displayName"], node["phase"], node.get("message"))
        for node in nodes(name)
        if node["phase"] not in ("Succeeded", "Skipped")
    ]
    return end


def failed(name, step, message):
    """The workflow fails at this step, at once and for good, and Argo's node and `physion status` both say why."""
    assert ended(name)["status"]["phase"] == "Failed"
    tries = [node for node in nodes(name) if node["type"] == "Pod" and node["displayName"].startswith(f"{step}(")]
    assert len(tries) == 1
    assert "exit code 2" in tries[0]["message"]
    assert message in tries[0]["message"]
    assert message in status(name)
    kubectl("delete", "workflow", name)


def assert_same(study, expected):
    """The study's store has these artifacts, byte for byte, and of those before SlotFormer none was made again."""
    found = study.manifests()
    assert found.keys() == expected.keys()
    for instance, manifest in expected.items():
        names = {file["name"] for file in manifest["files"]} - WITH_TIMES
        digests = [{f["name"]: f["sha256"] for f in m["files"] if f["name"] in names} for m in (found[instance], manifest)]
        assert digests[0] == digests[1], instance
        if manifest["stage"] not in FROM_SLOTFORMER:
            assert found[instance]["created"] == manifest["created"], f"{instance} was made again"
