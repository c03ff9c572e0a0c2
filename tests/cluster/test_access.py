"""Nobody may do what they do not need: tried, as each account, on the real API server."""

import base64
import functools
import json
import ssl
import subprocess
import urllib.error
import urllib.request

import pytest
import yaml
from live import NAMESPACE, ROOT, by_hand, command, kind, kubectl, until

from physion.kubernetes.manifest import Shape, merged, training_job
from physion.stages import STAGES, Kind

pytestmark = pytest.mark.cluster

NEEDED = {
    "stage": set(),
    "workflow": {("create", "workflowtaskresults.argoproj.io"), ("patch", "workflowtaskresults.argoproj.io")},
    "launcher": {
        *((verb, "pytorchjobs.kubeflow.org") for verb in ("create", "get", "patch", "delete")),
        *((verb, "trainjobs.trainer.kubeflow.org") for verb in ("create", "get", "patch", "delete")),
        *((verb, "trainingruntimes.trainer.kubeflow.org") for verb in ("create", "get", "patch", "delete")),
        *((verb, "pods") for verb in ("get", "list", "delete")),
        ("get", "pods/log"),
        ("list", "events"),
    },
    "s3": set(),
    "s3-setup": {("create", "secrets")},
    "default": set(),
}
VERBS = ("create", "get", "list", "watch", "patch", "update", "delete", "deletecollection")
RESOURCES = (
    "pods",
    "pods/log",
    "pods/exec",
    "secrets",
    "configmaps",
    "events",
    "serviceaccounts",
    "serviceaccounts/token",
    "persistentvolumeclaims",
    "pytorchjobs.kubeflow.org",
    "trainjobs.trainer.kubeflow.org",
    "trainingruntimes.trainer.kubeflow.org",
    "jobsets.jobset.x-k8s.io",
    "jobs.batch",
    "workflows.argoproj.io",
    "workflowtemplates.argoproj.io",
    "workflowtaskresults.argoproj.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "namespaces",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
)


