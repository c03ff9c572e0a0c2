"""Workflow and plan are the same graph."""

import json
import re
from pathlib import Path

import pytest
import yaml

from physion.config.load import load_config
from physion.kubernetes.summary import ADVICE, advice, parsed
from physion.kubernetes.tasks import TASKS, task_of, work_lists
from physion.pipeline.graph import build_graph, left_to_do
from physion.stages import STAGES

ROOT = Path(__file__).parents[2]
TEMPLATES = {
    template["metadata"]["name"]: template
    for path in (ROOT / "workflows" / "templates").glob("*.yaml")
    for template in yaml.safe_load_all(path.read_text())
}
STUDY = TEMPLATES["physion-vqa"]["spec"]
DAG = {task["name"]: task for task in STUDY["templates"][0]["dag"]["tasks"]}
FAN_OUT = {name: task for name, task in DAG.items() if name not in ("plan", "evaluate")}


def ancestors(task):
    direct = re.findall(r"[\w-]+", DAG[task].get("depends", ""))
    return set(direct).union(*(ancestors(parent) for parent in direct))


def tasks_of(graph):
    return {name: "evaluate" if node.stage == "evaluate" else task_of(node) for name, node in graph.items()}


@pytest.mark.parametrize("preset", ["smoke", "tiny", "small", "paper"])
@pytest.mark.parametrize("override", ["dataset=simulate", "dataset=fetch", "train-readout.features=[rollout]"])
def test_every_instance_has_a_task_that_waits_for_its_inputs_and_for_nothing_else(preset, override):
    graph = build_graph(load_config(preset, [override]))
    task = tasks_of(graph)
    assert set(task.values()) <= set(DAG)
    needed = {name: set() for name in DAG}
    for name, node in graph.items():
        needed[task[name]] |= {task[source] for source in node.inputs.values()} | {
            above for source in node.inputs.values() for above in needed[task[source]]
        }
    for name in set(task.values()):
        idle = {"plan", "simulate", "fetch", "readouts-of-slots", "readouts-of-rollouts"}  # may have nothing to do
        assert needed[name] <= ancestors(name)
        # A task waits for more than its inputs only where these waited for it already, or have given weights as inputs.
        assert ancestors(name) - idle <= needed[name] | {"train-dvae", "train-steve", "tokenize", "frames-training"}


def test_nothing_stands_in_the_workflow_that_the_plan_does_not_know():
    assert set(FAN_OUT) == set(TASKS)
    outputs = {
        p["name"]: p["valueFrom"]["path"] for p in TEMPLATES["physion-plan"]["spec"]["templates"][0]["outputs"]["parameters"]
    }
    assert outputs == {task: f"/scratch/tasks/{task}" for task in TASKS}
    for name, task in FAN_OUT.items():
        assert task["withParam"] == f"{{{{tasks.plan.outputs.parameters.{name}}}}}"


def test_tasks_call_the_kind_of_template_that_their_stage_is():
    kinds = {"physion-bulk": set(), "physion-training": set(), "physion-stage": set()}
    for name, task in FAN_OUT.items():
        kinds[task["templateRef"]["name"]].add(name)
        given = {p["name"]: p["value"] for p in task["arguments"]["parameters"]}
        if task["templateRef"]["name"] == "physion-bulk":
            assert (given["stage"], given["shard"]) == (name, "{{item}}")
        else:
            assert given["stage"] == "{{item}}"
    split = {stage.name for stage in STAGES.values() if stage.parts}
    assert {re.sub("-(training|readout|test)$", "", name) for name in kinds["physion-bulk"]} == split
    assert kinds["physion-training"] == {"train-dvae", "train-steve", "train-slotformer"}
    assert kinds["physion-training"] == {path.stem for path in (ROOT / "jobs").glob("*.yaml")}


def test_what_is_cached_and_what_only_served_that_is_left_out():
    graph = build_graph(load_config("smoke", []))
    assert [node.name for node in left_to_do(graph, lambda node: False)] == list(graph)
    assert left_to_do(graph, lambda node: True) == []
    lost = {"train-dvae", "extract-slots-test", "evaluate"}
    left = left_to_do(graph, lambda node: node.name not in lost)
    assert [node.name for node in left] == ["train-dvae", "extract-slots-test", "evaluate"]
    left = left_to_do(graph, lambda node: node.name not in {"tokenize", "frames-readout"})
    assert left == []  # the report is there


def test_work_lists():
    graph = build_graph(load_config("smoke", []))
    lists = work_lists(graph.values(), {"frames": 3})
    assert set(lists) == set(TASKS)
    assert lists["frames-test"] == ["0/3", "1/3", "2/3"]
    assert lists["simulate"] == ["0/1"]
    assert lists["fetch"] == []
    assert lists["train-dvae"] == ["train-dvae"]
    assert lists["readouts-of-rollouts"] == ["train-readout-rollout-0", "train-readout-rollout-1"]
    assert len(lists["readouts-of-slots"]) == 4


def test_the_plan_writes_them(physion, tmp_path):
    ended = physion("plan", "-p", "smoke", "-s", tmp_path, "--tasks", tmp_path / "tasks", "--shards", "simulate=2")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "tasks" / "simulate").read_text()) == ["0/2", "1/2"]
    assert {path.name for path in (tmp_path / "tasks").iterdir()} == set(TASKS)
    wrong = physion("plan", "-p", "smoke", "-s", tmp_path, "--tasks", tmp_path / "tasks", "--shards", "evaluate=2")
    assert wrong.code == 2
    assert "--shards evaluate=2: not of the form STAGE=N" in wrong.err


def test_every_pod_is_hardened_alike():
    for template in TEMPLATES.values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert all(name in spec["podSpecPatch"] for name in ("name: init", "name: wait"))
        assert spec["executor"] == {"serviceAccountName": "workflow"}
        for part in spec["templates"]:
            if container := part.get("container"):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                }
                assert "requests" in container["resources"]
                assert all(isinstance(word, str) for word in container["args" if "args" in container else "command"])


def test_jobs_differ_in_nothing_but_their_stage_and_its_size():
    texts = {path.stem: path.read_text() for path in (ROOT / "jobs").glob("*.yaml")}
    without_size = {
        re.sub(r"(Trains (the )?\w+|sizeLimit: \w+|memory: \w+)", "", text.replace(stage, "STAGE"))
        for stage, text in texts.items()
    }
    assert len(without_size) == 1


@pytest.mark.parametrize("failures", ["null", "", "[]", '"[]"', "not JSON"])
def test_a_summary_without_failures(failures):
    assert parsed(failures) == []


def test_a_summary_of_failures():
    failures = [{"displayName": "plan(0)", "message": "main: Error (exit code 2)"}]
    assert parsed(json.dumps(failures)) == failures
    assert parsed(json.dumps(json.dumps(failures))) == failures


@pytest.mark.parametrize("message", ["main: Error (exit code 2)", "main: Error (exit code 2): unknown preset 'tinny'"])
def test_a_summary_advises_by_exit_code(message):
    assert advice(message) == ADVICE["2"]
    assert advice("pod deleted") not in ADVICE.values()
