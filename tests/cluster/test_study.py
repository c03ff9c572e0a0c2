"""`argo submit` runs the whole study, on several ranks of several pods, and again in seconds."""

import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT, Study, argo, ended, kubectl, nodes, succeeded

pytestmark = pytest.mark.cluster
RANKS = {"cpu-ranks": "2", **{f"{stage}-nodes": "2" for stage in ("train-dvae", "train-steve", "train-slotformer")}}


@pytest.fixture(scope="module")
def study(toolbox):
    study = Study(toolbox, "study", **RANKS)
    study.drop("")
    return study


@pytest.fixture(scope="module")
def first(study):
    started = time.monotonic()
    end = succeeded(study.submit())
    print(f"\nfirst run: {time.monotonic() - started:.0f} s")
    return end


def test_trainings_ran_as_pytorchjobs_on_several_ranks(first, study):
    made = study.manifests()
    assert len(made) == 20
    for stage in ("train-dvae", "train-steve", "train-slotformer"):
        assert made[stage]["host"]["ranks"] == 4


def test_the_report_is_an_artifact_of_the_workflow(first):
    (evaluate,) = [
        node for node in nodes(first["metadata"]["name"]) if node["displayName"] == "evaluate" and node["type"] == "Pod"
    ]
    (report,) = [each for each in evaluate["outputs"]["artifacts"] if each["name"] == "report"]
    assert report["s3"]["key"].endswith("report.html")


def test_the_summary_says_how_it_went(first):
    log = argo("logs", first["metadata"]["name"])
    assert "report: s3://physion/study/artifacts/evaluate/" in log
    assert f"workflow {first['metadata']['name']}: Succeeded" in log


def test_the_same_metrics_as_on_one_machine(first, study, tmp_path):
    """4 ranks there are 4 ranks here: gloo adds gradients in the order of ranks, wherever they run."""
    store = tmp_path / "store"

    def run(*words):
        subprocess.run([sys.executable, "-m", *words, "-p", "smoke", "-s", store], check=True, cwd=ROOT, capture_output=True)

    plan = json.loads(
        subprocess.run(
            [sys.executable, "-m", "physion.cli", "plan", "--json", "-p", "smoke", "-s", store],
            check=True, cwd=ROOT, capture_output=True, text=True,
        ).stdout
    )  # fmt: skip
    for row in plan:
        if row["name"] in ("train-dvae", "train-steve", "train-slotformer"):
            run("physion.training.launch", "--nproc-per-node=4", "stage", row["name"])
        else:
            run("physion.cli", "stage", row["name"])
    (metrics,) = store.glob("artifacts/evaluate/*/metrics.json")
    key = f"artifacts/evaluate/{metrics.parent.name}/metrics.json"
    there = study.toolbox("physion", "store", "get", f"s3://physion/study/{key}", "/dev/stdout")
    assert json.loads(there) == json.loads(metrics.read_text())


def test_a_second_submit_finds_everything_done(first, study):
    before = study.manifests()
    started = time.monotonic()
    name = study.submit()
    end = succeeded(name)
    print(f"\nsecond run: {time.monotonic() - started:.0f} s")
    ran = {node["displayName"] for node in nodes(name) if node["type"] == "Pod"}
    assert {each.split("(")[0] for each in ran} == {"plan", "evaluate", f"{end['metadata']['name']}.onExit"}
    assert study.manifests() == before


def test_submit_from_the_template(study, first):
    name = argo(
        "submit", "--from", "workflowtemplate/physion-vqa", "-o", "name", "-p", "preset=smoke", "-p", "store=s3://physion/study"
    ).strip()
    succeeded(name)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"preset": "tinny"}, "unknown preset 'tinny'"),
        ({"overrides": "train-steve.optim.lrr=1"}, "lrr"),
        ({"store": "s3://no-such-bucket/study"}, "no-such-bucket"),
    ],
)
def test_bad_input_fails_at_the_plan_with_one_clear_line(study, parameters, message):
    name = Study(study.toolbox, "study", **parameters).submit()
    end = ended(name)
    assert end["status"]["phase"] == "Failed"
    (plan,) = [
        node
        for node in nodes(name)
        if node["displayName"].startswith("plan(") or (node["displayName"] == "plan" and node["type"] == "Pod")
    ]
    assert "exit code 2" in plan["message"]
    assert message in argo("logs", name)
    kubectl("delete", "workflow", name)
