"""The random numbers that training draws, made cheap on a CPU.

torch's CPU generator fills a tensor one element at a time (about 10 ns for a Bernoulli, 28 ns for an exponential),
which made dropout 24 % of STEVE's published training step and Gumbel noise a third of the dVAE's. Here one 64-bit draw
serves four dropout decisions or two exponentials. All of it comes from torch's global generator, so that seeding that,
or restoring its state, repeats a run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Draw which elements survive dropout on the CPU: bool of `shape`, True with probability 1 - p to within 2^-17."""
    bits = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits[: shape.numel()] >= round(p * 65536) - 32768).view(shape)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element of x (any shape) with probability p and scale the others by 1 / (1 - p)."""
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return x * keep_mask(x.shape, p).to(x.dtype).mul_(1 / (1 - p))


def standard_exponential(shape: torch.Size, device: torch.device) -> Tensor:
    """Draw float32 exponentials of mean 1; on the CPU from 32-bit uniforms, so between 1e-10 and 16.6."""
    if device.type != "cpu":
        return torch.empty(shape, device=device).exponential_()
    bits = torch.empty(-(-shape.numel() // 2), dtype=torch.int64).random_(-(2**63), None).view(torch.int32)
    uniform = bits[: shape.numel()].view(shape).float().mul_(2.0**-32).add_(0.5)
    return uniform.clamp_(2.0**-33, 1 - 2.0**-24).neg_().log1p_().neg_()
