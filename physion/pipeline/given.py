"""Weights that take the place of training: found in the store and checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from physion.config.schema import Config
from physion.errors import ConfigError
from physion.store.artifacts import Artifact
from physion.store.pretrained import find_weights
from physion.store.store import Store

# Keys of a model's sizes that matter to its training only.
TRAINING_ONLY = {"initial-logit-scale", "dropout"}


def given_weights(config: Config, store: Store) -> dict[str, Artifact]:
    """The named weights that the configuration puts in the place of a training, by stage instance.

    Raises ConfigError when some are not in the store, are of another model, or do not belong together.
    """
    named: dict[str, tuple[str, str]] = {}  # instance -> kind of model, reference
    for kind in ("dvae", "steve", "slotformer"):
        reference = getattr(config, f"train_{kind}").weights
        if reference is not None:
            named[f"train-{kind}"] = (kind, reference)
    readout = config.train_readout
    for mode in readout.features:
        template = readout.weights.get(mode)
        if template is None:
            continue
        if len(readout.seeds) > 1 and "{seed}" not in template:
            raise ConfigError(
                f"train-readout.weights.{mode}={template} names one readout for {len(readout.seeds)} seeds: put {{seed}} into "
                "it, or set train-readout.seeds to one"
            )
        for seed in readout.seeds:
            named[f"train-readout-{mode}-{seed}"] = ("readout", template.replace("{seed}", str(seed)))
    found = {instance: find_weights(store, reference) for instance, (_, reference) in named.items()}
    sizes = config.model_sizes()
    for instance, (kind, reference) in named.items():
        manifest = found[instance].manifest
        if manifest.stage != f"train-{kind}":
            raise ConfigError(f"{reference} is for {manifest.stage}, so it cannot be the weights of train-{kind}")
        if different := _differences(manifest.config, sizes[kind]):
            raise ConfigError(f"{reference} does not fit the configured {kind} model: {', '.join(different)}")
    for first, second in combinations(found, 2):
        require_together(_digests(found[first]), named[first][1], _digests(found[second]), named[second][1])
    return found


def require_together(first: Mapping[str, str], first_name: str, second: Mapping[str, str], second_name: str) -> None:
    """Compare the parts that two models share (a dVAE, STEVE's decoder) by their digests.

    Raises ConfigError when one of them differs: a model fed by another dVAE or STEVE than its own gives meaningless numbers.
    """
    for part in sorted(first.keys() & second.keys()):
        if first[part] != second[part]:
            title = {"dvae": "dVAE", "decoder": "STEVE decoder"}[part]
            raise ConfigError(
                f"{first_name} and {second_name} do not belong together: the {title} of one is not the {title} of the other. "
                f"Take the {title} that came with it, or train both here"
            )


def _digests(artifact: Artifact) -> dict[str, str]:
    return dict(artifact.manifest.metrics.get("digests", {}))


def _differences(weights: Any, config: Any, key: str = "") -> list[str]:
    if isinstance(weights, dict) and isinstance(config, dict):
        keys = sorted((weights.keys() | config.keys()) - TRAINING_ONLY)
        return [line for k in keys for line in _differences(weights.get(k), config.get(k), k)]
    return [] if weights == config else [f"{key} is {weights}, configured {config}"]
