"""The VQA readout of SlotFormer (arXiv 2210.05861): do the two marked objects touch, judging by pairs of slots?

Shapes: B videos, T frames, S slots, D slot size.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from physion.models.noise import dropout

CHUNK = {"cpu": 128, "cuda": 1 << 20}  # frames at a time: as many as fit in a CPU's caches


class ReadoutModel(nn.Module, ABC):
    """What the study requires of any readout: a class with two arguments, `slots` S and `slot_size` D."""

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


class AttentiveReadout(ReadoutModel):
    """Finds two slots by what they are, and judges them frame by frame. Not in the paper.

    The published readout has nothing nonlinear between a pair of slots and its maxima, so it cannot tell how far two things are
    apart; and it compares all slots with each other. Here queries attend over slots, in every frame to the same, as a question
    names two objects by their colors. A network reads each pair and its differences; their maximum and mean over time answer.
    """

    PAIRS, WIDTH, DROPOUT = 2, 64, 0.5

    def __init__(self, slots: int, slot_size: int) -> None:
        super().__init__()
        width = self.WIDTH
        self.queries = nn.Sequential(nn.Linear(slot_size, width), nn.ReLU(), nn.Linear(width, 2 * self.PAIRS))
        self.pair = nn.Sequential(nn.Linear(4 * slot_size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.hidden, self.answer = nn.Linear(2 * self.PAIRS * width, width), nn.Linear(width, 1)

    def forward(self, slots_BTSD: Tensor) -> Tensor:
        """Slots [B, T, S, D] -> logits [B] of "they touch". P pairs, W width."""
        shares_BS2P = self.queries(slots_BTSD).mean(1).softmax(1)
        found_BT2PD = (slots_BTSD.mT @ shares_BS2P[:, None]).mT
        first_BTPD, second_BTPD = found_BT2PD.chunk(2, 2)
        apart_BTPD = first_BTPD - second_BTPD
        read_BTPW = self.pair(torch.cat([first_BTPD, second_BTPD, apart_BTPD.abs(), apart_BTPD.square()], -1))
        over_time_B2PW = torch.cat([read_BTPW.amax(1), read_BTPW.mean(1)], 1).flatten(1)
        hidden_BW = self.hidden(dropout(over_time_B2PW, self.DROPOUT if self.training else 0.0)).relu()
        logits_B: Tensor = self.answer(hidden_BW).squeeze(-1)
        return logits_B
