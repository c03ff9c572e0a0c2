"""The plan's graph: every stage instance of the study, what it reads and its fingerprint, known before anything runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from physion.config.load import fingerprinted
from physion.config.schema import SUBSETS, Config
from physion.stages import STAGES


@dataclass(frozen=True)
class Node:
    """One stage instance. `inputs` maps the name the stage knows an input by to the instance that makes it."""

    name: str
    stage: str
    params: dict[str, str | int]
    inputs: dict[str, str]
    section: Any
    fingerprint: str


def build_graph(config: Config) -> dict[str, Node]:
    """All stage instances of the study by name, inputs before what reads them."""
    graph: dict[str, Node] = {}

    def add(stage: str, inputs: dict[str, str] | None = None, **params: str | int) -> str:
        name = "-".join([stage, *map(str, params.values())])
        section = getattr(config, stage.replace("-", "_"))
        inputs = inputs or {}
        identity = {
            "stage": stage,
            "version": STAGES[stage].version,
            "config": fingerprinted(section),
            "params": params,
            "inputs": {role: graph[source].fingerprint for role, source in inputs.items()},
            **engine_facts(stage),
        }
        graph[name] = Node(name, stage, params, inputs, section, fingerprint_of(identity))
        return name

    dataset = add(config.dataset)
    frames = {subset: add("frames", {"dataset": dataset}, subset=subset) for subset in SUBSETS}
    dvae = add("train-dvae", {"frames": frames["training"]})
    tokens = add("tokenize", {"dvae": dvae, "frames": frames["training"]})
    steve = add("train-steve", {"dvae": dvae, "frames": frames["training"], "tokens": tokens})
    slots = {subset: add("extract-slots", {"steve": steve, "frames": frames[subset]}, subset=subset) for subset in SUBSETS}
    slotformer = add("train-slotformer", {"slots": slots["training"]})
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
    add(
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
    return graph


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
