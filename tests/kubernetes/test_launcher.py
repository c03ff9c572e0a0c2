"""`physion launch` on a real cluster with the real training operator, or Trainer; only the training itself is a stand-in."""

import json
import os
import signal
import subprocess

import pytest
import yaml
from stand_in import host_of, kind_there, stand_in, until

pytestmark = pytest.mark.cluster


def owned(name, uid, namespace):
    return {"POD_NAME": name, "POD_UID": uid, "POD_NAMESPACE": namespace.name}


def no_gap_and_no_double(numbers):
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_job_is_made_followed_and_reported(training, namespace, tmp_path):
    argo = tmp_path / "progress"
    launcher = training.launch("--nodes", 2, "--ranks", 3, "--set", "frames.workers=1", "--json", ARGO_PROGRESS_FILE=str(argo))
    name = training.job_name()
    workers = namespace.running(name, 2)
    launcher.says("3/10")
    until(lambda: argo.exists() and argo.read_text() == "3/10", "the progress")
    training.done(launcher, name)
    assert argo.read_text() == "10/10"
    nodes = "2:2" if kind_there() == "pytorchjob" else "2"  # at least and at most, or just so many
    told = f"preset={training.preset} store=file://{training.store} set=frames.workers=1 ranks=3 nodes={nodes}"
    assert told in launcher.err.splitlines()
    assert f"last words of {host_of(name, 0)}" in launcher.err
    no_gap_and_no_double(launcher.counted())
    assert launcher.result()["published"] is True
    assert set(workers) == {0, 1}
    assert training.job["metadata"]["annotations"]["physion/instance"] == "train-dvae"


def test_nothing_is_made_for_an_artifact_that_is_there(training):
    training.publish()
    launcher = training.launch("--json")
    assert launcher.ends() == 0
    assert launcher.result()["cached"] is True
    assert training.job is None


def test_a_missing_input_and_a_wrong_preset_make_no_job(training):
    (training.store / "artifacts/frames").rename(training.folder / "frames")
    launcher = training.launch()
    assert launcher.ends() == 2
    assert "input frames-training" in launcher.err
    wrong = training.launch("--set", "train-dvae.optim.lrr=1")
    assert wrong.ends() == 2
    assert "did you mean 'lr'?" in wrong.err
    assert training.job is None


@pytest.mark.parametrize("code", [2, 3, 75])
def test_a_failed_training_ends_the_launcher_with_its_exit_code(training, namespace, code):
    launcher, name = training.running("--nodes", 2, workers=2)
    pod = namespace.end(name, 1, code)
    assert launcher.ends() == code, launcher.err
    assert f"{pod} | last words of {host_of(name, 1)}" in launcher.err
    assert f"{pod} ended with exit code {code}" in launcher.err.splitlines()[-1]


def test_success_without_an_artifact_is_an_error(training, namespace):
    launcher, name = training.running()
    namespace.end(name, 0, 0)
    assert launcher.ends() == 2
    assert "its artifact is not in the store" in launcher.err


def test_a_job_that_has_failed_is_replaced(training, namespace):
    first, name = training.running()
    namespace.end(name, 0, 75)
    assert first.ends() == 75
    failed = training.job["metadata"]["uid"]
    second = training.launch()
    second.says("starting anew")
    until(lambda: (job := training.job) and job["metadata"]["uid"] != failed, "a new job")
    namespace.running(name)
    training.done(second, name)


