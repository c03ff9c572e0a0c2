"""Workflow, plan and stages are the same graph."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from physion.config.load import load_config, preset_names
from physion.errors import ConfigError
from physion.kubernetes.summary import ADVICE, advice, parsed
from physion.kubernetes.summary import main as summarize
from physion.kubernetes.tasks import Task, study_tasks, task_of, work_lists
from physion.kubernetes.template import main, written
from physion.kubernetes.workflows import require_tasks
from physion.pipeline.graph import build_graph, left_to_do
from physion.stages import STAGES

ROOT = Path(__file__).parents[2]
FILE = ROOT / "workflows" / "template.yaml"
TEXT = FILE.read_text()
SPEC = yaml.safe_load(TEXT)["spec"]
TEMPLATES = {template["name"]: template for template in SPEC["templates"]}
PARAMETERS = {each["name"]: each for each in SPEC["arguments"]["parameters"]}
PODS = {name: template for name, template in TEMPLATES.items() if name != "study"}
DAG = {task["name"]: task for task in TEMPLATES["study"]["dag"]["tasks"]}
GIVEN = [
    "train-dvae.weights=a",
    "train-steve.weights=a",
    "train-isa.weights=a",
    "train-slotformer.weights=a",
    "train-readout.weights.rollout=a-{seed}",
    "train-readout.weights.full=a-{seed}",
]


def ancestors(task):
    direct = re.findall(r"[\w-]+", DAG[task].get("depends", ""))
    return set(direct).union(*(ancestors(parent) for parent in direct))


@pytest.fixture
def generate(monkeypatch, tmp_path):
    """Runs the generator on a file with this text: its exit code, and the file's new text."""
    file = tmp_path / "template.yaml"

    def command(text, *options):
        file.write_text(text)
        monkeypatch.setattr(sys, "argv", ["template", str(file), *options])
        return main(), file.read_text()

    return command


@pytest.mark.parametrize("preset", preset_names())
def test_the_file_is_what_follows_from_the_stages(generate, preset):
    assert generate(TEXT, "--check", "--preset", preset) == (0, TEXT)


def test_what_is_generated_is_made_anew_and_what_is_edited_stays(generate, capsys):
    edited = TEXT.replace("parallelism: 8", "parallelism: 9")
    edited = re.sub("(simulate-pods, .*value: )'2'", r"\1'7'", edited)
    assert edited.count("'7'") == 1
    spoilt = edited.replace("depends: frames-training\n", "depends: plan\n").replace("--pods=tokenize", "--pods=other")
    assert generate(spoilt, "--check") == (1, spoilt)
    assert "python -m physion.kubernetes.template writes it" in capsys.readouterr().err
    assert generate(spoilt) == (0, edited)


@pytest.mark.parametrize("place", ["parameters", "pods", "lists", "tasks"])
def test_a_place_that_is_missing_is_named(generate, capsys, place):
    without = TEXT.replace(f"# generated: {place}\n", "# something else\n")
    assert generate(without) == (2, without)
    assert f"no lines '# generated: {place}'" in capsys.readouterr().err


def test_a_stage_from_outside_gets_its_task_and_its_parameters():
    stage = dataclasses.replace(STAGES["train-dvae"], name="train-other")
    tasks = study_tasks(load_config("smoke")) | {"train-other": Task("train-other", stage, ("frames-training", "tokenize"))}
    spec = yaml.safe_load(written(TEXT, tasks))["spec"]
    (task,) = (each for each in spec["templates"][-1]["dag"]["tasks"] if each["name"] == "train-other")
    assert (task["template"], task["depends"]) == ("training", "tokenize")  # which waits for frames-training itself
    added = {each["name"]: each for each in spec["arguments"]["parameters"] if each["name"] not in PARAMETERS}
    assert set(added) == {"train-other-nodes", "train-other-gpus"}
    assert added["train-other-nodes"]["value"] == "1"
    assert {"name": "train-other", "valueFrom": {"path": "/scratch/tasks/train-other"}} in next(
        template["outputs"]["parameters"] for template in spec["templates"] if template["name"] == "plan"
    )


def test_a_task_waits_for_what_its_instances_may_read_and_for_nothing_else():
    tasks = study_tasks(load_config("smoke"))
    assert set(DAG) == {"plan", *tasks}
    above = {}
    for task in tasks.values():
        above[task.name] = {"plan", *task.after}.union(*(above[name] for name in task.after))
        assert ancestors(task.name) == above[task.name]


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset=simulate"],
        ["dataset=fetch"],
        ["train-readout.features=[rollout]"],
        *([each, "train-readout.features=[rollout,full]"] for each in GIVEN),
        GIVEN,
    ],
    ids=" ".join,
)
def test_every_instance_has_a_task_that_waits_for_its_inputs(preset, overrides):
    graph = build_graph(load_config(preset, overrides))
    for node in graph.values():
        assert {task_of(graph[source]) for source in node.inputs.values()} <= ancestors(task_of(node))


