"""The plan's graph: every stage instance of the study, its inputs and its fingerprint, known before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from physion.config.load import fingerprinted
from physion.config.schema import Study
from physion.errors import ConfigError, nearest
from physion.pipeline.provenance import plugin_source
from physion.stages import STAGES, Cost, Instance, Named, Params, Stage, instances, last_stage
from physion.stages.weights_fit import require_fit
from physion.store.artifacts import Artifact, Manifest, prefix_of, read_manifest
from physion.store.pretrained import find_weights
from physion.store.protocol import Store


@dataclass(frozen=True)
class Node:
    """One stage instance.

    inputs: the role by which the stage knows an input -> the instance that makes it; weights: the same for named weights.
    identity: everything that affects the output; fingerprint: its hash. cost: estimate of what it will take.
    """

    name: str
    stage: Stage
    params: Params
    inputs: dict[str, str]
    section: Any
    settings: dict[str, Any]
    identity: dict[str, Any]
    fingerprint: str
    cost: Cost
    weights: dict[str, Artifact] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """Where a store keeps its artifact."""
        return prefix_of(self.stage.name, self.fingerprint)

    def manifest(self, store: Store) -> Manifest | None:
        """The manifest of its artifact; None if it is not published. Raises what `read_manifest` does."""
        return read_manifest(store, self.stage.name, self.fingerprint)

    @property
    def options(self) -> str:
        """The options that tell `physion stage` which instance is meant."""
        return "".join([self.stage.name, *(f" --{key} {value}" for key, value in self.params.items())])


def build_graph(config: Study, store: Store | None = None) -> dict[str, Node]:
    """The stage instances that the study's report needs, by name, inputs before what reads them.

    Named weights are looked up in the store. Without a store, they are not: the graph is still right, but the fingerprints of
    everything built on given weights are not.

    Raises ConfigError if weights do not exist, or do not fit the configured models or each other.
    """
    graph: dict[str, Node] = {}
    for name, (instance, sources) in instances(config).items():
        stage, params = STAGES[instance.stage], instance.params
        inputs = {role: source.name for role, source in sources.items() if isinstance(source, Instance)}
        named = {role: source.reference for role, source in sources.items() if isinstance(source, Named)}
        weights = {role: find_weights(store, reference) for role, reference in named.items()} if store else {}
        section = config.section(stage.name) if stage.section else None
        settings = dict(stage.settings(config, params))
        read = {key: value for key, value in (fingerprinted(section) if section else {}).items() if key not in stage.replaced}
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "config": read | settings,
            "params": dict(params),
            "inputs": {role: graph[source].fingerprint for role, source in inputs.items()}
            | {role: artifact.manifest.content for role, artifact in weights.items()},
            **stage.facts(),
        }
        if source := plugin_source(stage, params, section):
            identity["source"] = source
        cost = stage.cost(config, params)
        graph[name] = Node(name, stage, params, inputs, section, settings, identity, fingerprint_of(identity), cost, weights)
    taken = {name: (str(node.params["model"]), artifact) for name, node in graph.items() for artifact in node.weights.values()}
    require_fit(config, taken)
    # What needs the fewest others comes first, so bad videos of any subset show up before anything is trained.
    level: dict[str, int] = {}
    for name, node in graph.items():
        level[name] = 1 + max((level[source] for source in node.inputs.values()), default=0)
    return dict(sorted(graph.items(), key=lambda item: level[item[0]]))


def select(graph: Mapping[str, Node], name: str, given: Mapping[str, Any]) -> list[Node]:
    """The instances of a stage with the given parameters (None: not given); `name` may also be that of an instance.

    Raises ConfigError if there are none.
    """
    if name in graph and name not in STAGES and not any(value is not None for value in given.values()):
        return [graph[name]]
    if name not in STAGES:
        known = [*STAGES, *graph]
        raise ConfigError(f"unknown stage '{name}'{nearest(name, known)}; stages: {', '.join(STAGES)}")
    nodes = [node for node in graph.values() if node.stage.name == name]
    if not nodes:
        raise ConfigError(f"stage {name} is not part of this study: {_why_not(graph, name)}")
    wanted = {key: value for key, value in given.items() if value is not None}
    for key, value in wanted.items():
        known = sorted({str(node.params[key]) for node in nodes if key in node.params})
        if str(value) not in known:
            raise ConfigError(f"stage {name} has no {key} '{value}'" + (f"; it has {', '.join(known)}" if known else ""))
    meant = [node for node in nodes if wanted.items() <= node.params.items()]
    if not meant:
        together = " and ".join(f"{key} '{value}'" for key, value in wanted.items())
        raise ConfigError(f"stage {name} has no instance with {together}")
    return meant


def select_one(graph: Mapping[str, Node], name: str, given: Mapping[str, Any]) -> Node:
    """The one instance that is meant. Raises ConfigError if there are none or several."""
    meant = select(graph, name, given)
    if len(meant) > 1:
        nodes = [node for node in graph.values() if node.stage is meant[0].stage]
        values = {key: [str(n.params[key]) for n in nodes if key in n.params] for node in nodes for key in node.params}
        options = " ".join(f"--{key} {'|'.join(dict.fromkeys(of_key))}" for key, of_key in values.items())
        raise ConfigError(f"stage {name} has {len(nodes)} instances; say which: {options}")
    return meant[0]


def _why_not(graph: Mapping[str, Node], name: str) -> str:
    """Why a study has no instance of a stage, and what would add one."""
    if makes := STAGES[name].makes:
        return f"set {makes}={name}"
    taking = [node.stage.name for node in graph.values() if node.weights]
    by_taking = f"the weights given take its place (stage {taking[0]})" if taking else ""
    return STAGES[name].absent or by_taking or "nothing that its report takes needs it"


def downstream(graph: Mapping[str, Node], name: str) -> list[Node]:
    """The instances that depend on one, directly or not, in order."""
    reached = {name}
    for node in graph.values():
        if reached & set(node.inputs.values()):
            reached.add(node.name)
    return [node for node in graph.values() if node.name in reached and node.name != name]


def left_to_do(graph: dict[str, Node], done: Callable[[Node], bool]) -> list[Node]:
    """The instances that must run for the study's report: not those already done, nor those needed only by them."""
    needed, left = {last_stage().name}, []
    for name in reversed(graph):
        if name in needed and not done(graph[name]):
            left.append(graph[name])
            needed.update(graph[name].inputs.values())
    return left[::-1]


def fingerprint_of(identity: dict[str, Any]) -> str:
    """20 hexadecimal digits of the SHA-256 of an identity's canonical JSON."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]