def documents(text):
    """JSON objects, one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        each, end = decoder.raw_decode(text)
        found.append(each)
        text = text[end:]
    return found


@pytest.mark.parametrize("account", NEEDED)
def test_an_account_may_do_what_it_needs_and_nothing_else(account):
    subject = f"system:serviceaccount:{NAMESPACE}:{account}"
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": subject,
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"],
                "resourceAttributes": {
                    "namespace": where,
                    "verb": verb,
                    "resource": resource.partition(".")[0].partition("/")[0],
                    "subresource": resource.partition(".")[0].partition("/")[2],
                    "group": resource.partition(".")[2],
                },
            },
        }
        for where in (NAMESPACE, "kube-system")
        for resource in RESOURCES
        for verb in VERBS
    ]
    answers = documents(command("kubectl", "create", "-o", "json", "-f", "-", given=yaml.safe_dump_all(reviews)))
    asked = [each["spec"]["resourceAttributes"] for each in answers]
    allowed = {
        (
            where["namespace"],
            where["verb"],
            "/".join(filter(None, (where["resource"], where.get("subresource"))))
            + ("." + where["group"] if where.get("group") else ""),
        )
        for where, each in zip(asked, answers, strict=True)
        if each["status"]["allowed"]
    }
    assert allowed == {(NAMESPACE, verb, resource) for verb, resource in NEEDED[account]}


def test_the_code_of_a_study_has_no_token(toolbox):
    found = toolbox("ls", "/var/run/secrets/kubernetes.io", check=False)
    assert found.returncode != 0


@pytest.mark.parametrize("overlay", ["local", "cloud"])
def test_every_manifest_is_valid_to_the_api_server(overlay):
    rendered = command("kubectl", "kustomize", f"k8s/overlays/{overlay}")
    command("kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", given=rendered)


@pytest.mark.parametrize("stage", STAGES.of_kind(Kind.TRAINING))
def test_every_job_is_valid_and_needs_no_exception_from_restricted(stage):
    documents = by_hand(stage)
    kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", given=json.dumps(documents[0]))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": kind().template(documents)["spec"]}
    kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", given=json.dumps(pod))


def test_workflows_pass_argos_own_check():
    files = ("workflows/physion_vqa.yaml", "workflows/template.yaml")
    assert "no linting errors found" in command("argo", "lint", "-n", NAMESPACE, *files)


def test_a_pod_that_asks_for_more_is_refused():
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "a", "image": "a"}]},
    }
    refused = kubectl("create", "--dry-run=server", "-f", "-", given=json.dumps(pod), check=False)
    assert isinstance(refused, subprocess.CompletedProcess)
    assert 'violates PodSecurity "restricted' in refused.stderr


# ---------------------------------------------------------------------------------------------------- jobs of launchers
LAUNCHER = f"system:serviceaccount:{NAMESPACE}:launcher"
POLICY = "ValidatingAdmissionPolicy 'physion-launcher'"
STAGE = "train-dvae"
DIGEST = "sha256:" + "0123456789abcdef" * 4


@functools.cache
def cluster_image():
    return json.loads(kubectl("get", "configmap", "physion", "-o", "json"))["data"]["image"]


def launched(name, stage=STAGE, **shape):
    """What `physion launch` would make that says what its pods are: the PyTorchJob, or the TrainingRuntime."""
    environment = {"PHYSION_PRESET": "tiny", "PHYSION_STORE": "s3://b/p", "PHYSION_SET": ""}
    shape = Shape(**{"image": cluster_image()} | shape)
    return training_job(kind(), ROOT / "jobs", stage, name, shape, environment, {"physion/store": "s3://b/p"})[0]


def tried(jobs, *options):
    """Who makes these jobs, all at once: the names of those that the API server would take, and what it says of the others."""
    given = yaml.safe_dump_all(jobs)

    def answered():
        ended = kubectl("create", "--dry-run=server", "-o", "name", *options, "-f", "-", given=given, check=False)
        return ended if "failed calling webhook" not in ended.stderr else None  # the operator's, which is being started

    ended = until(answered)
    said = [line for line in ended.stderr.splitlines() if line.startswith(("Error", "The "))]  # either is kubectl's
    return {line.partition("/")[2] for line in ended.stdout.splitlines()}, said


@pytest.fixture(scope="module")
def guarded(deployed):
    """The policy is in force, which takes the API server a moment."""
    job = launched("other-account", patch={"serviceAccountName": "launcher"})
    until(lambda: tried([job], "--as", LAUNCHER)[0] == set(), 60)


def patches():
    """What `--patch` is given: by the overlays, and by docs/kubernetes.md."""
    for overlay in ("local", "cloud"):
        for each in yaml.safe_load_all(command("kubectl", "kustomize", f"k8s/overlays/{overlay}")):
            if (each["kind"], each["metadata"]["name"]) == ("ConfigMap", "physion-workers"):
                yield overlay, yaml.safe_load(each["data"]["pod.yaml"])
    document = (ROOT / "docs" / "kubernetes.md").read_text()
    start = document.index("pod.yaml: {") + len("pod.yaml: ")
    yield "document", yaml.safe_load(document[start : document.index("`", start)])
    nodes = {"nodeSelector": {"gpu": "h100"}, "runtimeClassName": "nvidia", "priorityClassName": "physion-training"}
    volume = [{"name": "mine", "configMap": {"name": "presets"}}, {"name": "keys", "secret": {"secretName": "physion-s3"}}]
    yield "nodes-and-volumes", {**nodes, "volumes": volume, "imagePullSecrets": [{"name": "physion-s3"}]}


def test_every_job_of_a_launcher_is_let_in(guarded):
    trainings = STAGES.of_kind(Kind.TRAINING)
    jobs = [
        launched(f"{stage}-{name}", stage, nodes=2, gpus=gpus, queue=queue, patch=patch)
        for stage in trainings
        for name, patch in patches()
        for gpus, queue in [(8, "research")]
    ]
    jobs += [launched(f"{stage}-alone", stage) for stage in trainings]
    repository = cluster_image().rpartition(":")[0]
    jobs += [launched(f"image-{n}", image=repository + end) for n, end in enumerate(["", ":b", f"@{DIGEST}", f":b@{DIGEST}"])]
    assert len(jobs) == 5 * len(trainings) + 4
    assert tried(jobs, "--as", LAUNCHER) == ({job["metadata"]["name"] for job in jobs}, [])


def container(**fields):
    return {"containers": [{"name": "node", **fields}]}


def volume(**kind):
    return {"volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "shm", **kind}]}


def another(**fields):
    """A container that is as it should be, but for these fields."""
    return {"name": "another", "image": "physion:0.1.0", "securityContext": HARDENED, **fields}


HARDENED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
TOKEN = "workflow.service-account-token"  # a Secret of the namespace that is no business of a training
ITEM = {"secretKeyRef": {"name": TOKEN, "key": "token"}}
CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
CLONE = {"dataSource": {"kind": "PersistentVolumeClaim", "name": "data-s3-0"}}
PROBE = {"httpGet": {"host": "169.254.169.254", "port": 80}}  # sent by the kubelet, from its node
IMAGES = ["evil", "physion-evil:0.1.0", "physion/evil", "physion:1/evil", "evil/physion:0.1.0", "physion:5000/physion"]
IMAGES += ["physion@a"]
WAYS_OUT = {  # patches of a worker's pod
    **{f"account-{name}": {"serviceAccountName": name} for name in ("launcher", "workflow", "s3-setup", "default")},
    "account-none": {"serviceAccountName": None},
    "account-old-field": {"serviceAccount": "launcher"},
    "token": {"automountServiceAccountToken": True},
    "secret-env-from": container(envFrom=[{"secretRef": {"name": TOKEN}}]),
    "secret-env": container(env=[{"name": "A", "valueFrom": ITEM}]),
    "secret-volume": volume(secret={"secretName": TOKEN}),
    "secret-projected": volume(projected={"sources": [{"secret": {"name": TOKEN}}]}),
    "secret-pull": {"imagePullSecrets": [{"name": TOKEN}]},
    "secret-csi": volume(csi={"driver": "a", "nodePublishSecretRef": {"name": TOKEN}}),
    "secret-cephfs": volume(cephfs={"monitors": ["a"], "secretRef": {"name": TOKEN}}),
    "secret-flex": volume(flexVolume={"driver": "a/b", "secretRef": {"name": TOKEN}}),
    "secret-init": {"initContainers": [another(envFrom=[{"secretRef": {"name": TOKEN}}])]},
    "secret-sidecar": {"containers": [another(env=[{"name": "A", "valueFrom": ITEM}])]},
    "token-projected": volume(projected={"sources": [{"serviceAccountToken": {"path": "a", "audience": "b"}}]}),
    "host-path": volume(hostPath={"path": "/"}),
    "nfs": volume(nfs={"server": "10.0.0.1", "path": "/"}),
    "claim": volume(persistentVolumeClaim={"claimName": "data-s3-0"}),
    "claim-cloned": volume(ephemeral={"volumeClaimTemplate": {"spec": CLAIM | CLONE}}),
    "image-volume": volume(image={"reference": "evil"}),
    "device": container(volumeDevices=[{"name": "a", "devicePath": "/dev/a"}]),
    "host-network": {"hostNetwork": True},
    "host-pid": {"hostPID": True},
    "host-ipc": {"hostIPC": True},
    "host-port": container(ports=[{"containerPort": 80, "hostPort": 80}]),
    "host-probe": container(livenessProbe=PROBE),
    "host-hook": container(lifecycle={"preStop": PROBE}),
    "node": {"nodeName": "node1"},
    "resolver": {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["203.0.113.7"]}},
    "host-alias": {"hostAliases": [{"ip": "203.0.113.7", "hostnames": ["s3"]}]},
    "processes-shared": {"shareProcessNamespace": True},
    "ephemeral": {"ephemeralContainers": [{"name": "a", "image": "a"}]},
    "priority": {"priorityClassName": "system-node-critical"},
    "privileged": container(securityContext=HARDENED | {"privileged": True}),
    "privilege-gained": container(securityContext=HARDENED | {"allowPrivilegeEscalation": True}),
    "capability": container(securityContext=HARDENED | {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}),
    "proc": container(securityContext=HARDENED | {"procMount": "Unmasked"}),
    "root-container": container(securityContext=HARDENED | {"runAsUser": 0}),
    "bare-container": container(securityContext=None),
    "privileged-init": {"initContainers": [another(securityContext={"privileged": True})]},
    "root": {"securityContext": {"runAsNonRoot": False, "runAsUser": 0}},
    "unconfined": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
    "localhost-profile": {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a"}}},
    "kernel-setting": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    "selinux": {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}},
    "apparmor": {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
    "windows": {"securityContext": {"windowsOptions": {"hostProcess": True}}},
    "image-init": {"initContainers": [another(image="evil")]},
    **{f"image-{number}": container(image=image) for number, image in enumerate(IMAGES)},
}


def ways_out():
    """Jobs that a launcher has no use for, each otherwise as it should be."""
    for name, patch in WAYS_OUT.items():
        yield launched(name, patch=patch)

    def changed(name, **metadata):
        job = launched(name)
        template = template_of(job)
        template |= merged(template, {"metadata": metadata})
        return job

    yield changed("label-of-the-server", labels={"app.kubernetes.io/name": "s3"})
    yield changed("label-of-a-download", labels={"app.kubernetes.io/component": "fetch-test"})
    yield changed("label-of-others", labels={"app": "database"})
    yield changed("annotation", annotations={"k8s.v1.cni.cncf.io/networks": "other"})
    yield changed("finalizer", finalizers=["a/b"])
    job = launched("another-kind-of-pods")
    if job["kind"] == "PyTorchJob":
        replicas = job["spec"]["pytorchReplicaSpecs"]
        replicas["Master"] = merged(replicas["Worker"], {"template": {"spec": {"serviceAccountName": "launcher"}}})
    else:
        jobs = job["spec"]["template"]["spec"]["replicatedJobs"]
        evil = {"template": {"spec": {"template": {"spec": {"serviceAccountName": "launcher"}}}}}
        jobs.append(merged(jobs[0], {"name": "other", "template": {"metadata": None}}))
        jobs[1] = merged(jobs[1], evil)
    yield job


def template_of(job):
    return kind().template([job] if job["kind"] == "PyTorchJob" else [job, None])


def test_no_job_of_a_launcher_gets_out(guarded):
    """Each would be taken from somebody else, so it is the policy that refuses it."""
    jobs = list(ways_out())
    names = {job["metadata"]["name"] for job in jobs}
    assert len(names) == len(jobs) == len(WAYS_OUT) + 6
    assert tried(jobs) == (names, [])
    let_in, refusals = tried(jobs, "--as", LAUNCHER)
    assert let_in == set()
    assert len(refusals) == len(jobs)
    reasons = set()
    for name in names:
        (said,) = (line for line in refusals if f'"{name}"' in line)
        assert POLICY in said
        reasons.add(said.partition("denied request: ")[2])
    policy = next(yaml.safe_load_all((ROOT / "k8s/components/admission/policy.yaml").read_text()))
    assert len(reasons) == len(policy["spec"]["validations"])  # each is needed, and none ends in an error of its own
    assert not any("expression" in reason for reason in reasons)


def test_a_job_that_is_there_is_not_changed_into_another(guarded):
    """Its owners and annotations are, which a launcher that joins it adds."""
    job = launched("train-dvae-probe")
    if job["kind"] == "PyTorchJob":
        job["spec"]["runPolicy"]["suspend"] = True  # so that nothing starts
    kubectl("create", "--as", LAUNCHER, "-f", "-", given=json.dumps(job))
    try:
        change = ["patch", job["kind"], "train-dvae-probe", "--as", LAUNCHER, "--type", "merge", "-p"]
        kubectl(*change, json.dumps({"metadata": {"annotations": {"a": "b"}}}))
        template_of(job)["spec"]["serviceAccountName"] = "launcher"
        refused = kubectl(*change, json.dumps({"spec": job["spec"]}), check=False)
        assert POLICY in refused.stderr
    finally:
        kubectl("delete", job["kind"], "train-dvae-probe")


def trainer():
    if kind().name != "TrainJob":
        pytest.skip("no TrainJobs in this cluster")


def runtime_patch(**template):
    """More than Kueue adds: the queue's name."""
    return {"runtimePatches": [{"manager": "a.b/c", "trainingRuntimeSpec": {"template": template}}]}


