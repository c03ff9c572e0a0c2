"""The plan's graph: every stage instance of the study, what it reads and its fingerprint, known before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from physion.config.load import fingerprinted, nearest
from physion.config.schema import SUBSETS, Config
from physion.errors import ConfigError
from physion.stages import STAGES
from physion.store.artifacts import Artifact


@dataclass(frozen=True)
class Node:
    """One stage instance. `inputs` maps the name the stage knows an input by to the instance that makes it.

    With `weights` the stage takes these instead of training.
    """

    name: str
    stage: str
    params: dict[str, str | int]
    inputs: dict[str, str]
    section: Any
    fingerprint: str
    weights: Artifact | None = None


def build_graph(config: Config, given: Mapping[str, Artifact] | None = None) -> dict[str, Node]:
    """The stage instances that the study's report takes, by name, inputs before what reads them.

    `given` maps an instance to the weights that take the place of its training (`given_weights`); stages that only served
    that training drop out.
    """
    graph: dict[str, Node] = {}
    given = given or {}

    def add(stage: str, inputs: dict[str, str] | None = None, **params: str | int) -> str:
        name = "-".join([stage, *map(str, params.values())])
        section = getattr(config, stage.replace("-", "_"))
        inputs = inputs or {}
        weights = given.get(name)
        settled: dict[str, Any] = {"config": fingerprinted(section)}
        if weights is not None:
            settled = {"weights": [record.sha256 for record in weights.manifest.files if record.name.startswith("weights-")]}
        identity = {
            "stage": stage,
            "version": STAGES[stage].version,
            **settled,
            "params": params,
            "inputs": {role: graph[source].fingerprint for role, source in inputs.items()},
            **engine_facts(stage),
        }
        graph[name] = Node(name, stage, params, inputs, section, fingerprint_of(identity), weights)
        return name

    def train(stage: str, training: dict[str, str], models: dict[str, str] | None = None) -> str:
        """A training reads data; weights in its place are compared with the models they are used with."""
        return add(stage, (models or {}) if stage in given else training)

    dataset = add(config.dataset)
    frames = {subset: add("frames", {"dataset": dataset}, subset=subset) for subset in SUBSETS}
    dvae = train("train-dvae", {"frames": frames["training"]})
    tokens = add("tokenize", {"dvae": dvae, "frames": frames["training"]})
    steve = train("train-steve", {"dvae": dvae, "frames": frames["training"], "tokens": tokens}, {"dvae": dvae})
    slots = {subset: add("extract-slots", {"steve": steve, "frames": frames[subset]}, subset=subset) for subset in SUBSETS}
    slotformer = train("train-slotformer", {"slots": slots["training"]}, {"dvae": dvae, "steve": steve})
    rollouts = {
        subset: add("rollout", {"slotformer": slotformer, "slots": slots[subset]}, subset=subset)
        for subset in ("readout", "test")
    }
    # Features of the true slots (observed, full) do not wait for the rollouter.
    features = {mode: rollouts if mode == "rollout" else slots for mode in config.train_readout.features}
    readouts = {
        f"readout-{mode}-{seed}": add("train-readout", {"slots": source["readout"]}, features=mode, seed=seed)
        for mode, source in features.items()
        for seed in config.train_readout.seeds
    }
    last = add(
        "evaluate",
        {
            "frames": frames["test"],
            "slots": slots["test"],
            "rollouts": rollouts["test"],
            "dvae": dvae,
            "steve": steve,
            "slotformer": slotformer,
            **readouts,
        },
    )
    needed = {last}
    for name in reversed(graph):
        if name in needed:
            needed.update(graph[name].inputs.values())
    return {name: node for name, node in graph.items() if name in needed}


def select(graph: dict[str, Node], stage: str, given: Mapping[str, Any]) -> Node:
    """The instance of a stage with the given parameters (None: not given); `stage` may be the name of an instance itself.

    Raises ConfigError unless there is exactly one.
    """
    if stage in graph and stage not in STAGES and not any(value is not None for value in given.values()):
        return graph[stage]
    if stage not in STAGES:
        raise ConfigError(f"unknown stage '{stage}'{nearest(stage, list(STAGES))}; stages: {', '.join(STAGES)}")
    nodes = [node for node in graph.values() if node.stage == stage]
    if not nodes:
        hint = f": set dataset={stage}" if stage in ("simulate", "fetch") else ": the weights given take its place"
        raise ConfigError(f"stage {stage} is not part of this study{hint}")
    wanted = {key: value for key, value in given.items() if value is not None}
    for key, value in wanted.items():
        known = sorted({str(node.params[key]) for node in nodes if key in node.params})
        if str(value) not in known:
            raise ConfigError(f"stage {stage} has no {key} '{value}'" + (f"; it has {', '.join(known)}" if known else ""))
    matching = [node for node in nodes if wanted.items() <= node.params.items()]
    if len(matching) > 1:
        options = " ".join(f"--{key} {'|'.join(dict.fromkeys(str(n.params[key]) for n in nodes))}" for key in nodes[0].params)
        raise ConfigError(f"stage {stage} has {len(nodes)} instances; say which: {options}")
    return matching[0]


def left_to_do(graph: dict[str, Node], cached: Callable[[Node], bool]) -> list[Node]:
    """The instances that must run for the study's report: not what is cached, and not what only served that."""
    needed, left = {next(reversed(graph))}, []
    for name in reversed(graph):
        if name in needed and not cached(graph[name]):
            left.append(graph[name])
            needed.update(graph[name].inputs.values())
    return left[::-1]


def engine_facts(stage: str) -> dict[str, str]:
    """What else decides a stage's results: the physics engine, for `simulate`."""
    if stage != "simulate":
        return {}
    from physion.simulation import ENGINE

    return {"engine": ENGINE}


def fingerprint_of(identity: dict[str, Any]) -> str:
    """20 hexadecimal digits of the SHA-256 of an identity's canonical JSON."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]
