"""Runs one stage instance in this process, or finds that it is published."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from physion import __version__
from physion.errors import ConfigError, DataError, TransientError
from physion.job import Job, Ranks, Stop
from physion.machine import cpu_name
from physion.pipeline.graph import Node, downstream
from physion.pipeline.provenance import program_of
from physion.progress import say
from physion.stages import Kind
from physion.store.artifacts import Artifact, ArtifactWriter, InputRecord, Manifest, Program, read_manifest
from physion.store.protocol import Store


@dataclass(frozen=True)
class Done:
    """A stage instance whose artifact is published."""

    node: Node
    manifest: Manifest
    cached: bool
    seconds: float = 0.0
    """How long this run took."""


def standing(node: Node, graph: Mapping[str, Node], store: Store) -> Manifest | None:
    """The manifest of an artifact that need not be made: it is published, and its inputs have not changed since."""
    manifest = read_manifest(store, node.stage.name, node.fingerprint)
    return None if manifest is None or stale_inputs(manifest, node, graph, store) else manifest


def published(graph: Mapping[str, Node], store: Store) -> dict[str, Manifest | None]:
    """The manifests of all instances of a graph, each read once; None for those that are not published."""
    return {name: read_manifest(store, node.stage.name, node.fingerprint) for name, node in graph.items()}


def all_standing(graph: Mapping[str, Node], manifests: Mapping[str, Manifest | None]) -> set[str]:
    """Names of the instances that need not be made (`standing`) and do not depend on one that has to be made again."""
    stale: set[str] = set()
    for name, node in graph.items():
        manifest = manifests[name]
        if manifest and (stale & set(node.inputs.values()) or _stale(manifest, node, manifests.__getitem__)):
            stale.add(name)
    return {name for name, manifest in manifests.items() if manifest} - stale


def require_standing_ground(node: Node, graph: Mapping[str, Node], store: Store) -> None:
    """Raise ConfigError if something that an instance depends on, directly or not, has to be made again first."""
    below = {name: other for name, other in graph.items() if node in downstream(graph, name)}
    manifests = published(below, store)
    standing = all_standing(below, manifests)
    stale = [name for name in below if manifests[name] and name not in standing]
    if stale:
        raise ConfigError(
            f"{node.name} depends on {stale[0]}, whose inputs were made again with different bytes: run "
            f"`physion stage {graph[stale[0]].options}` with the same preset, overrides and store first, or `physion run`"
        )


def stale_inputs(manifest: Manifest, node: Node, graph: Mapping[str, Node], store: Store) -> list[str]:
    """The roles of inputs that were made again since, with different bytes. A missing input cannot be different."""
    return _stale(manifest, node, lambda source: read_manifest(store, graph[source].stage.name, graph[source].fingerprint))


def _stale(manifest: Manifest, node: Node, manifest_of: Callable[[str], Manifest | None]) -> list[str]:
    stale = []
    for role, source in node.inputs.items():
        made_from, now = manifest.inputs.get(role), manifest_of(source)
        if made_from and now and made_from.content != now.content:
            stale.append(role)
    return stale


def standing_or_erased(node: Node, graph: Mapping[str, Node], store: Store) -> Manifest | None:
    """As `standing`; an artifact that is published but outdated is removed, to be made again."""
    manifest = read_manifest(store, node.stage.name, node.fingerprint)  # read once: another runner may publish it at any moment
    if manifest is None or not stale_inputs(manifest, node, graph, store):
        return manifest
    say(f"{node.name}: an input was made again with different bytes, so this is made again too")
    ArtifactWriter(store, node.stage.name, node.fingerprint).erase()
    return None


def run_node(
    node: Node,
    graph: Mapping[str, Node],
    store: Store,
    stop: Stop,
    *,
    force: bool = False,
    share: slice = slice(None),
    ranks: Ranks = Ranks(),  # noqa: B008 (it holds nothing)
) -> Done:
    """Make the artifact of one stage instance, or find it made; together with the other ranks, the first of which publishes.

    With `share`, make only these parts of it.

    Raises ConfigError if an input is not published yet, PartsMissing if the share is done but other parts are missing, and
    whatever PhysionError the stage ends with.
    """

    def found() -> Manifest | None:
        if force:
            for source in node.inputs.values():  # nothing is thrown away that could not be made again
                published_input(graph[source], graph, store).close()
            ArtifactWriter(store, node.stage.name, node.fingerprint).erase()
            return None
        return standing_or_erased(node, graph, store)

    if manifest := ranks.on_rank_0(found):
        return Done(node, manifest, cached=True)
    inputs = node.weights | {role: published_input(graph[source], graph, store) for role, source in node.inputs.items()}
    output, program = ArtifactWriter(store, node.stage.name, node.fingerprint), program_of(node, graph)
    job = Job(node.name, node.section, inputs, output, dict(node.params), node.settings, stop, share, ranks)
    study = {other.name: other.fingerprint for other in graph.values()}
    contents = {role: artifact.manifest.content for role, artifact in inputs.items()}
    ranks.on_rank_0(lambda: output.begin(study, contents, parts=node.stage.kind is Kind.PARTS))
    started = time.monotonic()

    def done(manifest: Manifest) -> Done:
        return Done(node, manifest, cached=False, seconds=time.monotonic() - started)

    try:
        try:
            metrics = node.stage.load()(job)
        except (DataError, TransientError):
            # Another runner was faster and removed its parts, perhaps between two requests of this one. Clean up after both.
            if manifest := read_manifest(store, node.stage.name, node.fingerprint):
                return done(output.publish(manifest))
            raise
        return done(ranks.on_rank_0(lambda: _publish(node, job, metrics, program)))
    finally:
        output.close()
        for artifact in inputs.values():
            artifact.close()


def _publish(node: Node, job: Job, metrics: dict[str, Any], program: Program) -> Manifest:
    """Write the manifest. Returns the stored one."""
    output = job.output
    if manifest := read_manifest(output.store, node.stage.name, node.fingerprint):
        return output.publish(manifest)  # another runner was faster; clean up after both
    parts = [part for _, part in sorted(output.kept.items())]
    manifest = Manifest(
        stage=node.stage.name,
        instance=node.name,
        fingerprint=node.fingerprint,
        identity=node.identity,
        config=node.identity["config"],
        inputs={
            role: InputRecord(
                instance=artifact.manifest.instance,
                fingerprint=artifact.manifest.fingerprint,
                content=artifact.manifest.content,
            )
            for role, artifact in job.inputs.items()
        },
        files=sorted({r.name: r for part in parts for r in part.files}.values(), key=lambda r: r.name),
        metrics=metrics,
        code=__version__,
        program=program,
        host=host_facts() | {"ranks": job.ranks.count},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(sum(part.seconds for part in parts) or output.seconds, 3),
        work=node.cost.flops or node.cost.bytes,
    )
    return output.publish(manifest)


def host_facts() -> dict[str, Any]:
    """The machine and software that made the artifact; not part of any fingerprint."""
    import torch

    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    else:
        facts |= {"threads": torch.get_num_threads(), "cpu": cpu_name()}
    return facts


def published_input(node: Node, graph: Mapping[str, Node], store: Store) -> Artifact:
    """The artifact of an instance that another reads. Raises ConfigError if it is not published yet, or is stale."""
    manifest = read_manifest(store, node.stage.name, node.fingerprint)
    again = f"run `physion stage {node.options}` with the same preset, overrides and store first, or `physion run`"
    if manifest is None:
        raise ConfigError(f"input {node.name} ({node.fingerprint}) is not in {store.uri}: {again}")
    if stale := stale_inputs(manifest, node, graph, store):
        raise ConfigError(
            f"input {node.name} ({node.fingerprint}) was made from different bytes than its {' and '.join(stale)} "
            f"now has: {again}"
        )
    return Artifact(store, manifest)
