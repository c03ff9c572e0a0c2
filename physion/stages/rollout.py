"""`rollout`: observed slots, then predicted ones, for every video of a subset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from physion.config.schema import Rollout
from physion.data.layout import Video
from physion.data.shards import Shards, in_groups, require_finite
from physion.job import Job
from physion.models.weights import load_model
from physion.stages.bulk import map_shards
from physion.training.engine import WEIGHTS, best_device
from physion.training.precision import arithmetic


@arithmetic(torch.float32, threads=1)  # the last bits may depend on it; shares use more cores
@torch.inference_mode()
def run(job: Job) -> dict[str, Any]:
    """Publish `slots` float32 [T, S, D] per video: the first `observed` frames as extracted, the rest predicted."""
    config: Rollout = job.config
    source = Shards(job.inputs["slots"])
    device = best_device()
    model = load_model(job.inputs["slotformer"].path(WEIGHTS), "slotformer").to(device)
    frames, _, _ = source.shape("slots")

    def rollouts(videos: list[Video]) -> Iterator[tuple[str, np.ndarray]]:
        for group in in_groups(videos, config.batch_size):
            observed = np.stack([source.slots(video.name, slice(0, config.observed)) for video in group])
            predicted = model.rollout_video(torch.from_numpy(observed).to(device), frames)
            for video, array in zip(group, predicted.cpu().numpy(), strict=True):
                require_finite(array, video.name, f"{job.instance}: the predicted slots", job.inputs["slotformer"])
                yield video.name, array

    return map_shards(job, source, config.videos_per_shard, "slots", rollouts)
