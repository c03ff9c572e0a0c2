"""`train-steve`: slots from video, trained by predicting the dVAE tokens of every frame from its slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from physion.config.schema import Optim, TrainSTEVE
from physion.data.clips import Batch, to_unit
from physion.data.shards import FrameShards, Shards
from physion.data.truth import TruthShards
from physion.job import Job
from physion.models.flops import steve_clip_flops
from physion.models.steve import STEVE
from physion.models.weights import load_model
from physion.training.engine import WEIGHTS, best_device, fit, initial_model, publish_weights
from physion.training.slot_task import SlotTask


class STEVETask(SlotTask):
    """Clips of successive frames and their tokens in, cross-entropy of the tokens out."""

    model: STEVE
    capturable = True

    def __init__(
        self, config: TrainSTEVE, frames: FrameShards, tokens: Shards, codes: int, truth: TruthShards | None = None
    ) -> None:
        model = initial_model(config.seed, lambda: STEVE(config.model, frames.image_size, codes))
        super().__init__(model, frames, config.clip_frames, tokens, truth)
        self.config = config
        self.worth = worth(tokens, codes, config.balance).to(best_device()) if config.balance else None
        self.sample_flops = 3 * steve_clip_flops(config, frames.image_size, codes)
        self.unused_parameters = config.clip_frames == 1  # nothing to predict

    def groups(self, optim: Optim) -> list[tuple[list[nn.Parameter], float]]:
        """The decoder has its own learning rate."""
        decoder = list(self.model.trans_decoder.parameters())
        known = {id(parameter) for parameter in decoder}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in known]
        return [(rest, optim.lr), (decoder, self.config.decoder_lr)]

    def compile(self) -> None:
        """Compile the parts; of the loss only the work per chunk, not the loop over chunks."""
        model = self.model
        for part in (
            model.encoder,
            model.slot_attention,
            model.predictor,
            model.trans_decoder,
            model.trans_decoder.cross_entropy.chunk,
        ):
            part.compile()
        setattr(model, "_project", torch.compile(model._project))  # noqa: B010 (mypy lets no method be assigned)

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Cross-entropy of all tokens of every frame; for held-out clips without `balance`, for comparison."""
        slots = self.model.encode(to_unit(batch["images"])).slots
        return self.model.loss(slots, batch["tokens"], self.worth if self.model.training else None)


def worth(tokens: Shards, codes: int, balance: float) -> Tensor:
    """Weight of a token by its code, float32 [V]: the code's frequency to the power of -balance, 1 on average."""
    counts_V = np.zeros(codes, np.int64)
    for video in tokens.select(heldout=False):
        counts_V += np.bincount(tokens.read(video.name, "tokens").ravel(), minlength=codes)
    powers_V = np.where(counts_V, np.maximum(counts_V, 1.0) ** -balance, 0.0)
    return torch.from_numpy(powers_V * counts_V.sum() / (powers_V * counts_V).sum()).float()


def run(job: Job) -> dict[str, Any]:
    """Train and publish the weights."""
    config: TrainSTEVE = job.config
    frames = FrameShards(job.inputs["frames"])
    codes = load_model(job.inputs["dvae"].path(WEIGHTS), "dvae").model.codes
    tokens = Shards(job.inputs["tokens"])
    for shards in (frames, tokens):
        shards.prefetch_all()
    truth = TruthShards.of(job.inputs.get("dataset"))
    task = STEVETask(config, frames, tokens, codes, truth)
    rows = fit(task, config, job)
    sizes = {"model": config.model.model_dump(), "image_size": frames.image_size, "codes": codes}
    return publish_weights(task.model, "steve", sizes, rows, job)
