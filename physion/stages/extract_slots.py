"""`extract-slots`: the slots of every frame of whole videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from physion.config.schema import ExtractSlots
from physion.data.clips import to_unit
from physion.data.layout import Video
from physion.data.shards import FrameShards, in_groups
from physion.job import Job
from physion.models.kinds import MODELS, SlotModelKind
from physion.models.slots import SlotModel
from physion.models.weights import kind_of_weights
from physion.stages.bulk import map_shards
from physion.store.artifacts import Artifact
from physion.training.engine import WEIGHTS, device
from physion.training.precision import arithmetic


def load_slot_model(inputs: Mapping[str, Artifact]) -> SlotModel:
    """The slot model of a stage's inputs: `slot-model`, and by their kind those that it needs to decode."""
    weights = inputs["slot-model"].path(WEIGHTS)
    kind = MODELS[kind_of_weights(weights)]
    assert isinstance(kind, SlotModelKind)
    model: SlotModel = kind.load(weights, {name: inputs[name].path(WEIGHTS) for name in kind.decodes_with if name in inputs})
    return model


@arithmetic(torch.float32)
@torch.inference_mode()
def run(job: Job) -> dict[str, Any]:
    """Publish `slots` float32 [T, S, D] a video; the state carries over from chunk to chunk of a video."""
    config: ExtractSlots = job.config
    frames = FrameShards(job.inputs["frames"])
    where = device()
    model = load_slot_model(job.inputs).to(where)

    def slots(videos: list[Video]) -> Iterator[tuple[str, np.ndarray]]:
        for group in in_groups(videos, config.batch_size):
            state, chunks = None, []
            for start in range(0, frames.video_frames, config.chunk_frames):
                count = min(config.chunk_frames, frames.video_frames - start)
                images = np.stack([frames.images(video.name, start, count) for video in group])
                batch = torch.from_numpy(images).permute(0, 1, 4, 2, 3).to(where)
                out = model.encode(to_unit(batch), state, with_masks=False)
                state = out.state
                chunks.append(out.slots.cpu())
            for video, array in zip(group, torch.cat(chunks, 1).numpy(), strict=True):
                yield video.name, array

    return map_shards(job, frames, config.videos_per_shard, "slots", slots)
