"""Slot attention (arXiv 2006.15055): slots compete for the positions of a feature map.

Shapes: B batch, S slots, D slot size, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SlotAttention(nn.Module):
    """The iterated attention and update of slots, as in STEVE's published code."""

    def __init__(self, slot_size: int, mlp: int, iterations: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.iterations, self.eps = iterations, eps
        self.norm_inputs = nn.LayerNorm(slot_size)
        self.project_q = nn.Sequential(nn.LayerNorm(slot_size), nn.Linear(slot_size, slot_size, bias=False))
        self.project_k = nn.Linear(slot_size, slot_size, bias=False)
        self.project_v = nn.Linear(slot_size, slot_size, bias=False)
        self.gru = nn.GRUCell(slot_size, slot_size)
        self.mlp = nn.Sequential(nn.LayerNorm(slot_size), nn.Linear(slot_size, mlp), nn.ReLU(), nn.Linear(mlp, slot_size))

    def forward(self, features_BPD: Tensor, slots_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Update the slots from a frame's features, already through `norm_inputs`.

        Returns slots [B, S, D] and masks [B, S, P]: the share of each position that each slot won in the last
        iteration.

        Keys and values are never computed: with S slots and P >> S positions it is far cheaper to take the queries back through
        the key projection, q (W x) = (q W) x, and the weighted mean of features through the value projection.
        """
        for _ in range(self.iterations):
            q_BSD = self.project_q(slots_BSD) * slots_BSD.shape[-1] ** -0.5
            scores_BSP = (q_BSD @ self.project_k.weight) @ features_BPD.transpose(1, 2)
            masks_BSP = scores_BSP.softmax(1)  # over slots: they compete
            weights_BSP = masks_BSP + self.eps
            weights_BSP = weights_BSP / weights_BSP.sum(2, keepdim=True)
            updates_BSD = self.project_v(weights_BSP @ features_BPD)
            with torch.autocast(slots_BSD.device.type, enabled=False):  # the recurrent state stays float32
                updates_BSD = updates_BSD.to(slots_BSD.dtype)
                slots_BSD = self.gru(updates_BSD.flatten(0, 1), slots_BSD.flatten(0, 1)).view(slots_BSD.shape)
            slots_BSD = slots_BSD + self.mlp(slots_BSD)
        return slots_BSD, masks_BSP
