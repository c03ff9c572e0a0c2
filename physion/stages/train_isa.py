"""`train-isa`: slots from video, trained by drawing every frame from its slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from physion.config.schema import TrainISA
from physion.data.clips import Batch, to_unit
from physion.data.shards import FrameShards
from physion.data.truth import TruthShards
from physion.job import Job
from physion.models.flops import isa_clip_flops
from physion.models.isa import ISA
from physion.training.engine import fit, initial_model, publish_weights, step_seed
from physion.training.slot_task import SlotTask

CHOICE = -2  # the place of the choice of patches among a step's seeds


class ISATask(SlotTask):
    """Clips of successive frames in, mean squared error of the drawn frames out."""

    model: ISA

    def __init__(self, config: TrainISA, frames: FrameShards, truth: TruthShards | None = None) -> None:
        model = initial_model(config.seed, lambda: ISA(config.model, frames.image_size))
        super().__init__(model, frames, config.clip_frames, truth=truth)
        self.config = config
        self.sample_flops = 3 * isa_clip_flops(config, frames.image_size)
        self.unused_parameters = config.clip_frames == 1  # nothing to predict

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean squared error of some patches, the same of every frame of a step."""
        images, patches = to_unit(batch["images"]), self.model.side**2
        few = max(1, round(self.config.drawn * patches))
        if few == patches:
            return self.model.loss(images)
        chance = torch.Generator().manual_seed(step_seed(self.config.seed, step, CHOICE))
        return self.model.loss(images, torch.randperm(patches, generator=chance)[:few].to(images.device))

    def heldout_loss(self, batch: Batch) -> Tensor:
        """Mean squared error of all patches."""
        return self.model.loss(to_unit(batch["images"]))


def run(job: Job) -> dict[str, Any]:
    """Train and publish the weights."""
    config: TrainISA = job.config
    frames = FrameShards(job.inputs["frames"])
    frames.prefetch_all()
    task = ISATask(config, frames, TruthShards.of(job.inputs.get("dataset")))
    rows = fit(task, config, job)
    return publish_weights(task.model, "isa", {"model": config.model.model_dump(), "image_size": frames.image_size}, rows, job)
