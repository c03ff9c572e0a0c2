"""`train-slotformer`: the rollouter, trained to predict the slots of the frames after the burn-in, autoregressively."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from physion.config.schema import TrainSlotFormer
from physion.data.clips import Batch, SlotClips
from physion.data.shards import Shards
from physion.job import Job
from physion.models.flops import slotformer_clip_flops
from physion.models.slotformer import SlotFormer
from physion.training.engine import Task, fit, initial_model, publish_weights


class SlotFormerTask(Task):
    """Slots of burn-in and following frames in, mean squared error of the predicted ones out."""

    capturable = True

    def __init__(self, config: TrainSlotFormer, slots: Shards) -> None:
        video_frames, count, size = slots.shape("slots")
        self.model: SlotFormer = initial_model(config.seed, lambda: SlotFormer(config.model, count, size))
        frames, stride = config.model.burn_in + config.rollout_frames, config.model.stride
        self.train = SlotClips(slots, slots.select(heldout=False), video_frames, frames, stride)
        self.heldout = SlotClips(slots, slots.select(heldout=True), video_frames, frames, stride)
        self.sample_flops = 3 * slotformer_clip_flops(config, count, size)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean squared error over the predicted frames, with gradients through all of them."""
        return self.model.loss(batch["slots"])


def run(job: Job) -> dict[str, Any]:
    """Train and publish the weights."""
    config: TrainSlotFormer = job.config
    slots = Shards(job.inputs["slots"])
    slots.prefetch_all()
    task = SlotFormerTask(config, slots)
    rows = fit(task, config, job)
    _, count, size = slots.shape("slots")
    sizes = {"model": config.model.model_dump(), "slots": count, "slot_size": size}
    return publish_weights(task.model, "slotformer", sizes, rows, job)