JOBSETS = {  # what a launcher has no use for in a TrainingRuntime, by the words of its refusal
    "mpi": ("for torch", {"mlPolicy": {"torch": None, "mpi": {"numProcPerNode": 1}}}),
    "gang": ("for torch", {"podGroupPolicy": {"coscheduling": {}}}),
    "labels": ("for torch", {"template": {"metadata": {"labels": {"a": "b"}}}}),
    "network": ("of a TrainingRuntime's Job", {"template": {"spec": {"network": {"subdomain": "s3"}}}}),
    "manager": ("of a TrainingRuntime's Job", {"template": {"spec": {"managedBy": "a/b"}}}),
}
TRAINJOBS = {  # and in a TrainJob
    "other-runtime": ("of its own name", {"runtimeRef": {"name": "other"}}),
    "cluster-runtime": ("of its own name", {"runtimeRef": {"kind": "ClusterTrainingRuntime"}}),
    "image": ("how many nodes", {"trainer": {"image": "evil"}}),
    "command": ("how many nodes", {"trainer": {"command": ["evil"]}}),
    "secret": ("how many nodes", {"trainer": {"env": [{"name": "A", "valueFrom": ITEM}]}}),
    "initializer": ("how many nodes", {"initializer": {"dataset": {"secretRef": {"name": TOKEN}}}}),
    "patch": ("how many nodes", runtime_patch(spec={"replicatedJobs": [{"name": "node"}]})),
    "patch-labels": ("how many nodes", runtime_patch(metadata={"labels": {"a": "b"}})),
    "patch-annotations": ("how many nodes", runtime_patch(metadata={"annotations": {"a": "b"}})),
}


