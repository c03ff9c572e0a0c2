"""How exactly torch computes float32, and on how many CPU threads. Its switches for that are global, and set nowhere else.

They are torch's older ones, which set the newer ones (`fp32_precision`) along. The newer ones leave the older ones behind,
and then torch raises where it still reads those, as torch.compile on a GPU does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(precision: torch.dtype, threads: int | None = None) -> Iterator[None]:
    """Inside, float32 is exactly that if it is the `precision`; beside another, what stays float32 may be computed as TF32.

    threads: CPU threads of torch inside; None: as many as outside. Outside everything is as before.
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
