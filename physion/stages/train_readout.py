"""`train-readout`: one readout, for one feature mode and seed; its threshold is chosen on held-out readout videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physion.config.schema import TrainReadout
from physion.data.clips import Batch, LabelledSlots
from physion.data.shards import Shards
from physion.errors import ConfigError, DataError
from physion.job import Job
from physion.models.readout import Readout
from physion.models.weights import build_model, save_weights
from physion.report.metrics import balanced_accuracy, choose_threshold
from physion.training.engine import Task, best_device, fit, initial_model, load_best, publish_weights
from physion.training.precision import arithmetic

EPOCHS = "epochs/"
MOST_EPOCHS = 100  # epochs whose weights are kept, evenly spaced; the published training has 50


class ReadoutTask(Task):
    """Slots of a video in, binary cross-entropy of its outcome out. Keeps the weights after every epoch, or some of many."""

    def __init__(self, config: TrainReadout, slots: Shards, job: Job) -> None:
        _, count, size = slots.shape("slots")
        frames = job.settings["frames"]
        places = {"places": job.settings["places"]} if "places" in job.settings else {}
        self.kind, self.sizes = config.model, {"slots": count, "slot_size": size, **places}
        self.steps, self.output = config.optim.steps, job.output
        self.model = initial_model(config.seed, lambda: build_model(self.kind, self.sizes))
        self.train = LabelledSlots(slots, slots.select(heldout=False), frames)
        self.heldout: LabelledSlots = heldout_videos(slots, frames)
        self.capturable = isinstance(self.model, Readout)
        self.epoch_steps = max(1, len(self.train) // config.optim.batch_size)
        last = -(-self.steps // self.epoch_steps)
        every = -(-last // MOST_EPOCHS)  # if a batch is as large as the set, each step is an epoch
        self.kept_epochs = [*range(every, last, every), last]

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Binary cross-entropy."""
        logits, labels = self.model(batch["slots"]), batch["labels"]
        if logits.shape != labels.shape:
            raise ConfigError(f"readout '{self.kind}' gave logits {[*logits.shape]}, not [B={len(labels)}]")
        return F.binary_cross_entropy_with_logits(logits, labels)

    def after_step(self, done: int) -> None:
        """Keep an epoch's weights: the published protocol chooses among them (`paper_protocol`)."""
        epoch = -(-done // self.epoch_steps)
        if (done % self.epoch_steps == 0 or done == self.steps) and epoch in self.kept_epochs:
            path = self.output.scratch / "epoch"
            save_weights(path, self.model, self.kind, self.sizes)
            self.output.add_part(f"epoch-{epoch:05d}", {f"{EPOCHS}{epoch:05d}.safetensors": path})

    def keep_epochs(self) -> None:
        """Include the epochs of an earlier, interrupted run of this training in the artifact."""
        for epoch in self.kept_epochs:
            self.output.keep(f"epoch-{epoch:05d}")


def run(job: Job) -> dict[str, Any]:
    """Train, choose the threshold, publish."""
    config: TrainReadout = job.config.model_copy(update={"seed": int(job.params["seed"])})
    slots = Shards(job.inputs["slots"])
    slots.prefetch_all()
    task = ReadoutTask(config, slots, job)
    rows = fit(task, config, job)
    job.ranks.on_rank_0(task.keep_epochs)
    model = task.model.cpu().eval()
    kept = load_best(model, rows, job) if config.keep == "best" else rows[-1]
    metrics = publish_weights(model, task.kind, task.sizes, rows, job, kept)
    return metrics | {"frames": job.settings["frames"]} | choose_on_heldout(model, task.heldout, job.instance)


def heldout_videos(slots: Shards, frames: int) -> LabelledSlots:
    """The held-out readout videos."""
    return LabelledSlots(slots, slots.select(heldout=True), frames)


def choose_on_heldout(model: nn.Module, heldout: LabelledSlots, name: str) -> dict[str, Any]:
    """The decision threshold of a readout, and its scores with that threshold, on the held-out readout videos.

    Without such videos, which given weights do not need, it is 0.5. Raises what `predict` does; `name` says there which weights
    these are.
    """
    if not len(heldout):
        return {"threshold": 0.5, "heldout_balanced_accuracy": None}
    probabilities = predict({name: model}, heldout)[0]
    labels = heldout[range(len(heldout))]["labels"].bool().numpy()
    threshold = choose_threshold(probabilities, labels)
    return {"threshold": threshold, "heldout_balanced_accuracy": balanced_accuracy(probabilities, labels, threshold)}


@arithmetic(torch.float32)
@torch.inference_mode()
def predict(named: Mapping[str, nn.Module], videos: LabelledSlots, batch: int = 64) -> np.ndarray:
    """Probability that red touches yellow, float64 [models, videos]; every video is read once for all models.

    Raises DataError with the name of a model whose logits are not finite.
    """
    device = best_device()
    models = [model.to(device) for model in named.values()]
    logits = []
    for first in range(0, len(videos), batch):
        slots = videos[range(first, min(first + batch, len(videos)))]["slots"].to(device)
        logits.append(torch.stack([model(slots) for model in models]))
    answers = torch.cat(logits, 1).double()
    for name, finite in zip(named, answers.isfinite().tolist(), strict=True):
        if none := [video.name for video, is_one in zip(videos.videos, finite, strict=True) if not is_one]:
            raise DataError(
                f"the answers of {name} to {len(none)} videos, such as {none[0]}, are not finite: such weights diverged in "
                "training, or are too large. Train them again or use others"
            )
    probabilities: np.ndarray = answers.sigmoid().cpu().numpy()
    return probabilities
