"""What the study requires of any model that finds slots.

Shapes: B videos, T frames, S slots, D slot size, N frames of any videos, H W pixels, h w the masks' own grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.errors import ConfigError

MASK_ERROR = 0.02  # in the sum of bfloat16 masks


class SlotOutput(NamedTuple):
    """The result of `SlotModel.encode`; `state` continues the video with its next chunk."""

    slots: Tensor  # [B, T, S, D]
    masks: Tensor | None  # [B, T, S, h, w], summing to 1 over the slots
    state: Any


class SlotModel(nn.Module, ABC):
    """A model that finds slots. Only `encode` has to be defined."""

    @abstractmethod
    def encode(self, images_BT3HW: Tensor, state: Any = None, with_masks: bool = False) -> SlotOutput:
        """Find the slots of successive frames, float in [-1, 1]: the first of a video, or those that follow `state`.

        Going chunk by chunk while carrying the state must give the slots of the whole video at once.
        """

    def masks(self, slots_BTSD: Tensor) -> Tensor | None:
        """Where slots that this model found look, [B, T, S, h, w], if that follows from them alone; else None."""
        return None

    def decode(self, slots_NSD: Tensor) -> Tensor | None:
        """Draw slots as images [N, 3, H, W] in [-1, 1]; None if this model cannot."""
        return None

    def reconstruct(self, images_N3HW: Tensor) -> Tensor | None:
        """Images [N, 3, H, W] as reconstructed from the code through which the model sees them; None if there is none."""
        return None


def red_and_yellow(slots_BTSD: Tensor, places: int) -> Tensor:
    """The two slots that the question names, [B, T, 2, D]: in all frames of a video the same, the reddest and the yellowest.

    Slots say their color and their place in `places` coordinates (`SlotModelKind.places`).
    """
    first = slots_BTSD.shape[-1] - 3 - 2 * places
    red_BS, green_BS, blue_BS = slots_BTSD[..., first : first + 3].mean(1).unbind(-1)
    redness_BS, yellowness_BS = red_BS - torch.maximum(green_BS, blue_BS), torch.minimum(red_BS, green_BS) - blue_BS
    found_B2 = torch.stack([redness_BS.argmax(1), yellowness_BS.argmax(1)], 1)
    videos_B1 = torch.arange(len(slots_BTSD), device=slots_BTSD.device)[:, None]
    return slots_BTSD[videos_B1, :, found_B2].transpose(1, 2)  # take_along_dim would take 14 times as long


def encode_video(model: SlotModel, chunks_BT3HW: Iterable[Tensor], with_masks: bool = False) -> Iterator[SlotOutput]:
    """Successive chunks of some videos, one after the other, carrying the state along.

    Raises ConfigError if the model's outputs do not have the shapes of `SlotOutput`.
    """
    state = None
    for images in chunks_BT3HW:
        out = model.encode(images, state, with_masks)
        _require(out, images, with_masks, type(model).__name__)
        state = out.state
        yield out


def _require(out: SlotOutput, images_BT3HW: Tensor, with_masks: bool, name: str) -> None:
    videos, frames = images_BT3HW.shape[:2]
    if out.slots.ndim != 4 or out.slots.shape[:2] != (videos, frames):
        raise ConfigError(f"{name}.encode gave slots {[*out.slots.shape]}, not [B={videos}, T={frames}, S, D]")
    if not with_masks:
        return
    wanted, given = [videos, frames, out.slots.shape[2]], None if out.masks is None else [*out.masks.shape]
    if given is None or len(given) != 5 or given[:3] != wanted:
        raise ConfigError(f"{name}.encode gave masks {given}, not [B={videos}, T={frames}, S={wanted[2]}, h, w]")
    assert out.masks is not None
    if (out.masks.sum(2) - 1).abs().max() > MASK_ERROR:
        raise ConfigError(f"{name}.encode gave masks that do not sum to 1 over the slots")


def resize_masks(masks_BTShw: Tensor, size: int) -> Tensor:
    """Resize masks bilinearly to pixels, [B, T, S, size, size], for viewing."""
    masks_XShw = F.interpolate(masks_BTShw.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
    return masks_XShw.view(*masks_BTShw.shape[:3], size, size)


def see_video(model: SlotModel, images_BT3HW: Tensor, size: int, chunk: int = 30) -> tuple[Tensor, Tensor]:
    """The slots [B, T, S, D] of whole videos and where each looks, [B, T, S, size, size]; on the CPU, float32."""
    parts = [
        (out.slots.float().cpu(), resize_masks(out.masks.float(), size).cpu())
        for out in encode_video(model, images_BT3HW.split(chunk, 1), with_masks=True)
        if out.masks is not None
    ]
    slots, masks = zip(*parts, strict=True)
    return torch.cat(slots, 1), torch.cat(masks, 1)


def masks_of(model: SlotModel, slots_BTSD: Tensor, videos: Callable[[], Tensor], size: int) -> Tensor:
    """Where the slots that the model once found in some videos look, [B, T, S, size, size]; on the CPU, float32.

    If slots alone do not tell, the model sees the videos again, which `videos` gives as [B, T, 3, H, W]. It then finds other
    slots, by rounding and what that grows to.
    """
    masks = model.masks(slots_BTSD)
    return see_video(model, videos(), size)[1] if masks is None else resize_masks(masks.float(), size).cpu()
