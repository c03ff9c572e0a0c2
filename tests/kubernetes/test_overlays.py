"""Every patch of a kustomization changes something: kustomize says nothing of one whose target is gone."""

import ipaddress
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from physion.commands import parse_bytes
from physion.kubernetes.jobs import KINDS

ROOT = Path(__file__).parents[2]
BASE = ROOT / "k8s" / "base"
FOLDERS = sorted(path.parent for top in ("k8s", "workflows") for path in (ROOT / top).rglob("kustomization.yaml"))
CHECKED = {"apiVersion", "kind", "namespace", "labels", "resources", "components", "patches", "replacements"}


def read(folder):
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def resources(folder):
    """What its patches see: all that it names, and what its components bring."""
    config = read(folder)
    found = resources(BASE) if config["kind"] == "Component" else []
    for path in (folder / name for name in (*config.get("resources", ()), *config.get("components", ()))):
        found += resources(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    return found


def selected(target, found):
    """The resources that it names; kustomize takes both words as patterns."""
    assert set(target) <= {"kind", "name"}
    names = [(each, {"kind": each["kind"], "name": each["metadata"]["name"]}) for each in found]
    return [each for each, is_ in names if all(re.fullmatch(pattern, is_[key]) for key, pattern in target.items())]


def there(tree, keys):
    """What lies at these keys; with `*`, of every element."""
    for key in keys[:1]:
        chosen = tree if key == "*" else [tree[int(key) if isinstance(tree, list) else key]]
        return [leaf for each in chosen for leaf in there(each, keys[1:])]
    return [tree]


def check_operation(operation, tree):
    """JSON Patch: `add` needs what it adds to, everything else what it changes."""
    keys = [key.replace("~1", "/").replace("~0", "~") for key in operation["path"].split("/")[1:]]
    (found,) = there(tree, keys[:-1] if operation["op"] == "add" else keys)
    assert operation["op"] != "add" or isinstance(found, dict | list)
    assert operation["op"] != "test" or found == operation["value"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_patch_has_a_target_and_finds_there_what_it_changes(folder):
    config, found = read(folder), resources(folder)
    assert set(config) <= CHECKED
    for patch in config.get("patches", ()):
        change = yaml.safe_load(patch["patch"])
        operations = change if isinstance(change, list) else []
        targets = selected(
            patch["target"] if operations else {"kind": change["kind"], "name": change["metadata"]["name"]}, found
        )
        assert targets, f"{patch} changes nothing"
        for operation in operations:
            for each in targets:
                check_operation(operation, each)
    for replacement in config.get("replacements", ()):
        field = replacement["source"].pop("fieldPath")
        assert [there(each, field.split(".")) for each in selected(replacement["source"], found)]
        for target in replacement["targets"]:
            targets = selected(target["select"], found)
            assert targets, f"{target} changes nothing"
            assert all(there(each, path.split(".")) for each in targets for path in target["fieldPaths"])


WITH_CACHE = {"bulk", "stage", "evaluate"}  # templates of pods that read data
UNITS = {"Mi": 2**20, "Gi": 2**30}


def disk(container):
    """Bytes of disk that a container asks for, and may take at most."""
    bounds = [container["resources"][bound]["ephemeral-storage"] for bound in ("requests", "limits")]
    return [int(bound[:-2]) * UNITS[bound[-2:]] for bound in bounds]


def limited(container):
    """Whether its cache is as large as the disk that it asks for, and it may take as much again for what it makes."""
    asked, most = disk(container)
    limits = [each for each in container["env"] if each["name"] == "PHYSION_CACHE_LIMIT"]
    assert parse_bytes(str(asked)) == asked  # which is how Kubernetes says it
    from_request = {"resourceFieldRef": {"resource": "requests.ephemeral-storage"}}
    return most == 2 * asked and [each["valueFrom"] for each in limits] == [from_request]


def rendered(folder):
    """What kubectl would apply."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    ended = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(ended.stdout))


@pytest.mark.parametrize("overlay", ["local", "cloud"])
def test_no_pod_takes_more_of_a_nodes_disk_than_it_asks_for(overlay):
    (workflow,) = (each for each in rendered(ROOT / "k8s/overlays" / overlay) if each["kind"] == "WorkflowTemplate")
    containers = {each["name"]: each["container"] for each in workflow["spec"]["templates"] if "container" in each}
    assert {name for name, container in containers.items() if limited(container)} == WITH_CACHE
    for container in containers.values():
        asked, most = disk(container)
        assert asked < most


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_training_worker_takes_more_of_a_nodes_disk_than_it_asks_for(kind):
    documents = list(yaml.safe_load_all((ROOT / "jobs" / kind.manifest).read_text()))
    (container,) = kind.template(documents)["spec"]["containers"]
    assert limited(container)
    assert disk(container)[0] > 20e9  # the frames and tokens that `paper` trains on are 18 GB, read in random order


def test_images_are_pinned_by_digest_as_the_document_says(tmp_path):
    """In every place that names one."""
    document = (ROOT / "docs" / "security.md").read_text()
    data, images = re.findall(r"^ +(data: {image: .*)\n +(images: .*)$", document, re.MULTILINE)[0]
    for name in ("k8s", "workflows"):
        shutil.copytree(ROOT / name, tmp_path / name)
    overlay = tmp_path / "k8s/overlays/local"
    text = (overlay / "kustomization.yaml").read_text()
    changed = text.replace("data: {preset: tiny, image: physion:0.1.0, ", data.removesuffix("}") + ", preset: tiny, ")
    assert changed != text
    (overlay / "kustomization.yaml").write_text(changed + images + "\n")
    found = re.findall(r"\bimage: (.+)", yaml.safe_dump_all(rendered(overlay)))
    digest = "@sha256:" + "0123456789abcdef" * 4
    ours, theirs = f"registry.example/physion{digest}", f"chrislusf/seaweedfs{digest}"
    assert set(found) == {ours, theirs, "'{{workflow.parameters.image}}'"}
    assert found.count(ours) == 4  # the ConfigMap, the setup's two containers, the door


# ------------------------------------------------------------------------------------------------------- admission
@pytest.mark.parametrize("overlay", ["local", "cloud"])
def test_the_policy_of_launchers_is_in_force_in_the_namespace_and_finds_what_it_looks_up(overlay):
    """tests/cluster/test_access.py tries what it refuses."""
    found = {(each["kind"], each["metadata"]["name"]): each for each in rendered(ROOT / "k8s/overlays" / overlay)}
    for name in ("physion-launcher", "physion-launcher-trainer"):
        policy = found["ValidatingAdmissionPolicy", name]["spec"]
        assert policy["failurePolicy"] == "Fail"
        binding = found["ValidatingAdmissionPolicyBinding", name]["spec"]
        assert (binding["policyName"], binding["validationActions"]) == (name, ["Deny"])
        assert selects(binding["matchResources"]["namespaceSelector"], found["Namespace", "physion"]["metadata"]["labels"])
    policy = found["ValidatingAdmissionPolicy", "physion-launcher"]["spec"]
    binding = found["ValidatingAdmissionPolicyBinding", "physion-launcher"]["spec"]
    data = found["ConfigMap", binding["paramRef"]["name"]]["data"]
    keys = set(re.findall(r"params\.data(?:\.|\[')([a-z-]+)", str(policy)))
    assert keys == {"image", "training-secrets", "training-claims"}
    assert keys <= set(data)


# ------------------------------------------------------------------------------------------------------- network
STAGE = {"app.kubernetes.io/name": "physion", "app.kubernetes.io/component": "train-steve"}
FETCH = STAGE | {"app.kubernetes.io/component": "fetch-test"}
KUBE_DNS = {"namespace": {"kubernetes.io/metadata.name": "kube-system"}, "pod": {"k8s-app": "kube-dns"}}
OTHER_DNS = {"namespace": {"kubernetes.io/metadata.name": "elsewhere"}, "pod": {"k8s-app": "kube-dns"}}


def selects(selector, labels):
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def is_peer(peer, to):
    """Whether a rule's peer is an address, or a pod: {"pod": labels, "namespace": labels of another namespace}."""
    if "ipBlock" in peer:
        assert set(peer["ipBlock"]) == {"cidr"}
        return isinstance(to, str) and ipaddress.ip_address(to) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
    if isinstance(to, str) or ("namespaceSelector" in peer) != ("namespace" in to):
        return False
    return selects(peer.get("namespaceSelector", {}), to.get("namespace", {})) and selects(peer["podSelector"], to["pod"])


def reaches(policies, pod, to, port, protocol="TCP"):
    """Whether any policy of a pod lets it out there, as the API's reference has it."""
    mine = [each["spec"] for each in policies if selects(each["spec"]["podSelector"], pod)]
    assert any("Egress" in spec["policyTypes"] for spec in mine)
    return any(
        any(is_peer(peer, to) for peer in rule["to"]) if "to" in rule else True
        for spec in mine
        for rule in spec.get("egress", ())
        if "ports" not in rule or {"port": port, "protocol": protocol} in rule["ports"]
    )


def policies_of(folder):
    return [each for each in rendered(folder) if each["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize("overlay", ["local", "cloud"])
def test_what_pods_reach(overlay):
    def out(to, port, protocol="TCP", pod=STAGE):
        return reaches(policies, pod, to, port, protocol)

    policies = policies_of(ROOT / "k8s/overlays" / overlay)
    assert out(KUBE_DNS, 53, "UDP")
    assert out(KUBE_DNS, 53)
    assert not any(out(to, 53, "UDP") for to in (OTHER_DNS, "8.8.8.8", "10.0.0.1"))
    assert out({"pod": STAGE}, 29400)
    assert not out({"pod": STAGE, "namespace": {"kubernetes.io/metadata.name": "elsewhere"}}, 29400)
    assert all(out(address, port) for address in ("10.96.0.1", "172.18.0.2", "192.168.0.9") for port in (443, 6443))
    assert out("10.0.0.1", 8443)
    assert not out("10.0.0.1", 22)
    in_cluster = {"pod": {"app.kubernetes.io/name": "s3"}}
    assert (out(in_cluster, 8333), out(in_cluster, 8888)) == (overlay == "local", False)
    assert out("203.0.113.7", 443) == (overlay == "cloud")
    assert out("203.0.113.7", 443, pod=FETCH)
    assert not reaches(policies, {}, KUBE_DNS, 53)
    assert not reaches(policies, {"app.kubernetes.io/name": "s3"}, "203.0.113.7", 443)


def test_the_addresses_that_the_document_shows_how_to_give(tmp_path):
    document = (ROOT / "docs" / "kubernetes.md").read_text()
    (patches,) = re.findall(r"^    patches:\n(?:      .*\n)+", document, re.MULTILINE)
    base = os.path.relpath(ROOT / "k8s/overlays/cloud", tmp_path)
    text = f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{base}]\n{patches}"
    (tmp_path / "kustomization.yaml").write_text(text.replace("\n    ", "\n"))
    policies = policies_of(tmp_path)
    assert reaches(policies, STAGE, "203.0.113.7", 8443)
    assert reaches(policies, STAGE, "192.0.2.9", 9000)
    for address in ("203.0.113.7", "192.0.2.9", "198.51.100.1", "10.0.0.1"):
        assert not any(reaches(policies, STAGE, address, port) for port in (443, 6443))
