"""Runs stage instances on this machine, one after the other, reusing what is published."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from physion import __version__
from physion.config.load import fingerprinted
from physion.config.schema import Config
from physion.errors import ConfigError, DataError
from physion.pipeline.graph import Node
from physion.stages import STAGES, Job, PartsMissing, Ranks, Stop
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest, read_manifest
from physion.store.store import Store


@dataclass(frozen=True)
class Done:
    """A stage instance whose artifact is published."""

    node: Node
    manifest: Manifest
    cached: bool
    seconds: float = 0.0
    """What this run took."""


def run_node(
    node: Node,
    graph: dict[str, Node],
    store: Store,
    config: Config,
    stop: Stop,
    *,
    force: bool = False,
    share: slice = slice(None),
    ranks: Ranks = Ranks(),  # noqa: B008 (it holds nothing)
) -> Done:
    """Make the artifact of one stage instance, or find it made; with the other ranks, of which the first publishes.

    With `share`, do only these of its parts.

    Raises ConfigError when an input is not published yet, PartsMissing when the share is done but other parts are not, and
    whatever PhysionError the stage ends with.
    """

    def standing() -> Manifest | None:
        if force:
            ArtifactWriter(store, node.stage, node.fingerprint).erase()
        return read_manifest(store, node.stage, node.fingerprint)

    if manifest := ranks.on_first(standing):
        return Done(node, manifest, cached=True)
    inputs = {role: published_input(graph[source], store) for role, source in node.inputs.items()}
    output = ArtifactWriter(store, node.stage, node.fingerprint)
    facts = config.model_dump(mode="json")
    job = Job(node.name, node.section, inputs, output, node.params, facts, node.weights, stop, share, ranks)
    ranks.on_first(lambda: output.begin({other.name: other.fingerprint for other in graph.values()}))
    started = time.monotonic()

    def done(manifest: Manifest) -> Done:
        return Done(node, manifest, cached=False, seconds=time.monotonic() - started)

    try:
        try:
            metrics = run_of(node)(job)
        except (DataError, PartsMissing):
            if manifest := read_manifest(store, node.stage, node.fingerprint):
                return done(output.publish(manifest))  # another runner was faster, and took its parts away: sweep up after both
            raise
        return done(ranks.on_first(lambda: _publish(node, graph, job, metrics, started)))
    finally:
        output.close()
        for artifact in inputs.values():
            artifact.close()


def run_of(node: Node) -> Callable[[Job], dict[str, Any]]:
    """What makes the artifact of a node: its stage, or the adoption of the weights given for it."""
    if node.weights is None:
        return STAGES[node.stage].load()
    from physion.stages import adopt

    return adopt.run


def _publish(node: Node, graph: dict[str, Node], job: Job, metrics: dict[str, Any], started: float) -> Manifest:
    """Write the manifest. Returns the one that stands."""
    output = job.output
    if manifest := read_manifest(output.store, node.stage, node.fingerprint):
        return output.publish(manifest)  # another runner was faster; sweep up after both
    parts = [part for _, part in sorted(output.parts().items())]
    manifest = Manifest(
        stage=node.stage,
        instance=node.name,
        fingerprint=node.fingerprint,
        config=fingerprinted(node.section),
        inputs={role: graph[source].fingerprint for role, source in node.inputs.items()},
        files=sorted({r.name: r for part in parts for r in part.files}.values(), key=lambda r: r.name),
        metrics=metrics,
        code=__version__,
        host=host_facts() | {"ranks": job.ranks.count},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(sum(part.seconds for part in parts) or time.monotonic() - started, 3),
    )
    return output.publish(manifest)


def run_graph(
    graph: dict[str, Node],
    store: Store,
    config: Config,
    stop: Stop,
    *,
    starting: Callable[[Node], None],
    done: Callable[[Done], None],
) -> list[Done]:
    """Make every artifact of the graph that is not published yet, in order."""
    finished = []
    for node in graph.values():
        stop.check()
        starting(node)
        finished.append(run_node(node, graph, store, config, stop))
        done(finished[-1])
    return finished


def host_facts() -> dict[str, Any]:
    """What the artifact was made on; not part of any fingerprint."""
    import torch

    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    else:
        facts["threads"] = torch.get_num_threads()
    return facts


def published_input(node: Node, store: Store) -> Artifact:
    """The artifact of an instance that another reads. Raises ConfigError when it is not published yet."""
    manifest = read_manifest(store, node.stage, node.fingerprint)
    if manifest is None:
        options = "".join(f" --{key} {value}" for key, value in node.params.items())
        raise ConfigError(
            f"input {node.name} ({node.fingerprint}) is not in {store.uri}: run `physion stage {node.stage}{options}` "
            "with the same preset, overrides and store first, or `physion run`"
        )
    return Artifact(store, manifest)