@pytest.mark.parametrize("name", JOBSETS)
def test_a_training_runtime_of_a_launcher_says_nothing_but_what_its_pods_are(guarded, name):
    trainer()
    words, spec = JOBSETS[name]
    runtime = merged(launched(f"set-{name}"), {"spec": spec})
    assert tried([runtime])[1] == []
    ((said,), let_in) = reversed(tried([runtime], "--as", LAUNCHER))
    assert let_in == set()
    assert POLICY[:-1] + "-trainer'" in said
    assert words in said


def test_a_train_job_of_a_launcher_says_nothing_but_how_many(guarded):
    trainer()
    runtime, job = training_job(kind(), ROOT / "jobs", STAGE, "train-dvae-probe", Shape(image=cluster_image()), {}, {})
    kubectl("create", "-f", "-", given=json.dumps(runtime))
    try:
        queued = merged(job, {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "any"}}})
        for mine in (job, queued):
            until(lambda mine=mine: tried([mine], "--as", LAUNCHER) == ({"train-dvae-probe"}, []), 30)
        for words, spec in TRAINJOBS.values():
            let_in, said = tried([merged(job, {"spec": spec})], "--as", LAUNCHER)
            assert let_in == set(), spec
            assert words in said[0]
    finally:
        kubectl("delete", "trainingruntime", "train-dvae-probe")


