"""A step's GPU work as one graph, captured once and then launched at once: small models wait for Python between kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from physion.data.clips import Batch


class Captured:
    """Losses and gradients of batches, computed by a graph of the first call after `eager` ordinary ones.

    The computation must be the same work each time. The graph then always reads the batch from the same memory, and writes loss
    and gradients to the same memory; noise follows torch's seed, as without a graph.
    """

    def __init__(self, eager: int) -> None:
        self.eager = eager
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, seed: int, backward: Callable[[Batch], Tensor]) -> Tensor:
        """The loss of the batch; `backward` computes it and leaves gradients, and finds none when it is captured."""
        if self.eager:
            self.eager -= 1
            return backward(batch)
        if self.graph is None:
            self.batch = {name: tensor.clone() for name, tensor in batch.items()}
            torch.cuda.empty_cache()  # the graph has its own memory
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads load data meanwhile
                self.loss = backward(self.batch)
            self.graph = graph
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor)
        torch.manual_seed(seed)
        self.graph.replay()
        return self.loss.clone()
