"""`take-weights`: named weights from the store become the artifact of a training."""

from __future__ import annotations

import shutil
from typing import Any

from physion.data.shards import Shards
from physion.job import Job
from physion.models.kinds import MODELS, ReadoutKind
from physion.models.published import digests
from physion.models.weights import load_model
from physion.stages.train_readout import choose_on_heldout, heldout_videos
from physion.stages.weights_fit import require_together
from physion.store.pretrained import role_of
from physion.training.engine import WEIGHTS


def run(job: Job) -> dict[str, Any]:
    """Check that the weights belong to the models in use, then publish them. A readout gets its threshold here, as if trained.

    Raises ConfigError if a model that the weights were made with is not the one in use.
    """
    given, kind = job.inputs["weights"], MODELS[str(job.params["model"])]
    path = role_of(given, "weights")
    assert path is not None
    for other in (other for other in kind.copied() if other in job.inputs):
        used = load_model(job.inputs[other].path(WEIGHTS), other).state_dict()
        parts = given.manifest.metrics.get("digests", {})
        require_together(parts, given.prefix, digests(other, used, {}), f"the {job.inputs[other].manifest.instance} in use")
    metrics: dict[str, Any] = {"weights": given.prefix, "parameters": given.manifest.metrics["parameters"]}
    model = load_model(path, kind.name)
    if isinstance(kind, ReadoutKind):
        frames = job.settings["frames"]
        heldout, where = heldout_videos(Shards(job.inputs["slots"]), frames), f"{given.store.uri}/{given.prefix}"
        metrics |= {"frames": frames} | choose_on_heldout(model, heldout, f"{job.instance}, which is {where},")
    local = job.output.scratch / WEIGHTS
    shutil.copyfile(path, local)
    job.output.add_part("weights", {WEIGHTS: local})
    return metrics
