"""What the study asks of a model that finds slots, whichever it is.

Shapes: B videos, T frames, S slots, D slot size, N frames of any videos, H W pixels, h w the masks' own grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class SlotOutput(NamedTuple):
    """What `SlotModel.encode` returns; `state` continues the video with its next chunk."""

    slots: Tensor  # [B, T, S, D]
    masks: Tensor | None  # [B, T, S, h, w], summing to 1 over the slots
    state: Any


class SlotModel(Protocol):
    """A slot model, on one device and in eval mode."""

    def encode(self, images_BT3HW: Tensor, state: Any = None, with_masks: bool = False) -> SlotOutput:
        """Find the slots of successive frames, float in [-1, 1]: of a video's first ones, or of those after `state`."""

    def decode(self, slots_NSD: Tensor) -> Tensor | None:
        """Images [N, 3, H, W] from slots; None when this model cannot draw."""

    def reconstruct(self, images_N3HW: Tensor) -> Tensor | None:
        """What the model's visual tokens keep of images, [N, 3, H, W]; None when it has none."""

    def to(self, where: torch.device) -> SlotModel:
        """The same model on a device."""


def resize_masks(masks_BTShw: Tensor, size: int) -> Tensor:
    """Resize masks bilinearly to pixels, [B, T, S, size, size], for viewing."""
    masks_XShw = F.interpolate(masks_BTShw.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
    return masks_XShw.view(*masks_BTShw.shape[:3], size, size)
