"""The cross-entropy of a linear layer's outputs without ever holding all of them: the form for a GPU.

Shapes: X positions, x those of a chunk, D width, V codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 8192  # positions whose V logits exist at a time


class CrossEntropy(nn.Module):
    """Mean cross-entropy of the logits `hidden @ weight.T`, and its gradients, while a chunk's logits are in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.chunk = LossAndGradient()

    def forward(self, hidden_XD: Tensor, weight_VD: Tensor, targets_X: Tensor, worth_V: Tensor | None = None) -> Tensor:
        """Hidden [X, D], weight [V, D] and targets int64 [X] -> a scalar; worth_V: a weight for each target code."""
        loss: Tensor = _Chunked.apply(to_autocast(hidden_XD), to_autocast(weight_VD), targets_X, self.chunk, worth_V)
        return loss


class LossAndGradient(nn.Module):
    """For one chunk. A module, so that it can be compiled: otherwise it takes many passes over the logits."""

    def forward(self, logits_xV: Tensor, targets_x: Tensor, worth_V: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies, float32, and its gradient with respect to the logits, in their precision."""
        log_xV = torch.log_softmax(logits_xV, -1, dtype=torch.float32)
        worth_x1 = None if worth_V is None else worth_V[targets_x, None]
        losses_x1 = -log_xV.gather(1, targets_x[:, None])
        loss = (losses_x1 if worth_x1 is None else losses_x1 * worth_x1).sum()
        if torch.compiler.is_compiling():
            is_target_xV = torch.arange(logits_xV.shape[1], device=logits_xV.device) == targets_x[:, None]
            grad_xV = log_xV.exp() - is_target_xV.float()
            return loss, (grad_xV if worth_x1 is None else grad_xV * worth_x1).to(logits_xV.dtype)
        grad_xV = log_xV.exp_().to(logits_xV.dtype)
        grad_xV.scatter_add_(1, targets_x[:, None], grad_xV.new_full((), -1).expand(len(targets_x), 1))
        return loss, grad_xV if worth_x1 is None else grad_xV.mul_(worth_x1)


def to_autocast(x: Tensor) -> Tensor:
    """What autocast would turn x into for a matrix product: done once, if several products read it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_XD: Tensor, weight_VD: Tensor, targets_X: Tensor, chunk: LossAndGradient, worth_V: Tensor | None
    ) -> Tensor:
        """Gradients are kept for a mean of 1 per position: divided by X they would underflow in float16."""
        loss = hidden_XD.new_zeros((), dtype=torch.float32)
        grad_XD, grad_VD = torch.empty_like(hidden_XD), torch.zeros_like(weight_VD, dtype=torch.float32)
        with torch.autocast(hidden_XD.device.type, enabled=False):
            for hidden_xD, targets_x, grad_xD in zip(*(t.split(CHUNK) for t in (hidden_XD, targets_X, grad_XD)), strict=True):
                part, grad_xV = chunk(hidden_xD @ weight_VD.t(), targets_x, worth_V)
                loss += part
                torch.mm(grad_xV, weight_VD, out=grad_xD)
                grad_VD += grad_xV.t() @ hidden_xD
        ctx.save_for_backward(grad_XD, grad_VD)
        return loss / len(targets_X)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_XD, grad_VD = ctx.saved_tensors
        scale = grad / len(grad_XD)
        return grad_XD * scale.to(grad_XD.dtype), (grad_VD * scale).to(grad_XD.dtype), None, None, None
