"""The random numbers that training draws: cheap on a CPU, and there the same however a batch is split.

torch's CPU generator fills a tensor one element at a time (about 10 ns for a Bernoulli, 28 ns for an exponential),
which made dropout 24 % of STEVE's published training step and Gumbel noise a third of the dVAE's. Here one 64-bit draw
serves four dropout decisions or two exponentials.

Inside `sample_noise` every sample of the batch draws from a generator of its own, so its noise does not depend on which others
are computed with it. That needs every noisy tensor to hold the samples one after the other, as all do here: [B * x, ...].
On a GPU, where kernels draw their own noise, and outside, torch's global generator serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

_generators: list[torch.Generator] = []


@contextmanager
def sample_noise(seeds: Sequence[int]) -> Iterator[None]:
    """Inside, the CPU noise of a batch of len(seeds) samples comes from these seeds, one a sample."""
    _generators[:] = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        yield
    finally:
        _generators.clear()


def keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Draw which elements survive dropout on the CPU: bool of `shape`, True with probability 1 - p to within 2^-17."""
    return (_bits(shape, torch.int16) >= round(p * 65536) - 32768).view(shape)


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
    uniform = _bits(shape, torch.int32).view(shape).float().mul_(2.0**-32).add_(0.5)
    return uniform.clamp_(2.0**-33, 1 - 2.0**-24).neg_().log1p_().neg_()


def _bits(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Draw random integers of all bits, a contiguous tensor of shape.numel() elements."""
    generators: Sequence[torch.Generator | None] = _generators or [None]
    count, rest = divmod(shape.numel(), len(generators))
    assert rest == 0, f"a noisy tensor of shape {tuple(shape)} does not hold {len(generators)} samples one after the other"
    words = torch.empty(len(generators), -(-count * dtype.itemsize // 8), dtype=torch.int64)
    for row, generator in zip(words, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)
    return words.view(dtype)[:, :count].reshape(-1)
