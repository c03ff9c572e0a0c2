"""Nobody may do what they do not need: tried, as each account, on the real API server."""

import json
import subprocess

import pytest
import yaml
from live import NAMESPACE, by_hand, command, kubectl

from physion.stages import STAGES, Kind

pytestmark = pytest.mark.cluster

NEEDED = {
    "stage": set(),
    "workflow": {("create", "workflowtaskresults.argoproj.io"), ("patch", "workflowtaskresults.argoproj.io")},
    "launcher": {
        *((verb, "pytorchjobs.kubeflow.org") for verb in ("create", "get", "list", "patch", "delete")),
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
    "workflows.argoproj.io",
    "workflowtemplates.argoproj.io",
    "workflowtaskresults.argoproj.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
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
    manifest = by_hand(stage)
    kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", given=json.dumps(manifest))
    pod = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": pod["spec"]}
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
