"""The VQA readout of SlotFormer (arXiv 2210.05861): do the two marked objects touch, judging by pairs of slots?

Shapes: B videos, T frames, S slots, D slot size.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.config.schema import LARGEST, PLACE
from physion.models.flops import TOUCH_CONTENT, TOUCH_STRIDE, TOUCH_WIDTH, touch_inputs
from physion.models.noise import dropout
from physion.models.slots import red_and_yellow

CHUNK = {"cpu": 128, "cuda": 1 << 20}  # frames at a time: as many as fit in a CPU's caches


class ReadoutModel(nn.Module, ABC):
    """What the study requires of any readout: a class with the arguments `slots` S and `slot_size` D."""

    @abstractmethod
    def forward(self, slots_BTSD: Tensor) -> Tensor:
        """Slots [B, T, S, D] of the frames that it may see -> logits [B] of "they touch"; T differs between feature modes."""


class Readout(ReadoutModel):
    """A linear layer on every unordered slot pair, maximum over pairs, a linear layer, maximum over frames."""

    def __init__(self, slots: int, slot_size: int) -> None:
        super().__init__()
        if slots < 2:
            raise ValueError(f"a readout compares pairs of slots, so it needs at least 2 slots, got {slots}")
        self.slots, self.slot_size = slots, slot_size
        self.linear1 = nn.Linear(2 * slot_size, slot_size)
        self.linear2 = nn.Linear(slot_size, 1)

    def forward(self, slots_BTSD: Tensor) -> Tensor:
        """Slots [B, T, S, D] -> logits [B] of "they touch".

        Only a video's best frame has a gradient, so only that frame is computed with one.
        """
        with torch.no_grad():
            frames_X = [self._of_frames(frames) for frames in slots_BTSD.flatten(0, 1).split(CHUNK[slots_BTSD.device.type])]
            logits_BT = torch.cat(frames_X).view(slots_BTSD.shape[:2])
        if not torch.is_grad_enabled():
            return logits_BT.amax(1)
        videos_B = torch.arange(len(slots_BTSD), device=slots_BTSD.device)
        return self._of_frames(slots_BTSD[videos_B, logits_BT.argmax(1)])

    def _of_frames(self, slots_XSD: Tensor) -> Tensor:
        """Logits [X] of frames.

        The first layer is linear in the pair, W [s_i; s_j] = W_1 s_i + W_2 s_j, so it runs once per slot, not once per pair;
        and the best j > i for slot i is the largest W_2 s_j, whatever i is, so no pair is ever formed.
        """
        both = torch.cat(self.linear1.weight.split(self.slot_size, 1))
        as_first, as_second = (half.unbind(1) for half in nn.functional.linear(slots_XSD, both).split(self.slot_size, -1))
        best_second = as_second[-1]
        best_pair = as_first[-2] + best_second
        for i in range(self.slots - 3, -1, -1):
            best_second = torch.maximum(best_second, as_second[i + 1])
            best_pair = torch.maximum(best_pair, as_first[i] + best_second)
        logits_X: Tensor = self.linear2(best_pair + self.linear1.bias).squeeze(-1)
        return logits_X

    def published_constants(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the published module stores besides its parameters: all pairs of slots."""
        return {"comb_idx": torch.tensor(list(itertools.combinations(range(self.slots), 2))).flatten()}


class TouchReadout(ReadoutModel):
    """Sees how near the two objects come that the question names, the red and the yellow one. Not in the paper.

    The published readout compares all slots with each other, and has nothing nonlinear between a pair of slots and its maxima
    that could tell how far two things are apart. This one needs slots that say their color, place and extent, takes the reddest
    and the yellowest, and a network reads where they are in every third frame, how they move, and the gap between them. Its
    maximum and mean over time and its last value answer.

    places: in how many coordinates slots say a place. P is that number below, W the network's width.
    """

    DROPOUT = 0.5

    def __init__(self, slots: int, slot_size: int, places: int) -> None:
        super().__init__()
        content, width = slot_size - 3 - 2 * places, TOUCH_WIDTH
        self.places = places
        self.content = nn.Linear(content, TOUCH_CONTENT)
        self.pair = nn.Sequential(
            nn.Linear(touch_inputs(places), width), nn.ReLU(inplace=True), nn.Linear(width, width), nn.ReLU(inplace=True)
        )
        self.answer = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(inplace=True), nn.Linear(width, 1))

    def forward(self, slots_BTSD: Tensor) -> Tensor:
        """Slots [B, T, S, D] -> logits [B] of "they touch"."""
        named_BT2D = red_and_yellow(slots_BTSD, self.places)[:, ::TOUCH_STRIDE]
        content, _, place, extent = named_BT2D.split([self.content.in_features, 3, self.places, self.places], -1)
        apart_BTP = place[:, :, 0] - place[:, :, 1]
        gap_BTP = apart_BTP.abs() - PLACE * extent.clamp(max=LARGEST).exp().sum(2)
        distance_BT1 = apart_BTP.norm(dim=-1, keepdim=True)
        moved = torch.cat([place.flatten(2), apart_BTP], -1).diff(dim=1)
        moved_BT3P = F.pad(2 * moved, (0, 0, 1, 0))
        of_each = torch.cat([self.content(content), place, extent], -1).flatten(2)
        read_BTW = self.pair(torch.cat([of_each, apart_BTP, gap_BTP, distance_BT1, moved_BT3P], -1))
        over_time_B3W = torch.cat([read_BTW.amax(1), read_BTW.mean(1), read_BTW[:, -1]], -1)
        logits_B: Tensor = self.answer(dropout(over_time_B3W, self.DROPOUT if self.training else 0.0)).squeeze(-1)
        return logits_B
