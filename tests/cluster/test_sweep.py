"""`physion submit --sweep` makes variants of the study in one workflow, and what they share once."""

import json
import secrets
import sys
from collections import Counter

import pytest
from live import NAMESPACE, Study, argo, command, nodes, succeeded

# Among the tests that take an hour: beside the study of test_study.py it would take two cores too long.
pytestmark = [pytest.mark.cluster, pytest.mark.chaos]
VALUES = ("1e-4", "3e-4")
SWEEP = f"train-slotformer.optim.lr={','.join(VALUES)}"
SHARED = ("simulate", "frames", "train-dvae", "tokenize", "train-steve", "extract-slots")
PODS = ("simulate", "frames", "tokenize", "extract-slots")


@pytest.fixture(scope="module")
def submit(toolbox):
    store = f"s3://physion/sweep-{secrets.token_hex(4)}"
    given = ["-p", "smoke", "-s", store, "--sweep", SWEEP, "--param", "readout-seeds=0"]
    given += [word for stage in PODS for word in ("--param", f"{stage}-pods=1")]

    def start():
        started = command(sys.executable, "-m", "physion.cli", "submit", *given, "-n", NAMESPACE, "--json")
        name = json.loads(started)["result"]["name"]
        succeeded(name)
        return name

    start.study = Study(toolbox, store.rpartition("/")[2])
    start.store = store
    return start


@pytest.fixture(scope="module")
def ended(submit):
    """The first workflow, and its logs: its pods are gone a minute later."""
    name = submit()
    return name, argo("logs", name)


@pytest.fixture(scope="module")
def first(ended):
    return ended[0]


def tasks(name):
    """How many pods each task had."""
    return Counter(node["displayName"].partition("(")[0] for node in nodes(name) if node["type"] == "Pod")


def test_what_variants_share_is_made_once(first, submit):
    ran = tasks(first)
    assert {count for task, count in ran.items() if task.startswith(SHARED)} == {1}
    assert {ran[task] for task in ("train-slotformer", "rollout-test", "train-readout-rollout", "evaluate")} == {2}
    assert ran["train-readout-full"] == 1
    made = Counter(manifest["instance"] for manifest in submit.study.published())
    assert {count for instance, count in made.items() if instance.startswith(SHARED)} == {1}
    assert made["train-slotformer"] == made["evaluate"] == 2


def test_compare_shows_both_variants(first, submit, toolbox):
    runs = json.loads(toolbox("physion", "runs", "-s", submit.store, "--json"))["result"]
    compared = json.loads(toolbox("physion", "compare", *(run["fingerprint"] for run in runs), "-s", submit.store, "--json"))
    assert {f"{value:g}" for value in compared["result"]["options"]["train-slotformer.optim.lr"]} == {
        f"{float(value):g}" for value in VALUES
    }


def test_status_and_summary_tell_them_apart(ended, submit):
    first, logs = ended
    words = [sys.executable, "-m", "physion.cli"]
    steps = [
        step["name"] for step in json.loads(command(*words, "status", first, "-n", NAMESPACE, "--json"))["result"]["steps"]
    ]
    for number, value in enumerate(VALUES):
        assert f"train-slotformer({number}:train-slotformer train-slotformer.optim.lr={value})" in steps
    assert [logs.count(f"variant train-slotformer.optim.lr={value}") for value in VALUES] == [1, 1]
    assert logs.count(f"report: {submit.store}/artifacts/evaluate/") == 2


def test_a_second_submit_finds_both_done(first, submit):
    before = submit.study.published()
    again = submit()
    assert tasks(again) == {"plan": 1, "evaluate": 2, f"{again}.onExit": 1}
    assert submit.study.published() == before
