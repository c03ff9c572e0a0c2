"""`train-dvae`: the discrete VAE, trained on single frames to reconstruct them through Gumbel-softmax codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from physion.config.schema import TrainDVAE
from physion.data.clips import Batch, FrameClips, to_unit
from physion.data.shards import FrameShards
from physion.job import Job
from physion.models.dvae import DVAE, gumbel_tau
from physion.models.flops import reconstruct_flops
from physion.report import pictures
from physion.training.engine import Task, fit, initial_model, publish_weights

CACHED = 1 << 15  # pixels


class DVAETask(Task):
    """Frames in, mean squared error of the reconstruction out."""

    def __init__(self, config: TrainDVAE, frames: FrameShards) -> None:
        self.config = config
        self.model: DVAE = initial_model(config.seed, lambda: DVAE(config.model))
        self.train = FrameClips(frames, frames.select(heldout=False), frames.video_frames, 1)
        self.heldout = FrameClips(frames, frames.select(heldout=True), frames.video_frames, 1)
        self.cpu_micro_batch = max(1, CACHED // frames.image_size**2)
        self.sample_flops = 3 * reconstruct_flops(config.model, frames.image_size)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean squared error through relaxed codes at the step's temperature."""
        return self.model.loss(to_unit(batch["images"][:, 0]), self.watched(step)["tau"])

    def heldout_loss(self, batch: Batch) -> Tensor:
        """Mean squared error through the tokens: what later stages will see."""
        images = to_unit(batch["images"][:, 0])
        return (self.model.decode_tokens(self.model.tokenize(images)) - images).square().mean()

    def watched(self, step: int) -> dict[str, float]:
        """The temperature."""
        tau = self.config.tau
        return {"tau": gumbel_tau(step, self.config.optim.steps, tau.start, tau.end, tau.share)}

    def picture(self, batch: Batch) -> np.ndarray:
        """Frames, and below them what their tokens keep of them."""
        images = to_unit(batch["images"][:, 0])
        rebuilt = self.model.decode_tokens(self.model.tokenize(images))
        return pictures.grid([pictures.from_unit(rows.float().cpu().numpy()) for rows in (images, rebuilt)])


def run(job: Job) -> dict[str, Any]:
    """Train and publish the weights."""
    config: TrainDVAE = job.config
    frames = FrameShards(job.inputs["frames"])
    frames.prefetch_all()
    task = DVAETask(config, frames)
    rows = fit(task, config, job)
    return publish_weights(task.model, "dvae", {"model": config.model.model_dump()}, rows, job)
