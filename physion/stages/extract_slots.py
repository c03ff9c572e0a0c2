"""`extract-slots`: the slots of every frame of whole videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from physion.config.schema import ExtractSlots
from physion.data.clips import to_unit
from physion.data.layout import Video
from physion.data.shards import FrameShards, in_groups, require_finite
from physion.data.truth import TruthShards, bodies
from physion.job import Job
from physion.models.kinds import BODIES, MODELS, SlotModelKind
from physion.models.slots import SlotModel, encode_video
from physion.models.weights import kind_of_weights, load_model
from physion.stages.bulk import map_shards
from physion.store.artifacts import Artifact
from physion.training.engine import WEIGHTS, best_device
from physion.training.precision import arithmetic


def load_slot_model(inputs: Mapping[str, Artifact]) -> SlotModel:
    """The slot model from a stage's inputs: `slot-model`, and by their kind the models that it needs to decode."""
    weights = inputs["slot-model"].path(WEIGHTS)
    kind = MODELS.named(kind_of_weights(weights), SlotModelKind)
    model: SlotModel = load_model(weights)
    others = {name: load_model(inputs[name].path(WEIGHTS), name) for name in kind.decodes_with if name in inputs}
    if others:
        model = kind.with_others(model, **others).eval()
    return model.to(best_device())


@arithmetic(torch.float32, threads=1)  # the last bits may depend on it; shares use more cores
@torch.inference_mode()
def run(job: Job) -> dict[str, Any]:
    """Publish `slots` float32 [T, S, D] per video; the state carries over between chunks of a video."""
    config: ExtractSlots = job.config
    frames = FrameShards(job.inputs["frames"])
    if "slot-model" not in job.inputs:
        truth = TruthShards(job.inputs["dataset"])

        def told(videos: list[Video]) -> Iterator[tuple[str, np.ndarray]]:
            return ((video.name, bodies(truth, video.name, BODIES[0])) for video in videos)

        return map_shards(job, frames, config.videos_per_shard, "slots", told)
    model = load_slot_model(job.inputs)

    def chunks(videos: list[Video]) -> Iterator[torch.Tensor]:
        for start in range(0, frames.video_frames, config.chunk_frames):
            count = min(config.chunk_frames, frames.video_frames - start)
            images = np.stack([frames.images(video.name, start, count) for video in videos])
            yield to_unit(torch.from_numpy(images).permute(0, 1, 4, 2, 3).to(best_device()))

    def slots(videos: list[Video]) -> Iterator[tuple[str, np.ndarray]]:
        for group in in_groups(videos, config.batch_size):
            found = torch.cat([out.slots.cpu() for out in encode_video(model, chunks(group))], 1)
            for video, array in zip(group, found.numpy(), strict=True):
                require_finite(array, video.name, f"{job.instance}: the slots", job.inputs["slot-model"])
                yield video.name, array

    return map_shards(job, frames, config.videos_per_shard, "slots", slots)
