"""`extract-slots`: STEVE's slots of every frame of whole videos."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from physion.config.schema import ExtractSlots
from physion.data.clips import to_unit
from physion.data.layout import Video
from physion.data.shards import FrameShards, in_groups
from physion.models.weights import load_model
from physion.stages import Job
from physion.stages.bulk import map_shards
from physion.training.engine import WEIGHTS, device
from physion.training.precision import arithmetic


@arithmetic(torch.float32)
@torch.inference_mode()
def run(job: Job) -> dict[str, Any]:
    """Publish `slots` float32 [T, S, D] a video; the state carries over from chunk to chunk of a video."""
    config: ExtractSlots = job.config
    frames = FrameShards(job.inputs["frames"])
    where = device()
    steve = load_model(job.inputs["steve"].path(WEIGHTS), "steve").to(where)

    def slots(videos: list[Video]) -> Iterator[tuple[str, np.ndarray]]:
        for group in in_groups(videos, config.batch_size):
            state, chunks = None, []
            for start in range(0, frames.video_frames, config.chunk_frames):
                count = min(config.chunk_frames, frames.video_frames - start)
                images = np.stack([frames.images(video.name, start, count) for video in group])
                batch = torch.from_numpy(images).permute(0, 1, 4, 2, 3).to(where)
                out = steve.encode(to_unit(batch), state, with_masks=False)
                state = out.state
                chunks.append(out.slots.cpu())
            for video, array in zip(group, torch.cat(chunks, 1).numpy(), strict=True):
                yield video.name, array

    return map_shards(job, frames, config.videos_per_shard, "slots", slots)
