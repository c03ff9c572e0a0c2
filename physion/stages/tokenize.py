"""`tokenize`: the dVAE's tokens of every training frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from physion.config.schema import Tokenize
from physion.data.clips import to_unit
from physion.data.layout import Video
from physion.data.shards import FrameShards, require_finite
from physion.job import Job
from physion.models.weights import load_model
from physion.stages.bulk import map_shards
from physion.training.engine import WEIGHTS, best_device
from physion.training.precision import arithmetic


@arithmetic(torch.float32, threads=1)  # the last bits may depend on it; shares use more cores
@torch.inference_mode()
def run(job: Job) -> dict[str, Any]:
    """Publish `tokens` int16 [T, N] per video, row-major within a frame."""
    config: Tokenize = job.config
    frames = FrameShards(job.inputs["frames"])
    device = best_device()
    dvae = load_model(job.inputs["dvae"].path(WEIGHTS), "dvae").to(device)

    def tokens(videos: list[Video]) -> Iterator[tuple[str, np.ndarray]]:
        for video in videos:
            images = torch.from_numpy(frames.images(video.name, 0, frames.video_frames)).permute(0, 3, 1, 2)
            rows = [dvae.most_likely(to_unit(part.to(device))) for part in images.split(config.batch_size)]
            codes, logits = (torch.cat(each).flatten(1).cpu() for each in zip(*rows, strict=True))
            require_finite(logits.numpy(), video.name, f"{job.instance}: the logits of the tokens", job.inputs["dvae"])
            yield video.name, codes.to(torch.int16).numpy()

    return map_shards(job, frames, config.videos_per_shard, "tokens", tokens)