def test_tasks_give_their_templates_what_these_take():
    for task in DAG.values():
        inputs = TEMPLATES[task["template"]].get("inputs", {}).get("parameters", [])
        given = {each["name"] for each in task.get("arguments", {}).get("parameters", [])}
        assert {each["name"] for each in inputs if "value" not in each} <= given <= {each["name"] for each in inputs}


def test_parameters_are_those_that_are_used():
    assert set(re.findall(r"workflow\.parameters(?:\.|\[\")([\w-]+)", TEXT)) == set(PARAMETERS)
    defaults = yaml.safe_load_all((ROOT / "k8s" / "base" / "config.yaml").read_text())
    (known,) = (each["data"] for each in defaults if each["metadata"]["name"] == "physion")
    for parameter in PARAMETERS.values():
        assert parameter["description"]
        assert "value" in parameter or parameter["valueFrom"]["configMapKeyRef"]["key"] in known


def test_what_is_cached_and_what_only_served_that_is_left_out():
    graph = build_graph(load_config("smoke", []))
    assert [node.name for node in left_to_do(graph, lambda node: False)] == list(graph)
    assert left_to_do(graph, lambda node: True) == []
    lost = {"train-dvae", "extract-slots-test", "evaluate"}
    left = left_to_do(graph, lambda node: node.name not in lost)
    assert [node.name for node in left] == ["train-dvae", "extract-slots-test", "evaluate"]
    left = left_to_do(graph, lambda node: node.name not in {"tokenize", "frames-readout"})
    assert left == []  # the report is there


def test_a_study_that_the_installed_workflow_does_not_make_is_refused():
    tasks = [task_of(node) for node in build_graph(load_config("smoke")).values()]
    require_tasks(yaml.safe_load(TEXT), tasks)
    with pytest.raises(
        ConfigError, match=r"physion-vqa has no task train-mine, mine-test: `python -m physion\.kubernetes\.template"
    ):
        require_tasks(yaml.safe_load(TEXT), [*tasks, "train-mine", "train-mine", "mine-test"])


def test_work_lists():
    config = load_config("smoke", [])
    graph = build_graph(config)
    lists = work_lists(config, [((), graph.values())], {"frames": 3})
    assert set(lists) == set(DAG) - {"plan"}
    assert lists["frames-test"] == ["0/3", "1/3", "2/3"]
    assert lists["simulate-training"] == ["0/1"]
    assert lists["fetch-training"] == lists["take-weights-steve"] == []
    assert lists["train-dvae"] == ["train-dvae"]
    assert lists["train-readout-rollout"] == ["train-readout-rollout-0", "train-readout-rollout-1"]


def test_the_plan_writes_what_the_workflow_reads(physion, tmp_path):
    ended = physion("plan", "-p", "smoke", "-s", tmp_path, "--tasks", tmp_path / "tasks", "--pods", "simulate=2")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "tasks" / "simulate-test").read_text()) == ["0/2", "1/2"]
    lists = {each["name"]: Path(each["valueFrom"]["path"]) for each in TEMPLATES["plan"]["outputs"]["parameters"]}
    assert {path.name for path in (tmp_path / "tasks").iterdir()} == set(lists)
    for name, path in lists.items():
        assert path == Path("/scratch/tasks") / name
        assert DAG[name]["withParam"] == f"{{{{tasks.plan.outputs.parameters.{name}}}}}"
    wrong = physion("plan", "-p", "smoke", "-s", tmp_path, "--tasks", tmp_path / "tasks", "--pods", "evaluate=2")
    assert wrong.code == 2
    assert "--pods evaluate=2: not of the form STAGE=N" in wrong.err


def planned(physion, folder, *options):
    """The lists of a plan, of tasks that have any work."""
    ended = physion("plan", "-p", "smoke", "-s", folder / "store", "--tasks", folder / "tasks", *options)
    assert ended.code == 0, ended.err
    lists = {path.name: json.loads(path.read_text()) for path in (folder / "tasks").iterdir()}
    return {name: entries for name, entries in lists.items() if entries}


