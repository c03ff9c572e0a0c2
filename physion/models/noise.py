"""The random numbers that training draws: cheap on a CPU, independent there of how a batch is split, and redrawn rather than
kept.

torch's CPU generator fills a tensor one element at a time (about 10 ns for a Bernoulli, 28 ns for an exponential),
which made dropout 24 % of STEVE's published training step and Gumbel noise a third of the dVAE's. Here 64 bits of numpy's SFC64
(1.8 ns) serve four dropout decisions or two exponentials, and parts of a tensor are filled side by side.

Inside `sample_noise` every sample of the batch draws from its own generator, so its noise does not depend on which others are
computed with it. This requires every noisy tensor to hold the samples one after the other, as all do here: [B * x, ...].
Outside, torch's global generator is used. A backward pass draws the same noise again, which is cheaper than keeping it. A GPU's
kernels draw their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")
UNIT = 1 << 18  # most elements per seed: they stay in the caches
SIDE_BY_SIDE = 1 << 15  # 64-bit draws from which threads pay off

_generators: list[np.random.Generator] = []
_threads = ThreadPoolExecutor(thread_name_prefix="noise")


@contextmanager
def sample_noise(seeds: Sequence[int]) -> Iterator[None]:
    """Inside, the CPU noise of a batch of len(seeds) samples comes from these seeds, one per sample."""
    _generators[:] = map(_generator, seeds)
    try:
        yield
    finally:
        _generators.clear()


class Drawn:
    """Noise for a tensor [rows, ...] that can be drawn part by part, and again in a backward pass.

    Its rows form units, each with its own seed, determined by its sample and its place in that sample. The noise thus depends
    neither on the batch nor on how many units make a part.
    """

    def __init__(self, rows: int, elements: int, part: int) -> None:
        """For `rows` rows of `elements` elements, in parts of about `part` elements."""
        self.rows, self._seeds = rows, [int(generator.integers(2**63)) for generator in _current()]
        self._sample = rows // len(self._seeds)
        most = max(1, min(self._sample, UNIT // elements))
        self._unit = next(unit for unit in range(most, 0, -1) if self._sample % unit == 0)
        self.part = min(rows, max(1, part // (elements * self._unit)) * self._unit)

    def parts(self) -> Iterator[slice]:
        """Successive rows, covering all of them."""
        for first in range(0, self.rows, self.part):
            yield slice(first, min(first + self.part, self.rows))

    def seeds(self, rows: slice, block: int = 0) -> list[tuple[int, int, int]]:
        """Seeds of a part's units, or of a block in each of them."""
        places = (divmod(row, self._sample) for row in range(rows.start, rows.stop, self._unit))
        return [(self._seeds[sample], within, block) for sample, within in places]


def keep_mask(out: Tensor, p: float, seeds: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Fill a contiguous CPU tensor with 1 where an element survives dropout (probability 1 - p to within 2^-17), else with 0.

    seeds: one for each of equal successive parts of the tensor; None: from the current generators.
    """
    generators = _current() if seeds is None else [_generator(seed) for seed in seeds]
    count, rest = divmod(out.numel(), len(generators))
    assert rest == 0, f"a noisy tensor of shape {tuple(out.shape)} does not hold {len(generators)} samples one after the other"
    drawn = _side_by_side(out.numel() // 4, lambda generator: _integers(generator, count, np.int16), generators)
    integers = torch.from_numpy(drawn[0] if len(drawn) == 1 else np.concatenate(drawn)).view(out.shape)
    return torch.ge(integers, round(p * 65536) - 32768, out=out)


def dropout(x: Tensor, p: float, relu: bool = False) -> Tensor:
    """Zero each element of x (any shape) with probability p and scale the others by 1 / (1 - p).

    relu: take the positive part of x first, possibly reusing its memory.
    """
    if p > 0 and x.device.type == "cpu":
        kept: Tensor = (_ReluDropout if relu else _Dropout).apply(x, p)
        return kept
    if relu:
        x = F.relu_(x)
    return F.dropout(x, p) if p > 0 else x


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p, ctx.seeds = p, [(int(generator.integers(2**63)),) for generator in _current()]
        return keep_mask(torch.empty_like(x, memory_format=torch.contiguous_format), p, ctx.seeds).mul_(1 / (1 - p)).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        mask = torch.empty_like(grad, memory_format=torch.contiguous_format)
        return keep_mask(mask, ctx.p, ctx.seeds).mul_(1 / (1 - ctx.p)).mul_(grad), None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = keep_mask(torch.empty_like(x, memory_format=torch.contiguous_format), p).mul_(1 / (1 - p))
        kept, ctx.p = mask.mul_(x).clamp_(min=0), p
        ctx.save_for_backward(kept)
        return kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors  # positive where x was and survived
        return torch.gt(kept, 0, out=torch.empty_like(grad)).mul_(1 / (1 - ctx.p)).mul_(grad), None


def log_exponential(out: Tensor, seeds: Sequence[Sequence[int]]) -> Tensor:
    """Fill a contiguous float32 tensor with logarithms of exponentials of mean 1: minus Gumbel noise, from -16 to 2.8.

    seeds: one for each of equal successive parts of the tensor.
    """
    if out.device.type != "cpu":
        generator = torch.Generator(out.device).manual_seed(int(_generator(seeds[0]).integers(2**63)))
        return out.exponential_(generator=generator).add_(torch.finfo(out.dtype).tiny).log_()
    parts = list(out.view(len(seeds), -1).numpy())

    def draw(part: np.ndarray, seed: Sequence[int]) -> None:  # numpy's logarithm takes half the time of torch's
        integers = _integers(_generator(seed), part.size, np.int32)
        np.multiply(integers, np.float32(2.0**-32 * (1 - 2**-22)), out=part, casting="unsafe", dtype=np.float32)
        np.add(part, np.float32(0.5), out=part)  # uniform, 1.2e-7 from 0 and 1 at least
        np.log(part, out=part)
        np.negative(part, out=part)
        np.log(part, out=part)

    _side_by_side(out.numel() // 2, draw, parts, seeds)
    return out


def _generator(seed: int | Sequence[int]) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def _current() -> Sequence[np.random.Generator]:
    """The samples' generators, or one seeded by torch's global generator."""
    return _generators or [_generator(int(torch.randint(2**63 - 1, ()).item()))]


def _integers(generator: np.random.Generator, count: int, dtype: type[np.signedinteger]) -> np.ndarray:
    """Draw random integers, uniform in all bits."""
    words = -(-count * np.dtype(dtype).itemsize // 8)
    return generator.integers(2**64, size=words, dtype=np.uint64).view(dtype)[:count]


def _side_by_side(words: int, draw: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """`map`, on threads if torch has several and there is enough to draw."""
    at_once = torch.get_num_threads() > 1 and words >= SIDE_BY_SIDE and len(arguments[0]) > 1
    return list((_threads.map if at_once else map)(draw, *arguments))