def test_a_second_launcher_follows_the_job_of_the_first(training, namespace):
    first, name = training.running(**owned("first", namespace.owner("first"), namespace))
    second = training.launch(**owned("second", namespace.owner("second"), namespace))
    second.says("runs already: following it")
    assert [each["name"] for each in training.job["metadata"]["ownerReferences"]] == ["first", "second"]
    training.publish()
    namespace.end(name, 0, 0)
    assert (first.ends(), second.ends()) == (0, 0)
    assert len([line for line in second.err.splitlines() if line == f"last words of {host_of(name, 0)}"]) == 1
    namespace.kubectl("delete", "pod", "first", "second")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_launcher_takes_its_job_with_it_once_the_state_is_saved(training, namespace, number, code):
    launcher, name = training.running()
    launcher.says("line 3")
    launcher.signal(number)
    assert launcher.ends() == code, launcher.err
    assert "\nsaved\n" in launcher.err
    assert training.job is None
    assert namespace.workers(name) == {}
    # Kubeflow Trainer makes pods anew as long as their job is there.
    made = namespace.objects("events", "--field-selector", f"involvedObject.name={name}-node-0,reason=SuccessfulCreate")
    assert len(made) == (kind_there() == "trainjob")


def test_a_stopped_launcher_leaves_the_job_to_another(training, namespace):
    first, name = training.running(**owned("leaver", namespace.owner("leaver"), namespace))
    second = training.launch(**owned("stayer", namespace.owner("stayer"), namespace))
    second.says("runs already")
    first.signal()
    assert first.ends() == 143
    assert "goes on: another launcher follows it" in first.err
    assert [each["name"] for each in training.job["metadata"]["ownerReferences"]] == ["stayer"]
    assert len(namespace.running(name)) == 1
    second.signal()
    assert second.ends() == 143
    assert training.job is None


def test_of_two_launchers_stopped_at_once_one_takes_the_job_away(training, namespace):
    launchers = []
    for pod in ("one", "two"):
        launchers.append(training.launch(**owned(pod, namespace.owner(pod), namespace)))
        launchers[-1].says("line 1")
    for launcher in launchers:
        launcher.signal()
    assert [launcher.ends() for launcher in launchers] == [143, 143]
    assert training.job is None


def test_a_launcher_on_a_desk_does_not_take_away_what_it_only_joined(training):
    first, _ = training.running()
    second = training.launch()
    second.says("runs already")
    second.signal(signal.SIGINT)
    assert second.ends() == 130
    assert training.job["metadata"].get("deletionTimestamp") is None
    first.signal(signal.SIGINT)
    assert first.ends() == 130
    assert training.job is None


def test_a_launcher_of_a_workflow_leaves_what_a_desk_started_to_the_desk(training, namespace):
    first, name = training.running()
    second = training.launch(**owned("guest", namespace.owner("guest"), namespace))
    second.says("runs already")
    second.signal()
    assert second.ends() == 143
    assert "goes on: another launcher follows it" in second.err
    namespace.kubectl("delete", "pod", "guest")
    training.done(first, name)


def test_a_launcher_that_joins_counts_the_workers_that_there_are(training, namespace):
    first, name = training.running("--nodes", 6, workers=6)
    second = training.launch()
    second.says("runs already")
    second.says("line 1")
    training.publish()
    for index in namespace.workers(name):
        namespace.end(name, index, 0)
    assert (first.ends(), second.ends()) == (0, 0), second.err


def test_nothing_outlives_a_launcher_that_was_killed_with_its_pod(training, namespace):
    launcher, name = training.running(**owned("killed", namespace.owner("killed"), namespace))
    launcher.signal(signal.SIGKILL)
    launcher.ends()
    namespace.kubectl("delete", "pod", "killed")
    until(lambda: training.job is None and not namespace.workers(name), "the end of the job")


def test_a_job_that_is_being_deleted_is_waited_for(training, namespace):
    first, name = training.running()
    first.signal(signal.SIGKILL)
    first.ends()
    hold = {"metadata": {"finalizers": ["physion.test/hold"]}}
    namespace.kubectl("patch", kind_there(), name, "--type=merge", "-p", json.dumps(hold))
    namespace.kubectl("delete", kind_there(), name, "--wait=false")
    second = training.launch()
    second.says("to be gone")
    namespace.kubectl("patch", kind_there(), name, "--type=json", "-p", '[{"op": "remove", "path": "/metadata/finalizers"}]')
    namespace.running(name)
    second.says("line 1")
    training.done(second, name)


