"""Checks of weights that replace a training: do they fit the configured models, and each other?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from physion.config.schema import Study
from physion.errors import ConfigError
from physion.models.kinds import MODELS, shared_parts, slot_model_kind
from physion.store.artifacts import Artifact

# Keys of a model's sizes that matter only for its training.
TRAINING_ONLY = {"initial-logit-scale", "dropout"}


def require_fit(config: Study, taken: Mapping[str, tuple[str, Artifact]]) -> None:
    """Check named weights before anything runs. taken: by stage instance, the kind of model and the weights.

    Raises ConfigError if some are for a different model than the configured one, or do not belong together.
    """
    used = {config.slot_model, *slot_model_kind(config).decodes_with}
    for kind, artifact in taken.values():
        manifest, stage = artifact.manifest, MODELS[kind].stage
        if manifest.stage != stage:
            raise ConfigError(f"{artifact.prefix} is for {manifest.stage}, so it cannot be the weights of {stage}")
        if different := _differences(manifest.config, MODELS[kind].sizes(config)):
            raise ConfigError(f"{artifact.prefix} does not fit the configured {kind} model: {', '.join(different)}")
        for part in _digests(artifact):
            if (owner := shared_parts()[part].kind) not in {kind, *used}:
                raise ConfigError(
                    f"{artifact.prefix} was trained with {owner}, which is not part of this study with slot "
                    f"model {config.slot_model}"
                )
    for (_, first), (_, second) in combinations(taken.values(), 2):
        require_together(_digests(first), first.prefix, _digests(second), second.prefix)


def require_together(first: Mapping[str, str], first_name: str, second: Mapping[str, str], second_name: str) -> None:
    """Compare the parts that two models share (a dVAE, STEVE's decoder) by their digests.

    Raises ConfigError if one differs: a model fed by a dVAE or STEVE other than its own gives meaningless numbers.
    """
    for part in sorted(first.keys() & second.keys()):
        if first[part] != second[part]:
            owner = shared_parts()[part].kind
            title = part if part == owner else f"{owner} {part}"
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
    if weights is None and not config:  # made before there was this option, which is off
        return []
    return [] if weights == config else [f"{key} is {weights}, configured {config}"]
