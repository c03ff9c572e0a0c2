"""Every patch of a kustomization changes something: kustomize says nothing of one whose target is gone."""

import re
from pathlib import Path

import pytest
import yaml

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
