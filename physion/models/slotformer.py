"""SlotFormer's rollouter (arXiv 2210.05861): predicts the slots of future frames from those of a window of frames.

Shapes: B batch, T frames, S slots, D slot size, W the model's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.config.schema import SlotFormerModel
from physion.models.attention import Encoder
from physion.models.decoder import causal_masks


def sine_positions(frames: int, width: int) -> Tensor:
    """Fixed positions of frames, counted down to 0 at the last: [frames, width], all sines first, then all cosines."""
    frequencies = 10000 ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(frames - 1, -1, -1.0)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class SlotFormer(nn.Module):
    """A transformer over the slots of the last `burn_in` frames, applied again and again to its own predictions."""

    positions: Tensor

    def __init__(self, model: SlotFormerModel, slots: int, slot_size: int) -> None:
        super().__init__()
        self.model, self.slots, self.slot_size = model, slots, slot_size
        self.in_proj = nn.Linear(slot_size, model.d_model)
        self.transformer_encoder = Encoder(model.layers, model.d_model, model.heads, model.ffn, model.dropout)
        self.out_proj = nn.Linear(model.d_model, slot_size)
        if model.residual:  # begins by copying
            nn.init.zeros_(self.out_proj.weight)
            nn.init.zeros_(self.out_proj.bias)
        self.register_buffer("positions", sine_positions(model.burn_in, model.d_model), persistent=False)

    @classmethod
    def from_sizes(cls, model: dict[str, Any], slots: int, slot_size: int) -> SlotFormer:
        """Make one from the section `model` as plain data."""
        return cls(SlotFormerModel(**model), slots, slot_size)

    def forward(self, window_BTSD: Tensor) -> Tensor:
        """Slots of `burn_in` successive frames (`stride` video frames apart) -> slots of the next one, [B, S, D]."""
        x_BTSW = self.in_proj(window_BTSD) + self.positions[:, None]
        next_BSD: Tensor = self.out_proj(self.transformer_encoder(x_BTSW.flatten(1, 2), last=self.slots))
        return window_BTSD[:, -1] + next_BSD if self.model.residual else next_BSD

    def predict(self, burn_in_BTSD: Tensor, steps: int) -> Tensor:
        """Slots of `burn_in` frames -> those of the `steps` frames that follow, [B, steps, S, D], one after another."""
        frames = list(burn_in_BTSD.unbind(1))
        for _ in range(steps):
            frames.append(self(torch.stack(frames[-self.model.burn_in :], 1)).to(burn_in_BTSD.dtype))
        return torch.stack(frames[self.model.burn_in :], 1)

    def loss(self, clip_BTSD: Tensor) -> Tensor:
        """Mean squared error of the frames after the first `burn_in`, predicted from these alone: a scalar."""
        burn_in_BTSD, target_BTSD = clip_BTSD.split([self.model.burn_in, clip_BTSD.shape[1] - self.model.burn_in], 1)
        return F.mse_loss(self.predict(burn_in_BTSD, target_BTSD.shape[1]), target_BTSD)

    @torch.no_grad()
    def rollout_video(self, observed_BTSD: Tensor, frames: int = 150) -> Tensor:
        """Continue videos at full frame rate: slots of all observed frames -> slots [B, frames, S, D].

        The model steps `stride` frames at a time, so every one of the `stride` phases is rolled out from its own last
        `burn_in` observed frames, all in one batch, and the predictions interleave.

        Raises ValueError if fewer than stride * burn_in frames are observed.
        """
        stride = self.model.stride
        observed, span = observed_BTSD.shape[1], stride * self.model.burn_in
        if observed < span:
            raise ValueError(f"a rollout with stride {stride} and {self.model.burn_in} burn-in frames needs {span} "
                             f"observed frames, got {observed}")  # fmt: skip
        if frames <= observed:
            return observed_BTSD[:, :frames]
        steps = -(-(frames - observed) // stride)
        phases_PBTSD = observed_BTSD[:, observed - span :].unflatten(1, (-1, stride)).movedim(2, 0)
        predicted_XTSD = self.predict(phases_PBTSD.flatten(0, 1), steps)
        predicted_BTSD = predicted_XTSD.unflatten(0, (stride, -1)).movedim(0, 2).flatten(1, 2)
        return torch.cat([observed_BTSD, predicted_BTSD], 1)[:, :frames]

    def published_constants(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the published modules store besides their parameters: frame positions, and the masks of STEVE's decoder."""
        return causal_masks(state) | {"rollouter.enc_t_pe": self.positions[None].clone()}
