"""A slot model without attention, tokens or a dVAE, and a readout, added to the study from outside (docs/extend.md).

A slot is a blob of one color. Soft k-means over color and place assigns the patches of a frame to the blobs, starting from
where the blobs were one frame earlier. Drawing the blobs reconstructs the frame; the training minimizes the error of that.

Shapes as in the package: B videos, T frames, S slots, D slot size, N frames of any videos, H W pixels; P patches, h * w.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from physion.config.schema import Optim, ReplaceableStage
from physion.data.clips import Batch, to_unit
from physion.data.shards import FrameShards
from physion.job import Job
from physion.models.kinds import MODELS, ReadoutKind, SlotModelKind, slot_model_kind
from physion.models.readout import ReadoutModel
from physion.models.slots import SlotModel, SlotOutput
from physion.stages.registry import STAGES, Instance, Kind, Stage, training_cost
from physion.training.engine import fit, initial_model, publish_weights
from physion.training.slot_task import SlotTask

PATCH = 4  # pixels per side
SLOT = [3, 2, 2, 1]  # a slot: color, place (y, x from -1 to 1), log of the spread in y and x, log of its share


class TrainPatches(ReplaceableStage):
    """Options of `train-patches`. All have defaults, so presets need not mention them."""

    optim: Optim = Optim(lr=2e-2, batch_size=8, steps=60)
    slots: Annotated[int, Field(ge=2)] = 4
    iterations: PositiveInt = Field(3, description="k-means iterations per frame")
    clip_frames: PositiveInt = Field(3, description="successive frames per training clip")


class PatchSlots(SlotModel):
    """Blobs by soft k-means."""

    def __init__(self, slots: int, iterations: int, image_size: int) -> None:
        super().__init__()
        self.iterations, self.image_size = iterations, image_size
        self.start = nn.Parameter(torch.rand(slots, 5) * 2 - 1)  # color and place of the blobs before a video's first frame
        self.scale = nn.Parameter(torch.full((5,), 2.0))  # weight of each of the five in a distance

    def encode(self, images_BT3HW: Tensor, state: Tensor | None = None, with_masks: bool = False) -> SlotOutput:
        """See `SlotModel`; the state is the blobs' colors and places, [B, S, 5]."""
        batch, side = images_BT3HW.shape[0], self.image_size // PATCH
        colors_BTPC = F.avg_pool2d(images_BT3HW.flatten(0, 1), PATCH).flatten(2).mT.unflatten(0, (batch, -1))
        places_BTPC = self.grid(side).expand(*colors_BTPC.shape[:2], -1, -1)
        centers_BSC = self.start.expand(batch, -1, -1) if state is None else state
        slots, masks = [], []
        for patches_BPC in torch.cat([colors_BTPC, places_BTPC], -1).unbind(1):
            for _ in range(self.iterations):
                apart_BPSC = patches_BPC[:, :, None] - centers_BSC[:, None]
                masks_BPS = (apart_BPSC * self.scale).square().sum(-1).neg().softmax(-1)
                weights_BPS = masks_BPS / (masks_BPS.sum(1, keepdim=True) + 1e-6)
                centers_BSC = weights_BPS.mT @ patches_BPC
            spread_BS2 = (weights_BPS[..., None] * apart_BPSC[..., 3:].square()).sum(1).add(1e-3).sqrt()
            share_BS1 = masks_BPS.mean(1)[..., None] + 1e-6
            slots.append(torch.cat([centers_BSC, spread_BS2.log(), share_BS1.log()], -1))
            masks.append(masks_BPS.mT.unflatten(-1, (side, side)))
        return SlotOutput(torch.stack(slots, 1), torch.stack(masks, 1), centers_BSC)

    def decode(self, slots_NSD: Tensor) -> Tensor:
        """Draw the blobs: each pixel is divided among them as in a mixture of Gaussians."""
        color_NS3, place_NS2, spread_NS2, share_NS1 = torch.split(slots_NSD, SLOT, -1)
        apart_NSP2 = (self.grid(self.image_size) - place_NS2[:, :, None]) / spread_NS2.exp()[:, :, None]
        logits_NSP = share_NS1 - spread_NS2.sum(-1, keepdim=True) - apart_NSP2.square().sum(-1) / 2
        pixels_N3P = color_NS3.mT @ logits_NSP.softmax(1)
        return pixels_N3P.view(-1, 3, self.image_size, self.image_size)

    def grid(self, side: int) -> Tensor:
        """Coordinates of side * side points, row by row: [side * side, 2]."""
        axis = torch.linspace(-1, 1, side, device=self.start.device)
        return torch.cartesian_prod(axis, axis)


class MeanReadout(ReadoutModel):
    """One linear layer on the mean slot."""

    def __init__(self, slots: int, slot_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(slot_size, 1)

    def forward(self, slots_BTSD: Tensor) -> Tensor:
        """Slots [B, T, S, D] -> logits [B]."""
        logits_B: Tensor = self.linear(slots_BTSD.mean((1, 2))).squeeze(-1)
        return logits_B


class PatchesTask(SlotTask):
    """Clips in, mean squared error of the drawn blobs out."""

    model: PatchSlots

    def loss(self, batch: Batch, step: int) -> Tensor:
        """See `Task`."""
        images_BT3HW = to_unit(batch["images"])
        slots_BTSD = self.model.encode(images_BT3HW).slots
        return F.mse_loss(self.model.decode(slots_BTSD.flatten(0, 1)), images_BT3HW.flatten(0, 1))


def sizes(section: TrainPatches, image_size: int) -> dict[str, Any]:
    """The arguments of `PatchSlots`; its weights files hold them too."""
    return {"slots": section.slots, "iterations": section.iterations, "image_size": image_size}


def run(job: Job) -> dict[str, Any]:
    """The stage `train-patches`: train and publish the weights."""
    config, frames = job.config, FrameShards(job.inputs["frames"])
    frames.prefetch_all()
    made_from = sizes(config, frames.image_size)
    task = PatchesTask(initial_model(config.seed, lambda: PatchSlots(**made_from)), frames, config.clip_frames)
    rows = fit(task, config, job)
    return publish_weights(task.model, "patches", made_from, rows, job)


def flops(config: Any, drawn: bool = False) -> float:
    """FLOPs per frame, for the plan: each patch's distance from each blob and its part in the new center; and each pixel's."""
    section, size = config.train_patches, config.frames.image_size
    return float(section.slots * (30 * section.iterations * (size // PATCH) ** 2 + drawn * 20 * size**2))


MODELS.register(
    SlotModelKind(
        "patches",
        make=PatchSlots,
        sizes=lambda config: sizes(config.train_patches, config.frames.image_size),
        shape=lambda config: (config.train_patches.slots, sum(SLOT)),
        stage="train-patches",
        parameters=lambda config: 5 * config.train_patches.slots + 5,
        flops=flops,
        sample_flops=lambda config: config.train_patches.clip_frames * flops(config, drawn=True),
    )
)
MODELS.register(ReadoutKind("mean", make=MeanReadout, flops=lambda config: math.prod(slot_model_kind(config).shape(config))))
STAGES.register(
    Stage(
        "train-patches",
        kind=Kind.TRAINING,
        summary="train blobs of color that divide up a frame",
        module=__name__,
        section=TrainPatches,
        reads=lambda config, params: {"frames": Instance("frames", {"subset": "training"})},
        cost=training_cost("patches"),
        gpu=True,
    )
)
