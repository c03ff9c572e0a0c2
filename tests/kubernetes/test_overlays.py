"""Every patch of a kustomization changes something: kustomize says nothing of one whose target is gone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from physion.commands import parse_bytes

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


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("overlay", ["local", "cloud"])
def test_no_pod_takes_more_of_a_nodes_disk_than_it_asks_for(overlay):
    rendered = subprocess.run(
        ["kubectl", "kustomize", ROOT / "k8s" / "overlays" / overlay], capture_output=True, text=True, check=True
    ).stdout
    (workflow,) = (each for each in yaml.safe_load_all(rendered) if each["kind"] == "WorkflowTemplate")
    containers = {each["name"]: each["container"] for each in workflow["spec"]["templates"] if "container" in each}
    assert {name for name, container in containers.items() if limited(container)} == WITH_CACHE
    for container in containers.values():
        asked, most = disk(container)
        assert asked < most


def test_no_training_worker_takes_more_of_a_nodes_disk_than_it_asks_for():
    job = yaml.safe_load((ROOT / "jobs" / "training.yaml").read_text())
    (container,) = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert limited(container)
    assert disk(container)[0] > 20e9  # the frames and tokens that `paper` trains on are 18 GB, read in random order