def test_in_a_sweep_what_variants_share_is_listed_once(physion, tmp_path):
    slow, fast = "train-steve.optim.lr=1e-4", "train-steve.optim.lr=3e-4"
    lists = planned(physion, tmp_path, "--sweep", f"{slow},3e-4", "--pods", "extract-slots=2", "--pods", "frames=2")
    shared = "simulate-training simulate-readout simulate-test frames-training frames-readout frames-test train-dvae tokenize"
    both = ["train-steve", "extract-slots-training", "extract-slots-test", "train-slotformer", "rollout-test", "evaluate"]
    assert lists["frames-test"] == [f"0/2 {slow}", f"1/2 {slow}"]
    assert {entry.split()[1] for task in shared.split() for entry in lists[task]} == {slow}
    assert lists["extract-slots-test"] == [f"0/2 {slow}", f"1/2 {slow}", f"0/2 {fast}", f"1/2 {fast}"]
    for task in both:
        assert [entry.split()[1] for entry in lists[task]] == sorted([slow, fast] * (len(lists[task]) // 2))
    assert lists["train-readout-full"] == [f"train-readout-full-{seed} {lr}" for lr in (slow, fast) for seed in (0, 1)]
    assert lists["evaluate"] == [f"evaluate {slow}", f"evaluate {fast}"]


def test_a_sweep_of_two_options_makes_every_combination_and_each_part_once(physion, tmp_path):
    sweeps = ("--sweep", "train-steve.optim.lr=1e-4,3e-4", "--sweep", "train-slotformer.optim.lr=1e-4,2e-4")
    lists = planned(physion, tmp_path, *sweeps)
    counts = {
        name: len(lists[name]) for name in ("train-dvae", "train-steve", "train-readout-full", "train-slotformer", "evaluate")
    }
    assert list(counts.values()) == [1, 2, 4, 4, 4]
    assert len(set(lists["evaluate"])) == 4


def test_of_a_finished_study_only_the_reports_task_is_left(physion, preset, store, tmp_path):
    swept = ["--sweep", "evaluate.resamples=200,100"]  # the fixture's own, and another
    options = ["plan", "-p", preset, "-s", store, "--tasks", tmp_path / "tasks", *swept]
    ended = physion(*options, "--json")
    assert ended.code == 0, ended.err
    lists = {path.name: json.loads(path.read_text()) for path in (tmp_path / "tasks").iterdir()}
    assert {name: entries for name, entries in lists.items() if entries} == {
        "evaluate": ["evaluate evaluate.resamples=200", "evaluate evaluate.resamples=100"]
    }
    first, second = json.loads(ended.out)["result"]
    assert (first["overrides"], second["overrides"]) == (["evaluate.resamples=200"], ["evaluate.resamples=100"])
    assert [row["cached"] for row in first["stages"]] == [True] * 30
    assert [(row["name"], row["cached"]) for row in second["stages"]] == [("evaluate", False)]
    assert physion(*options, "--why").code == 2


def test_each_pod_takes_the_overrides_of_its_variant():
    for name, template in PODS.items():
        (value,) = [each["value"] for each in template["container"]["env"] if each["name"] == "PHYSION_SET"]
        assert ("{{inputs.parameters.variant}}" in value) == (name not in ("plan", "summary"))
        assert any(each["name"] == "PHYSION_SWEEP" for each in template["container"]["env"]) == (name in ("plan", "summary"))


def test_one_summary_of_all_variants(physion, preset, store, monkeypatch, capsys):
    swept = "evaluate.resamples=200,100"
    assert physion("run", "-p", preset, "-s", store, "--sweep", swept).code == 0
    for name, value in {"WORKFLOW": "w", "STATUS": "Succeeded", "PRESET": preset, "STORE": str(store), "SWEEP": swept}.items():
        monkeypatch.setenv(name if name in ("WORKFLOW", "STATUS") else f"PHYSION_{name}", value)
    assert summarize() == 0
    out = capsys.readouterr().out
    assert out.count("train-dvae ") == 1
    assert (out.count("\nevaluate "), out.count("\nreport: ")) == (2, 2)
    assert out.index("variant evaluate.resamples=200") < out.index("train-dvae") < out.index("variant evaluate.resamples=100")


def test_every_pod_is_hardened_alike():
    assert SPEC["securityContext"]["runAsNonRoot"] is True
    assert all(name in SPEC["podSpecPatch"] for name in ("name: init", "name: wait"))
    assert SPEC["executor"] == {"serviceAccountName": "workflow"}
    for pod in PODS.values():
        container = pod["container"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert "requests" in container["resources"]
        assert {each["name"] for each in container["volumeMounts"]} <= {each["name"] for each in SPEC["volumes"]}
        assert all(isinstance(word, str) for word in (*container["command"], *container.get("args", ())))


def test_every_stage_is_tried_again_by_one_rule_and_the_graph_is_not():
    assert TEXT.count("lastRetry") == 2
    assert {name for name, template in TEMPLATES.items() if "retryStrategy" in template} == {*PODS} - {"summary"}
    assert "templateDefaults" not in SPEC
    # Argo counts it from the start of the first try: of a stage that takes longer, no try would follow.
    assert not any(
        "maxDuration" in template["retryStrategy"]["backoff"] for template in TEMPLATES.values() if "retryStrategy" in template
    )


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