def test_a_job_that_someone_deletes_is_a_reason_to_try_again(training, namespace):
    launcher, name = training.running()
    namespace.kubectl("delete", kind_there(), name)
    assert launcher.ends() == 75
    assert "was deleted by someone else" in launcher.err


def test_the_log_goes_on_with_the_pod_that_takes_a_lost_ones_place(training, namespace):
    launcher = training.launch()
    name = training.job_name()
    lost = namespace.running(name)[0]["metadata"]
    launcher.says("line 5")
    namespace.kubectl("delete", "pod", lost["name"])
    namespace.replaced(name, lost["uid"])
    namespace.running(name)
    until(lambda: launcher.counted().count(1) == 2, "the log of the new pod")
    training.done(launcher, name)
    again = launcher.counted().index(1, 1)
    no_gap_and_no_double(launcher.counted()[:again])
    no_gap_and_no_double(launcher.counted()[again:])
    assert "\nsaved\n" in launcher.err


def test_a_worker_on_a_node_that_does_not_answer_is_deleted_by_force(training, namespace):
    """A node without a kubelet is what a lost node looks like from here."""
    ghost = f"ghost-{namespace.name}"
    namespace.apply(apiVersion="v1", kind="Node", metadata={"name": ghost}, spec={"unschedulable": True})
    try:
        training.manifest(stand_in(nodeName=ghost, terminationGracePeriodSeconds=1))
        launcher = training.launch(**owned("one-of-two", namespace.owner("one-of-two"), namespace))
        name = training.job_name()
        second = training.launch(**owned("other-of-two", namespace.owner("other-of-two"), namespace))
        second.says("runs already")
        lost = until(lambda: namespace.workers(name), "a worker")[0]["metadata"]
        namespace.kubectl("delete", "pod", lost["name"], "--wait=false")
        launcher.says(f"on {ghost} does not end")
        namespace.replaced(name, lost["uid"])
        until(lambda: training.job, "the job")
        assert second.process.poll() is None, second.err
        launcher.signal()
        assert launcher.ends() == 143
        assert "goes on: another launcher follows it" in launcher.err
        second.signal()
        assert second.ends() == 143
        assert namespace.workers(name) == {}
    finally:
        namespace.kubectl("delete", "node", ghost)


@pytest.mark.skipif("PHYSION_CLUSTER_PART" not in os.environ, reason="needs the command that takes parts of the cluster away")
def test_the_api_server_may_go_away_for_a_while(training):
    launcher, name = training.running()
    launcher.says("line 5")
    part = os.environ["PHYSION_CLUSTER_PART"]
    subprocess.run([part, "kill", "apiserver"], check=True)
    try:
        launcher.says("does not answer as it should")
    finally:
        subprocess.run([part, "start", "apiserver"], check=True)
    launcher.says("answers again")
    before = max(launcher.counted())
    until(lambda: max(launcher.counted()) > before, "more of the log")
    training.done(launcher, name)
    no_gap_and_no_double(launcher.counted())
    assert launcher.err.count("does not answer as it should") == 1


@pytest.mark.parametrize(
    ("options", "container", "words"),
    [
        (["--gpus", 1], {}, "no node has that many free GPUs"),
        (["--image", "physion.invalid/nothing:1"], {}, "image physion.invalid/nothing:1 cannot be had"),
        ([], {"envFrom": [{"secretRef": {"name": "physion-s3"}}]}, "secret physion-s3 is missing: create it in namespace"),
        ([], {"securityContext": {}}, "violates PodSecurity"),
        ([], {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}, "less than or equal to memory limit"),
    ],
    ids=["gpus", "image", "secret", "pod-security", "resources"],
)
def test_a_launcher_says_what_keeps_workers_from_running(training, options, container, words):
    training.manifest(stand_in(container=container))
    launcher = training.launch(*options)
    launcher.says(words)
    launcher.signal()
    assert launcher.ends() == 143, launcher.err
    assert training.job is None


