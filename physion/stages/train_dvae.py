"""`train-dvae`: the discrete VAE, trained on single frames to reconstruct them through Gumbel-softmax codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physion.config.schema import TrainDVAE
from physion.data.clips import Batch, FrameClips, from_unit, to_unit
from physion.data.shards import FrameShards
from physion.job import Job
from physion.models.dvae import DVAE, gumbel_tau
from physion.models.flops import reconstruct_flops
from physion.report import pictures
from physion.training.engine import Task, fit, initial_model, publish_weights

CACHED = 1 << 15  # pixels


class DVAETask(Task):
    """Frames in, mean squared error of the reconstruction out."""

    compiled: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, config: TrainDVAE, frames: FrameShards) -> None:
        self.config = config
        self.model: DVAE = initial_model(config.seed, lambda: DVAE(config.model))
        self.train = FrameClips(frames, frames.select(heldout=False), frames.video_frames, 1)
        self.heldout = FrameClips(frames, frames.select(heldout=True), frames.video_frames, 1)
        self.cpu_micro_batch = max(1, CACHED // frames.image_size**2)
        self.sample_flops = 3 * reconstruct_flops(config.model, frames.image_size)

    def compile(self) -> None:
        """Compile the loss as a whole."""
        self.compiled = torch.compile(self.model.loss_at_once)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean squared error through relaxed codes at the step's temperature."""
        images, tau = to_unit(batch["images"][:, 0]), self.watched(step)["tau"]
        if self.compiled is None or images.device.type == "cpu":  # where noise is drawn per sample
            return self.model.loss(images, tau)
        return self.compiled(images, torch.full((), tau, device=images.device))  # a Python number would be compiled in

    def heldout_loss(self, batch: Batch) -> Tensor:
        """Mean squared error through the tokens: what later stages will see."""
        images = to_unit(batch["images"][:, 0])
        return (self.model.decode_tokens(self.model.tokenize(images)) - images).square().mean()

    def watched(self, step: int) -> dict[str, float]:
        """The temperature."""
        tau = self.config.tau
        return {"tau": gumbel_tau(step, self.config.optim.steps, tau.start, tau.end, tau.share)}

    def picture(self, batch: Batch) -> np.ndarray:
        """Frames, and below them their reconstructions from tokens."""
        images = to_unit(batch["images"][:, 0])
        rebuilt = self.model.decode_tokens(self.model.tokenize(images))
        return pictures.grid([from_unit(rows.float().cpu().numpy()) for rows in (images, rebuilt)])


def run(job: Job) -> dict[str, Any]:
    """Train and publish the weights."""
    config: TrainDVAE = job.config
    frames = FrameShards(job.inputs["frames"])
    frames.prefetch_all()
    task = DVAETask(config, frames)
    rows = fit(task, config, job)
    return publish_weights(task.model, "dvae", {"model": config.model.model_dump()}, rows, job)
