"""`argo submit` runs the whole study, on several ranks of several pods, and again in seconds."""

import json
import os
import secrets
import sys
import time
from contextlib import contextmanager

import pytest
from live import Study, argo, by_hand, command, failed, kind, kubectl, nodes, succeeded

from physion.store.artifacts import WITH_TIMES

pytestmark = pytest.mark.cluster
TRAININGS = ("train-dvae", "train-steve", "train-slotformer")
PARAMETERS = {"cpu-ranks": "2", "simulate-pods": "1", "frames-pods": "1", "extract-slots-pods": "1"}
PARAMETERS |= {f"{stage}-nodes": "2" for stage in TRAININGS}


@pytest.fixture(scope="module")
def study(toolbox):
    return Study(toolbox, f"study-{secrets.token_hex(4)}", **PARAMETERS)


@pytest.fixture(scope="module")
def first(study):
    started = time.monotonic()
    end = succeeded(study.submit())
    print(f"\nfirst run: {time.monotonic() - started:.0f} s")
    return end


def test_trainings_ran_as_jobs_on_several_ranks(first, study):
    made = study.manifests()
    assert len(made) == 36
    for stage in ("train-dvae", "train-steve", "train-slotformer"):
        assert made[stage]["host"]["ranks"] == 4


def test_the_report_is_an_artifact_of_the_workflow(first):
    steps = [node for node in nodes(first["metadata"]["name"]) if node["type"] == "Pod"]
    (evaluate,) = [node for node in steps if node["displayName"].startswith("evaluate")]
    (report,) = [each for each in evaluate["outputs"]["artifacts"] if each["name"] == "report"]
    assert report["s3"]["key"].endswith("report.html")


def test_the_summary_says_how_it_went(first, study):
    log = argo("logs", first["metadata"]["name"])
    assert f"report: {study.parameters['store']}/artifacts/evaluate/" in log
    assert f"workflow {first['metadata']['name']}: Succeeded" in log


def test_the_same_artifacts_as_on_one_machine(first, study, tmp_path):
    """4 ranks there are 4 ranks here, byte for byte: gloo adds gradients in the order of ranks, wherever they run."""
    store = tmp_path / "store"
    ranks = [word for stage in TRAININGS for word in ("--set", f"{stage}.ranks=4")]
    # A machine may tell OpenBLAS which processor to take itself for; the pods hear nothing of that.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    command(sys.executable, "-m", "physion.cli", "run", "-p", "smoke", "-s", store, *ranks, env=environment)
    here = {m["instance"]: m for path in store.glob("artifacts/*/*/manifest.json") for m in [json.loads(path.read_text())]}
    there = study.manifests()
    assert here.keys() == there.keys()
    for instance in here:
        digests = [{f["name"]: f["sha256"] for f in made[instance]["files"]} for made in (here, there)]
        assert digests[0].keys() == digests[1].keys()
        assert {name for name in digests[0] if digests[0][name] != digests[1][name]} <= WITH_TIMES, instance


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
    given = [word for key, value in study.parameters.items() for word in ("-p", f"{key}={value}")]
    name = argo("submit", "--from", "workflowtemplate/physion-vqa", "-o", "name", *given).strip()
    succeeded(name)


def test_a_job_by_hand(first, study):
    """jobs/ needs no workflow and no launcher: kubectl makes it, and it takes what the store has.

    With as many ranks as before it gives the same bytes, so what stands on it stays.
    """
    before = study.manifests()["train-dvae"]["files"]
    study.drop("train-dvae")
    documents = by_hand("train-dvae")
    kind().shape(documents, "train-dvae", nodes=2, ranks=2)
    (container,) = kind().template(documents)["spec"]["containers"]
    given = [{"name": f"PHYSION_{key.upper()}", "value": study.parameters[key]} for key in ("preset", "store")]
    container["env"] = [each for each in container["env"] if each["name"].startswith("PET_")] + given
    for each in documents:
        kubectl("create", "-f", "-", given=json.dumps(each))
    try:
        kubectl("wait", f"--for=condition={kind().success}", f"{kind().resource}/train-dvae", "--timeout=300s")
        made = study.manifests()["train-dvae"]
        assert made["host"]["ranks"] == 4
        assert [file for file in made["files"] if file["name"] not in WITH_TIMES] == [
            file for file in before if file["name"] not in WITH_TIMES
        ]
    finally:
        for each in reversed(documents):
            kubectl("delete", each["kind"], "train-dvae")


@contextmanager
def missing(kind, name):
    """Take an object away for a while."""
    taken = json.loads(kubectl("get", kind, name, "-o", "json"))
    kubectl("delete", kind, name)
    try:
        yield
    finally:
        for key in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
            taken["metadata"].pop(key, None)
        kubectl("create", "-f", "-", given=json.dumps(taken))


def test_a_missing_secret(study):
    with missing("secret", "physion-s3"):
        failed(study.submit(), "plan", "there are no credentials")


def test_a_launcher_without_its_role(first, study):
    changed = study.parameters | {"overrides": "train-slotformer.optim.steps=3"}
    with missing("rolebinding", "launcher"):
        name = Study(study.toolbox, study.prefix, **changed).submit()
        failed(name, "train-slotformer", "system:serviceaccount:physion:launcher may not")
