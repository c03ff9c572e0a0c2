"""The job of one training: a manifest of `jobs/`, filled in with what the command line says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physion import __version__
from physion.config.load import parse_yaml
from physion.errors import ConfigError
from physion.kubernetes.jobs import KINDS, JobKind

GPU = "nvidia.com/gpu"


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


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """A YAML file that holds one mapping. Raises ConfigError."""
    (mapping,) = _mappings([_text(path, what)], f"{what} {path}")
    return mapping


def training_job(
    kind: JobKind,
    folder: Path,
    stage: str,
    name: str,
    shape: Shape,
    environment: dict[str, str],
    annotations: dict[str, str],
) -> list[dict[str, Any]]:
    """The documents of a kind's manifest as they are created: this stage, this name, this shape, these variables.

    The last one is the job. Raises ConfigError.
    """
    path = folder / kind.manifest
    if not path.exists():
        raise ConfigError(f"no {kind.manifest}, the manifest of a {kind.name}, in {folder}: name the right folder with --jobs")
    text = _text(path, "manifest").replace("STAGE", stage)
    documents = _mappings(re.split(r"^---$", text, flags=re.MULTILINE), f"manifest {path}")
    try:
        template = kind.template(documents)
        container = next(each for each in template["spec"]["containers"] if each["name"] == kind.container)
        kind.shape(documents, name, shape.nodes, shape.ranks or max(shape.gpus, 1))
    except (LookupError, TypeError, ValueError, StopIteration) as error:
        raise ConfigError(f"manifest {path}: {kind.form} with a container '{kind.container}'") from error
    if shape.image:
        container["image"] = shape.image
    resources = container.setdefault("resources", {})
    for bound in ("requests", "limits"):
        resources.get(bound, {}).pop(GPU, None)
    if shape.gpus:
        resources.setdefault("limits", {})[GPU] = shape.gpus
    given = [each for each in container.get("env", []) if each["name"] not in environment]
    container["env"] = [*given, *({"name": key, "value": value} for key, value in environment.items())]
    template["spec"] = merged(template["spec"], _for(kind, shape.patch or {}))
    labels = {"app.kubernetes.io/name": "physion", "app.kubernetes.io/version": __version__}
    for document in documents:
        metadata = document.setdefault("metadata", {})
        metadata.pop("namespace", None)
        metadata["name"] = name
        metadata["labels"] = metadata.get("labels", {}) | labels
        metadata["annotations"] = metadata.get("annotations", {}) | annotations
    if shape.queue:
        documents[-1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = shape.queue
    return documents


def _for(kind: JobKind, patch: dict[str, Any]) -> dict[str, Any]:
    """A patch of pods with the container that trains named as this kind names it, whichever kind it was written for."""
    if not isinstance(containers := patch.get("containers"), list):
        return patch
    names = [other.container for other in KINDS.values()]
    renamed = [each | {"name": kind.container} if each.get("name") in names else each for each in containers]
    return patch | {"containers": renamed}


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error})") from error


def _mappings(documents: Iterable[str], what: str) -> list[dict[str, Any]]:
    trees = [parse_yaml(document, what) for document in documents]
    if not all(isinstance(tree, dict) for tree in trees):
        raise ConfigError(f"{what}: holds no mapping")
    return trees


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