def test_what_the_cluster_is_set_to_is_let_in(guarded):
    """Secrets and claims by name, for workers that need more of them."""
    patch = volume(secret={"secretName": "presets"}) | {"imagePullSecrets": [{"name": "registry"}]}
    jobs = [launched("with-secret", patch=patch), launched("with-claim", patch=WAYS_OUT["claim"])]
    names = {job["metadata"]["name"] for job in jobs}
    known = json.loads(kubectl("get", "configmap", "physion", "-o", "json"))["data"]
    more = {"training-secrets": "physion-s3 presets registry", "training-claims": "mine data-s3-0"}
    kubectl("patch", "configmap", "physion", "--type", "merge", "-p", json.dumps({"data": more}))
    try:
        until(lambda: tried(jobs, "--as", LAUNCHER) == (names, []), 60)
    finally:
        back = {key: known[key] for key in more}
        kubectl("patch", "configmap", "physion", "--type", "merge", "-p", json.dumps({"data": back}))
    until(lambda: tried(jobs, "--as", LAUNCHER)[0] == set(), 60)


def test_a_launchers_token_is_a_launchers_name(guarded):
    """What it has in its pod, at the API server itself: no impersonation."""
    config = json.loads(command("kubectl", "config", "view", "--raw", "--minify", "-o", "json"))
    server = config["clusters"][0]["cluster"]
    trust = ssl.create_default_context(cadata=base64.b64decode(server["certificate-authority-data"]).decode())
    token = kubectl("create", "token", "launcher").strip()
    job = launched("fine")
    resource = "pytorchjobs" if job["kind"] == "PyTorchJob" else "trainingruntimes"
    url = f"{server['server']}/apis/{job['apiVersion']}/namespaces/{NAMESPACE}/{resource}?dryRun=All"

    def made(job):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(job).encode(), headers)
        with urllib.request.urlopen(request, context=trust) as answer:
            return json.loads(answer.read())["kind"]

    assert made(job) == job["kind"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        made(launched("not-fine", patch=WAYS_OUT["account-launcher"]))
    assert POLICY in refused.value.read().decode()


LISTENING = """
rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").read().splitlines()[1:]]
print(*sorted({int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}))
"""
OPEN = """
import socket, sys
for port in map(int, sys.argv[2:]):
    with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as probe:
        probe.settimeout(5)
        if probe.connect_ex((sys.argv[1], port)) == 0:
            print(port)
"""


def test_another_pod_reaches_the_s3_port_alone(toolbox):
    """Whether or not the cluster enforces policies. Tried on every port that something in its pod listens on."""
    ports = kubectl("exec", "s3-0", "-c", "door", "--", "python", "-c", LISTENING).split()
    assert {"8333", "8334", "8888", "9333"} <= set(ports)
    address = kubectl("get", "pod", "s3-0", "-o", "jsonpath={.status.podIP}")
    assert toolbox("python", "-c", OPEN, address, *ports, "18333", "18888", "19333").split() == ["8333"]
