"""How precisely torch computes float32, and on how many CPU threads. Torch's switches for these are global; only this file sets
them.

These are torch's older switches, which also set the newer ones (`fp32_precision`). The newer ones do not set the older ones,
and torch then raises an error wherever it still reads those, as torch.compile does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(precision: torch.dtype, threads: int | None = None) -> Iterator[None]:
    """Inside, if `precision` is float32 it is exact; with another one, whatever stays in float32 may be computed as TF32.

    threads: torch's CPU threads inside; None: as many as outside. Afterwards everything is restored.
    """
    tf32 = precision != torch.float32
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    _switch("high" if tf32 else "highest", tf32, threads or before[2])
    try:
        yield
    finally:
        _switch(*before)


def _switch(products: str, convolutions: bool, threads: int) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_num_threads(threads)
