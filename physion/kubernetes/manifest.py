"""The PyTorchJob of one training: jobs/training.yaml, filled in with what the command line says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physion import __version__
from physion.config.load import parse_yaml
from physion.errors import ConfigError

CONTAINER = "pytorch"  # the operator's name for the one that trains
GPU = "nvidia.com/gpu"
MANIFEST = "training.yaml"


@dataclass(frozen=True)
class Shape:
    """What the workers of a training are; results do not depend on it."""

    nodes: int = 1
    gpus: int = 0
    ranks: int | None = None  # of each node; without, one per GPU
    image: str | None = None
    queue: str | None = None
    patch: dict[str, Any] | None = None  # merged into the pods' spec


def job_name(stage: str, fingerprint: str, store: str) -> str:
    """The one name that every launcher of this training into this store gives its job."""
    return f"{stage}-{hashlib.sha256(f'{fingerprint} {store}'.encode()).hexdigest()[:10]}"


def read_mapping(path: Path, what: str, stage: str = "STAGE") -> dict[str, Any]:
    """A YAML file that holds one mapping, with this stage for STAGE. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error})") from error
    tree = parse_yaml(text.replace("STAGE", stage), f"{what} {path}")
    if not isinstance(tree, dict):
        raise ConfigError(f"{what} {path}: holds no mapping")
    return tree


def training_job(
    folder: Path, stage: str, name: str, shape: Shape, environment: dict[str, str], annotations: dict[str, str]
) -> dict[str, Any]:
    """The manifest of a folder as it is created: this stage, this name, this shape, these variables. Raises ConfigError."""
    path = folder / MANIFEST
    manifest = read_mapping(path, "manifest", stage)
    try:
        worker = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]
        elastic = manifest["spec"]["elasticPolicy"]
        pod = worker["template"]["spec"]
        container = next(each for each in pod["containers"] if each["name"] == CONTAINER)
    except (KeyError, TypeError, StopIteration) as error:
        raise ConfigError(f"manifest {path}: no elastic PyTorchJob of Workers with a container '{CONTAINER}'") from error
    ranks = shape.ranks or max(shape.gpus, 1)
    worker["replicas"] = elastic["minReplicas"] = elastic["maxReplicas"] = shape.nodes
    manifest["spec"]["nprocPerNode"] = str(ranks)
    if shape.image:
        container["image"] = shape.image
    resources = container.setdefault("resources", {})
    for bound in ("requests", "limits"):
        resources.get(bound, {}).pop(GPU, None)
    if shape.gpus:
        resources.setdefault("limits", {})[GPU] = shape.gpus
    given = [each for each in container.get("env", []) if each["name"] not in environment]
    container["env"] = [*given, *({"name": key, "value": value} for key, value in environment.items())]
    worker["template"]["spec"] = merged(pod, shape.patch or {})
    metadata = manifest.setdefault("metadata", {})
    metadata.pop("namespace", None)
    metadata["name"] = name
    labels = {"app.kubernetes.io/name": "physion", "app.kubernetes.io/version": __version__}
    if shape.queue:
        labels["kueue.x-k8s.io/queue-name"] = shape.queue
    metadata["labels"] = metadata.get("labels", {}) | labels
    metadata["annotations"] = metadata.get("annotations", {}) | annotations
    return manifest


def merged(old: Any, new: Any) -> Any:
    """`new` over `old`: mappings key by key (null removes), containers by name, everything else replaced."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    result = dict(old)
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        elif key == "containers" and isinstance(value, list):
            named = {each["name"]: each for each in result.get(key, [])}
            for each in value:
                named[each["name"]] = merged(named.get(each["name"], {}), each)
            result[key] = list(named.values())
        else:
            result[key] = merged(result.get(key, {}), value)
    return result
