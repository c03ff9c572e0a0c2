"""Why a stage is to be made: what differs from the nearest published artifact of the same instance, down to the root cause."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from physion.errors import ConfigError, DataError
from physion.pipeline.graph import Node
from physion.pipeline.provenance import program_of
from physion.pipeline.runner import stale_inputs
from physion.store.artifacts import MANIFEST, Manifest, read_manifest
from physion.store.protocol import Store

AT_ONCE = 16  # manifests read at once


@dataclass(frozen=True)
class Reason:
    """One difference. kind: option, version, fact (such as the engine), input, content, again, or new (nothing to compare).

    Of an artifact that is kept: commit, source (of a module), package.
    """

    kind: str
    what: str
    old: Any = None
    new: Any = None
    because: tuple[Reason, ...] = field(default=())
    """Of an input: why it differs."""

    def lines(self, told: set[str], depth: int = 0) -> Iterator[str]:
        """For people, indented by depth in the chain; instances already in `told` are not explained again."""
        known = self.kind == "input" and self.what in told
        yield "  " * depth + (f"its input {self.what} differs, as above" if known else self._sentence())
        if self.kind == "input" and not known:
            told.add(self.what)
            for reason in self.because:
                yield from reason.lines(told, depth + 1)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)

    def _sentence(self) -> str:
        match self.kind:
            case "option" | "fact" | "package":
                return f"{self.what}: {self.old} -> {self.new}"
            case "version":
                return f"the code of {self.what} has changed: version {self.old} -> {self.new}"
            case "input":
                return f"its input {self.what} differs" + (":" if self.because else f" ({self.old} -> {self.new})")
            case "content":
                return f"its input {self.what} was made again, with different bytes"
            case "source":
                return f"the source of {self.what} has changed"
            case "commit":
                return f"made at commit {self.old or 'unknown'}; this is {self.new or 'unknown'}"
            case "again":
                return f"its input {self.what} has to be made again"
        return f"no artifact of {self.what} is in the store"


def why(node: Node, graph: Mapping[str, Node], store: Store) -> list[Reason]:
    """Why an instance has to be made; empty if it does not have to be, except because of its inputs (`again`)."""
    manifest = node.manifest(store)
    if manifest is not None:
        return [Reason("content", node.inputs[role]) for role in stale_inputs(manifest, node, graph, store)]
    candidates = [m for m in artifacts_of(store, node.stage.name) if m.instance == node.name and m.identity]
    if not candidates:
        return [Reason("new", node.name)]
    # The latest of those that differ least.
    candidates.sort(key=lambda m: m.created, reverse=True)
    nearest = min(candidates, key=lambda m: len(list(leaves(m.identity, node.identity))))
    return _differences(nearest, node, graph, store)


def since(manifest: Manifest, node: Node, graph: Mapping[str, Node]) -> list[Reason]:
    """How the code has changed since it made an instance's artifact; empty if the artifact does not say what made it."""
    then, now = manifest.program, program_of(node, graph)
    if not then.source:
        return []
    found = [Reason("source", path[0], before, after) for path, before, after in leaves(then.source, now.source)]
    found += [Reason("package", path[0], before, after) for path, before, after in leaves(then.packages, now.packages)]
    return [Reason("commit", node.name, str(then), str(now)), *found] if found else []


def _differences(old: Manifest, node: Node, graph: Mapping[str, Node], store: Store) -> list[Reason]:
    """How a node differs from an old artifact of the same stage."""
    reasons = []
    for path, before, after in leaves(old.identity, node.identity):
        area, *rest = path
        if area == "inputs" and rest:  # nothing if the old one's identity has no inputs at all
            reasons.append(_input(rest[0], before, after, old, node, graph, store))
        elif area == "version":
            reasons.append(Reason("version", node.stage.name, before, after))
        elif area == "source":
            reasons.append(Reason("source", ".".join(rest), before, after))
        elif area == "config":
            reasons.append(Reason("option", ".".join([node.stage.name, *rest]), before, after))
        else:
            reasons.append(Reason("fact", ".".join(path), before, after))
    return reasons


def _input(
    role: str, before: str | None, after: str | None, old: Manifest, node: Node, graph: Mapping[str, Node], store: Store
) -> Reason:
    if role not in node.inputs:  # named weights, or a former input
        return Reason("input", role, before, after)
    source = graph[node.inputs[role]]
    record = old.inputs.get(role)
    manifest = None
    if record and record.instance.startswith(source.stage.name):
        manifest = read_manifest(store, source.stage.name, record.fingerprint)
    because = tuple(_differences(manifest, source, graph, store)) if manifest and manifest.identity else ()
    return Reason("input", source.name, before, after, because)


def leaves(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Where two trees differ, with both values; None for a missing one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from leaves(old.get(key), new.get(key), (*path, key))
    elif old != new:
        yield path, old, new


def artifacts_of(store: Store, stage: str) -> list[Manifest]:
    """All published artifacts of a stage that can be read."""
    keys = [key for key in store.list(f"artifacts/{stage}") if key.count("/") == 3 and key.endswith(f"/{MANIFEST}")]

    def readable(key: str) -> Manifest | None:
        with contextlib.suppress(DataError, ConfigError):
            return read_manifest(store, stage, key.split("/")[2])
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [manifest for manifest in pool.map(readable, keys) if manifest is not None]
