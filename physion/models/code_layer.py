"""The dVAE's code layer on a GPU, chunk by chunk: of all V-way tensors only the codes stay, in the precision of the products.

Shapes: P positions, p those of a chunk, C channels, V codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from physion.models.cross_entropy import to_autocast

CHUNK = 4096  # positions whose logits exist at a time: they stay in the cache from one kernel to the next


class Relax(nn.Module):
    """Soft samples of a chunk's codes. A module, to be compiled, as its gradient is: many passes over the logits otherwise."""

    def forward(self, logits_pV: Tensor, bias_V: Tensor, tau: Tensor) -> Tensor:
        """softmax((logits + bias + Gumbel noise) / tau), in the precision of the logits; noise of torch's global generator."""
        exponential_pV = torch.empty_like(logits_pV, dtype=torch.float32).exponential_()
        gumbel_pV = -(exponential_pV + torch.finfo(torch.float32).tiny).log()
        return ((logits_pV + bias_V + gumbel_pV) / tau).softmax(-1).to(logits_pV.dtype)


class RelaxGradient(nn.Module):
    """What the gradient of the codes is to the logits."""

    def forward(self, codes_pV: Tensor, grad_pV: Tensor, tau: Tensor) -> Tensor:
        """[p, V], in the precision of the codes."""
        weighted_pV = codes_pV.float() * grad_pV
        return ((weighted_pV - codes_pV * weighted_pV.sum(-1, keepdim=True)) / tau).to(codes_pV.dtype)


class CodeLayer(nn.Module):
    """From hidden states to relaxed codes to what these look like to the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.relax, self.relax_gradient = Relax(), RelaxGradient()

    def forward(self, hidden_PC: Tensor, to_logits_VC: Tensor, bias_V: Tensor, from_codes_CV: Tensor, tau: Tensor) -> Tensor:
        """Hidden [P, C] -> [P, C]; tau: a scalar on the device."""
        weights = map(to_autocast, (hidden_PC, to_logits_VC, from_codes_CV))
        embedded_PC: Tensor = _Chunked.apply(*weights, bias_V, tau, self)
        return embedded_PC


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_PC: Tensor, to_logits_VC: Tensor, from_codes_CV: Tensor, bias_V: Tensor, tau: Tensor, layer: CodeLayer
    ) -> Tensor:
        """Keep the codes: to draw them again would take their noise again."""
        codes_PV, embedded_PC = hidden_PC.new_empty(len(hidden_PC), len(bias_V)), torch.empty_like(hidden_PC)
        with torch.autocast(hidden_PC.device.type, enabled=False):
            for hidden_pC, codes_pV, embedded_pC in _chunks(hidden_PC, codes_PV, embedded_PC):
                codes_pV.copy_(layer.relax(hidden_pC @ to_logits_VC.t(), bias_V, tau))
                torch.mm(codes_pV, from_codes_CV.t(), out=embedded_pC)
        ctx.save_for_backward(hidden_PC, to_logits_VC, from_codes_CV, codes_PV, tau)
        ctx.relax_gradient = layer.relax_gradient
        return embedded_PC

    @staticmethod
    def backward(ctx: Any, grad_PC: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PC, to_logits_VC, from_codes_CV, codes_PV, tau = ctx.saved_tensors
        grad_hidden_PC, grad_PC = torch.empty_like(hidden_PC), grad_PC.contiguous()
        grad_to_VC, grad_from_CV = (torch.zeros_like(w, dtype=torch.float32) for w in (to_logits_VC, from_codes_CV))
        grad_bias_V = grad_to_VC.new_zeros(len(to_logits_VC))
        for hidden_pC, codes_pV, grad_pC, grad_hidden_pC in _chunks(hidden_PC, codes_PV, grad_PC, grad_hidden_PC):
            grad_from_CV += grad_pC.t() @ codes_pV
            grad_pV = ctx.relax_gradient(codes_pV, grad_pC @ from_codes_CV, tau)
            torch.mm(grad_pV, to_logits_VC, out=grad_hidden_pC)
            grad_to_VC += grad_pV.t() @ hidden_pC
            grad_bias_V += grad_pV.sum(0, dtype=torch.float32)
        return grad_hidden_PC, grad_to_VC.to(hidden_PC.dtype), grad_from_CV.to(hidden_PC.dtype), grad_bias_V, None, None


def _chunks(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)
