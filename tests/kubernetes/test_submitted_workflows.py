"""`physion submit`, `status` and `logs` on a real cluster with the real Argo Workflows; only the stages are stand-ins."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from stand_in import IMAGE, PATIENCE, RESTRICTED, UNPRIVILEGED, host_of, stand_in, until

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
# Argo's own containers need it said as well (workflows/template.yaml).
ARGOS = "[{name: %s, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]"


def stage(name, script, **fields):
    container = {"image": IMAGE, "command": ["sh", "-c", script], "securityContext": RESTRICTED, **fields}
    return {"name": name, "container": container, "metadata": {"labels": {"app.kubernetes.io/component": name}}}


def study(namespace, *stages, **spec):
    """Make `physion-vqa` of this namespace a chain of these stages."""
    tasks = [{"name": each["name"], "template": each["name"]} for each in stages]
    for before, task in pairwise(tasks):
        task["depends"] = before["name"]
    template = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {"name": "physion-vqa"},
        "spec": {
            "entrypoint": "study",
            "serviceAccountName": "stage",
            "executor": {"serviceAccountName": "workflow"},
            "securityContext": UNPRIVILEGED,
            "podSpecPatch": f"initContainers: {ARGOS % 'init'}\ncontainers: {ARGOS % 'wait'}",
            "arguments": {
                "parameters": [
                    {"name": "preset", "valueFrom": {"configMapKeyRef": {"name": "physion", "key": "preset"}}},
                    {"name": "store", "value": "s3://of/the-cluster"},
                    {"name": "overrides", "value": ""},
                    {"name": "train-steve-gpus", "value": "1"},
                ]
            },
            "templates": [{"name": "study", "dag": {"tasks": tasks}}, *stages],
            **spec,
        },
    }
    namespace.kubectl("apply", "-f", "-", given=json.dumps(template))


@pytest.fixture(scope="module")
def ready(namespace, tmp_path_factory):
    """A namespace with the accounts of k8s/base, and nothing else of it."""
    folder = tmp_path_factory.mktemp("accounts")
    shutil.copy(ROOT / "k8s/base/accounts.yaml", folder)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": namespace.name, "resources": ["accounts.yaml"]}))
    namespace.kubectl("apply", "-k", folder)
    labels = {"workflows.argoproj.io/configmap-type": "Parameter"}
    data = {"preset": "smoke"}
    namespace.apply(apiVersion="v1", kind="ConfigMap", metadata={"name": "physion", "labels": labels}, data=data)
    return namespace


class Ended:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr


@pytest.fixture
def run(ready):
    def command(*words, namespace=ready.name):
        line = [sys.executable, "-m", "physion.cli", *words, "-n", namespace]
        environment = os.environ | {"COLUMNS": "200"}
        return Ended(subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, env=environment))

    return command


def test_a_study_is_submitted_waited_for_and_looked_at(run, ready):
    said = 'echo "{{workflow.parameters.preset}} {{workflow.parameters.store}} {{workflow.parameters.overrides}} '
    study(ready, stage("frames-test", said + '{{workflow.parameters.train-steve-gpus}}"'), stage("evaluate", "echo 97 %"))
    sets = ("--set", "frames.workers=1", "--set", "train-readout.seeds=[0,1]")
    done = run("submit", "-p", "tiny", "-s", "s3://mine/here", *sets, "--param", "train-steve-gpus=4", "--wait")
    assert done.code == 0, done.err
    name = done.out.split()[1]
    assert "frames-test: Running" in done.err or "frames-test: Pending" in done.err
    logs = run("logs", name)
    assert logs.out.splitlines() == [
        "frames-test | tiny s3://mine/here frames.workers=1 train-readout.seeds=[0,1] 4",
        "evaluate | 97 %",
    ]
    assert run("logs", "@latest", "evaluate", "--follow").out == "evaluate | 97 %\n"
    shown = json.loads(run("status", name, "--json").out)["result"]
    assert (shown["phase"], [step["name"] for step in shown["steps"]]) == ("Succeeded", ["frames-test", "evaluate"])
    assert name in run("status").out
    assert json.loads(run("status", "--json").out)["result"][0]["name"] == name
    table = run("status", "@latest").out
    assert name in table
    assert "evaluate" in table


def test_what_is_not_given_is_the_clusters(run, ready):
    study(ready, stage("evaluate", 'echo "{{workflow.parameters.preset}} {{workflow.parameters.store}}"'))
    made = json.loads(run("submit", "--json").out)["result"]
    assert made["parameters"] == {}
    followed = run("logs", made["name"], "--follow")
    assert followed.out == "evaluate | smoke s3://of/the-cluster\n"


def test_a_failed_study_ends_with_the_code_of_the_stage_and_shows_its_error(run, ready):
    again = {"retryStrategy": {"limit": "1", "expression": "asInt(lastRetry.exitCode) == 75"}}
    study(ready, stage("frames-test", "echo working; echo 'error: video 3 cannot be read' >&2; exit 3") | again)
    done = run("submit", "--wait")
    assert done.code == 3, done.err
    assert "frames-test: error: video 3 cannot be read" in done.out
    assert "physion logs" in done.err.splitlines()[-1]


def test_status_says_why_a_pod_waits(run, ready):
    study(ready, stage("tokenize", "exit 0", resources={"limits": {"nvidia.com/gpu": "1"}}))
    name = json.loads(run("submit", "--json").out)["result"]["name"]
    until(lambda: "free GPUs" in (last := run("status", name)).out or last.code, lambda: run("status", name).out)
    ready.kubectl("delete", "workflow", name)
    study(ready, stage("tokenize", "exit 0", envFrom=[{"secretRef": {"name": "physion-s3"}}]))
    name = json.loads(run("submit", "--json").out)["result"]["name"]
    until(lambda: "secret physion-s3 is missing: create it" in run("status", name).out, lambda: run("status", name).out)
    ready.kubectl("delete", "workflow", name)


def test_status_says_why_the_workers_of_a_training_wait(run, ready):
    study(ready, stage("train-dvae-launcher", "sleep 600"))
    name = json.loads(run("submit", "--json").out)["result"]["name"]
    launcher = until(
        lambda: ready.objects("pods", "-l", f"workflows.argoproj.io/workflow={name}", "--field-selector=status.phase=Running"),
        "the launcher",
    )[0]["metadata"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": launcher["name"], "uid": launcher["uid"]}
    job = f"train-dvae-{name[-6:]}x"
    for each in stand_in(nodeSelector={"no": "such-node"}):
        text = json.dumps(each | {"metadata": {"name": job, "ownerReferences": [owner]}})
        ready.apply(**json.loads(text.replace('"name": "STAGE"', f'"name": "{job}"')))
    until(lambda: "give tolerations or a nodeSelector that fit" in run("status", name).out, lambda: run("status", name).out)
    assert f"{host_of(job, 0)}" in run("status", name).out
    ready.kubectl("delete", "workflow", name)


def test_a_log_that_is_gone_with_its_pod(run, ready):
    study(ready, stage("evaluate", "echo 97 %"), podGC={"strategy": "OnPodCompletion", "deleteDelayDuration": "0s"})
    name = json.loads(run("submit", "--json").out)["result"]["name"]
    selector = f"workflows.argoproj.io/workflow={name}"
    until(lambda: json.loads(run("status", name, "--json").out)["result"]["phase"] == "Succeeded", "success")
    until(lambda: not ready.objects("pods", "-l", selector), "the end of the pod")
    gone = run("logs", name)
    assert (gone.code, gone.out) == (0, "")
    assert "evaluate: its pod is gone, and its log with it" in gone.err
    unknown = run("logs", name, "evaluat")
    assert unknown.code == 2
    assert "did you mean 'evaluate'?" in unknown.err


def test_what_is_wrong_is_said_before_anything_is_made(run, ready):
    study(ready, stage("evaluate", "exit 0"))
    before = len(ready.objects("workflows"))
    for words, message in (
        (("--param", "train-steve-gpu=8"), "no such parameter, did you mean 'train-steve-gpus'?"),
        (("--set", "train-steve.optim.lrr=1"), "did you mean 'lr'?"),
        (("-p", "papper"), "did you mean 'paper'?"),
    ):
        done = run("submit", *words)
        assert done.code == 2
        assert message in done.err
    assert len(ready.objects("workflows")) == before


def test_where_nothing_is_installed(run):
    done = run("submit", namespace="default")
    assert done.code == 2
    assert "kubectl apply -k k8s/overlays/... first" in done.err
    assert run("status", namespace="default").out.startswith("no workflow in namespace default")
    missing = run("status", "physion-vqa-nothing", namespace="default")
    assert (missing.code, "physion submit starts one" in missing.err) == (2, True)