def test_a_stop_in_the_moment_of_the_start_leaves_nothing(training):
    launcher = training.launch()
    launcher.says("created")
    launcher.signal()
    assert launcher.ends() == 143, launcher.err
    assert training.job is None
    if kind_there() == "trainjob":
        name = launcher.err.split()[2]  # created TrainJob NAME
        until(lambda: name not in training.namespace.kubectl("get", "trainingruntimes", "-o", "name"), "the end of its runtime")


def test_an_image_without_the_program_ends_it(training):
    training.manifest(stand_in(container={"command": ["physion"]}))
    launcher = training.launch()
    assert launcher.ends() == 2, launcher.err
    assert "cannot be started" in launcher.err.splitlines()[-1]
    assert "does alpine:3.10 hold this version of physion?" in launcher.err.splitlines()[-1]
    assert training.job is None


def test_workers_that_are_killed_again_and_again_end_it(training):
    training.manifest(stand_in("exit 137"))
    launcher = training.launch()
    assert launcher.ends() == 75, launcher.err
    assert "5 workers in a row were lost without getting the training any further" in launcher.err.splitlines()[-1]
    assert training.job is None


def test_a_quota_that_forbids_a_worker_is_named(training, namespace):
    namespace.apply(apiVersion="v1", kind="ResourceQuota", metadata={"name": "few"}, spec={"hard": {"limits.memory": "32Mi"}})
    try:
        until(lambda: "hard" in namespace.objects("resourcequotas")[0].get("status", {}), "the quota's accounts")
        launcher = training.launch()
        launcher.says("exceeded quota: few")
        assert "have the quota of the namespace raised" in launcher.err
        launcher.signal()
        assert launcher.ends() == 143
    finally:
        namespace.kubectl("delete", "resourcequota", "few")


def test_a_patch_is_in_the_pods(training, namespace, tmp_path):
    (tmp_path / "patch.yaml").write_text("priority: 0\ntolerations: [{key: spot, operator: Exists}]")
    launcher = training.launch("--patch", tmp_path / "patch.yaml")
    worker = namespace.running(training.job_name()).popitem()[1]
    assert {"key": "spot", "operator": "Exists"} in worker["spec"]["tolerations"]
    launcher.signal()
    assert launcher.ends() == 143


@pytest.fixture
def as_nobody(namespace, tmp_path):
    """A kubeconfig of a service account that may do nothing."""
    namespace.kubectl("create", "serviceaccount", "nobody")
    token = namespace.kubectl("create", "token", "nobody").strip()
    mine = json.loads(namespace.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    mine["users"] = [{"name": mine["users"][0]["name"], "user": {"token": token}}]
    path = tmp_path / "nobody.yaml"
    path.write_text(yaml.safe_dump(mine))
    yield path
    namespace.kubectl("delete", "serviceaccount", "nobody")


def test_who_may_not_make_jobs_reads_what_is_missing_and_where(training, namespace, as_nobody):
    launcher = training.launch(KUBECONFIG=str(as_nobody))
    assert launcher.ends() == 2
    last = launcher.err.splitlines()[-1]
    assert f"system:serviceaccount:{namespace.name}:nobody may not get {kind_there()}s in namespace {namespace.name}" in last
    assert "k8s/base" in last


def test_credentials_that_the_cluster_does_not_know(training, as_nobody):
    settings = yaml.safe_load(as_nobody.read_text())
    settings["users"][0]["user"]["token"] = "expired"
    as_nobody.write_text(yaml.safe_dump(settings))
    launcher = training.launch(KUBECONFIG=str(as_nobody))
    assert launcher.ends() == 2
    assert "does not know who you are" in launcher.err
