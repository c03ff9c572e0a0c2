"""`train-readout`: one linear readout, for one feature mode and seed; its threshold is chosen on held-out readout videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from physion.config.schema import TrainReadout
from physion.data.clips import Batch, LabelledSlots
from physion.data.shards import Shards
from physion.models.readout import Readout
from physion.report.metrics import balanced_accuracy, choose_threshold
from physion.stages import Job
from physion.training.engine import Task, fit, initial_model, publish_weights


class ReadoutTask(Task):
    """Slots of a video in, binary cross-entropy of its outcome out."""

    def __init__(self, config: TrainReadout, slots: Shards, frames: int, seed: int) -> None:
        _, count, size = slots.shape("slots")
        self.model: Readout = initial_model(seed, lambda: Readout(count, size))
        self.train = LabelledSlots(slots, slots.select(heldout=False), frames)
        self.heldout: LabelledSlots = LabelledSlots(slots, slots.select(heldout=True), frames)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(self.model(batch["slots"]), batch["labels"])


def run(job: Job) -> dict[str, Any]:
    """Train, choose the threshold, publish."""
    seed = int(job.params["seed"])
    config: TrainReadout = job.config.model_copy(update={"seed": seed})
    slots = Shards(job.inputs["slots"])
    slots.prefetch_all()
    frames = getattr(config.model, str(job.params["features"]))
    task = ReadoutTask(config, slots, frames, seed)
    rows = fit(task, config, job)
    model = task.model.cpu().eval()
    probabilities = predict(model, task.heldout)
    labels = task.heldout[range(len(task.heldout))]["labels"].bool().numpy()
    threshold = choose_threshold(probabilities, labels)
    _, count, size = slots.shape("slots")
    metrics = publish_weights(model, "readout", {"slots": count, "slot_size": size}, rows, job)
    return metrics | {
        "threshold": threshold,
        "heldout_balanced_accuracy": balanced_accuracy(probabilities, labels, threshold),
    }


@torch.inference_mode()
def predict(model: Readout, videos: LabelledSlots, batch: int = 64) -> Any:
    """Probability that red touches yellow, float64 [videos]."""
    logits = [model(videos[range(first, min(first + batch, len(videos)))]["slots"]) for first in range(0, len(videos), batch)]
    return torch.cat(logits).double().sigmoid().numpy()
