"""What the commands for clusters find out before they need one, and what they say when there is none."""

import base64
import gzip
import json
import subprocess
import sys

import pytest
import yaml
from stand_in import ROOT

from physion.kubernetes.workflows import exit_code, steps


@pytest.fixture
def launch(physion, tmp_path, preset):
    def command(stage, *options):
        return physion("launch", stage, "-p", preset, "-s", tmp_path / "store", "--jobs", ROOT / "jobs", *options)

    return command


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A kubeconfig whose API server is not there."""
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "mine"}}
    settings = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}], "current-context": "c"}
    (tmp_path / "config").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))


@pytest.mark.parametrize("command", [["status"], ["logs", "@latest"], ["submit", "-p", "smoke"]])
def test_without_the_kubernetes_client_one_line_says_how_to_get_it(command):
    program = "import sys; sys.modules['kubernetes'] = None; from physion.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: the Kubernetes client is not installed: pip install kubernetes\n")


@pytest.mark.parametrize(
    ("stage", "options", "words"),
    [
        ("train-dvea", [], "train-dvea is not a training, did you mean 'train-dvae'?; there are train-dvae, train-steve"),
        ("evaluate", [], "there are train-dvae"),
        ("train-dvae", ["--jobs", "/nothing"], "name that folder with --jobs"),
        ("train-dvae", ["--set", "train-dvae.optim.lrr=1"], "did you mean 'lr'?"),
        ("train-dvae", ["--set", "train-readout.seeds=[0, 1]"], "must not contain spaces (write lists as [1,2])"),
        ("train-dvae", ["-p", "mine.yaml"], "pods cannot see this local file"),
        ("train-dvae", [], "input frames-training"),
    ],
)
def test_launch_refuses_before_it_looks_for_a_cluster(launch, stage, options, words):
    done = launch(stage, *options)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "papper"], "did you mean 'paper'?"),
        (["-p", "tiny", "--set", "train-dvae.optim.lrr=1"], "did you mean 'lr'?"),
        (["-s", "runs/here"], "store runs/here: pods cannot see this local folder"),
        (["--param", "gpus"], "not of the form NAME=VALUE"),
        (["-p", "tiny", "--sweep", "train-dvae.optim.lr=1e-4,many"], "train-dvae.optim.lr"),
        (["-p", "tiny", "--param", "sweep=train-dvae.optim.lrr=1,2"], "did you mean 'lr'?"),
        (["--sweep", "train-dvae.optim.lr"], "not of the form stage.key=value,value"),
        (["--sweep", "a.b=[1, 2],[3]"], "must not contain spaces"),
        (["--set", "a.b=[1, 2]"], "must not contain spaces"),
    ],
)
def test_submit_refuses_before_it_looks_for_a_cluster(physion, words, message):
    done = physion("submit", *words)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("command", [["submit"], ["status"], ["status", "@latest"], ["logs", "@latest"]])
def test_a_cluster_that_does_not_answer(physion, nowhere, command):
    done = physion(*command)
    assert done.code == 75
    assert "the Kubernetes API at http://127.0.0.1:9 cannot be used: " in done.err
    assert "refused" in done.err


def test_no_cluster_at_all(physion, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    done = physion("status")
    assert done.code == 2
    assert "no cluster to talk to" in done.err
    assert "set KUBECONFIG" in done.err


def test_overrides_also_come_from_the_environment(physion, monkeypatch):
    monkeypatch.setenv("PHYSION_SET", " train-dvae.optim.steps=7\n  train-readout.seeds=[0,5] ")
    shown = json.loads(physion("config", "show", "-p", "tiny", "--json").out)["result"]
    assert (shown["train-dvae"]["optim"]["steps"], shown["train-readout"]["seeds"]) == (7, [0, 5])
    monkeypatch.setenv("PHYSION_SET", "")
    assert physion("config", "show", "-p", "tiny").code == 0


def node(name, kind="Pod", phase="Succeeded", code=None, children=(), at=0):
    time = f"2026-01-01T00:00:{at:02}Z"
    outputs = {} if code is None else {"exitCode": str(code)}
    node = {"id": name, "displayName": name, "type": kind, "phase": phase, "outputs": outputs, "children": list(children)}
    return node | {"startedAt": time, "finishedAt": time}


def workflow(*nodes, phase="Failed", **status):
    return {"metadata": {"name": "w"}, "status": {"phase": phase, "nodes": {each["id"]: each for each in nodes}, **status}}


RETRIED = (
    node("study", "DAG", "Failed", children=["frames", "dvae"]),
    node("dvae", "Retry", "Failed", children=["dvae(0)", "dvae(1)"], at=3),
    node("dvae(0)", phase="Failed", code=75, at=3),
    node("dvae(1)", phase="Failed", code=3, at=5),
    node("frames", at=1),
    node("late", phase="Failed", code=2, at=9),
)


def test_a_workflows_steps_are_stages_and_not_each_attempt():
    assert [step["id"] for step in steps(workflow(*RETRIED))] == ["frames", "dvae", "late"]
    packed = base64.b64encode(gzip.compress(json.dumps({each["id"]: each for each in RETRIED}).encode())).decode()
    assert len(steps({"status": {"compressedNodes": packed}})) == 3
    assert steps({}) == []


def test_a_workflow_ends_as_the_last_attempt_of_the_stage_that_failed_first():
    assert exit_code(workflow(*RETRIED)) == 3
    assert exit_code(workflow(node("frames"), phase="Succeeded")) == 0
    assert exit_code(workflow(node("lost", phase="Error"))) == 75
    assert exit_code(workflow(phase="Error")) == 75
