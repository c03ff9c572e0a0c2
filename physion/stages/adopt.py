"""In the place of a training: weights that were given for a stage become its artifact."""

from __future__ import annotations

import shutil
from typing import Any

from physion.data.shards import Shards
from physion.models.published import digests
from physion.models.readout import Readout
from physion.models.weights import load_model
from physion.pipeline.given import require_together
from physion.stages import Job
from physion.stages.train_readout import choose_on_heldout, heldout_videos
from physion.store.pretrained import role_of
from physion.training.engine import WEIGHTS


def run(job: Job) -> dict[str, Any]:
    """Check that the weights belong to the models in use, then publish them. A readout gets its threshold here, as if trained.

    Raises ConfigError when the dVAE or the decoder that the weights were made with is not the one in use.
    """
    given = job.weights
    assert given is not None
    path = role_of(given, "weights")
    assert path is not None
    for role in ("dvae", "steve"):
        if role in job.inputs:
            used = load_model(job.inputs[role].path(WEIGHTS), role).state_dict()
            parts = given.manifest.metrics.get("digests", {})
            require_together(parts, given.prefix, digests(role, used, {}), f"the {job.inputs[role].manifest.instance} in use")
    metrics: dict[str, Any] = {"weights": given.prefix, "parameters": given.manifest.metrics["parameters"]}
    model = load_model(path, given.manifest.stage.removeprefix("train-"))
    if isinstance(model, Readout):
        frames = getattr(job.config.model, str(job.params["features"]))
        metrics |= choose_on_heldout(model, heldout_videos(Shards(job.inputs["slots"]), frames))
    local = job.output.scratch / WEIGHTS
    shutil.copyfile(path, local)
    job.output.add_part("weights", {WEIGHTS: local})
    return metrics
