"""Attention over heads, and the pre-norm encoder layer that makes up STEVE's predictor and the rollouter.

Shapes: B batch, L queries, M keys, D width, A heads, E = D / A head size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.models.noise import Drawn, dropout, keep_mask

CAUSAL_BLOCK = 128  # queries per block on the CPU: few, to skip most of the masked half, but enough for a fast GEMM
PART = 1 << 19  # attention weights at a time on the CPU: as many as stay in its caches


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """View [B, L, D] as [B, A, L, E]."""
    x_BLAE: Tensor = x_BLD.unflatten(-1, (heads, -1))
    return x_BLAE.transpose(1, 2)


def attend(q_BALE: Tensor, k_BAME: Tensor, v_BAME: Tensor, p: float = 0.0, causal: bool = False) -> Tensor:
    """Attend with scale E^-0.5 and dropout p on the attention weights; returns the heads merged, [B, L, D].

    Uses torch's kernels, except for dropout on a CPU, where they need a full [L, M] map of slowly drawn noise.
    """
    if p > 0 and q_BALE.device.type == "cpu":
        exact = torch.promote_types(q_BALE.dtype, torch.float32)
        q, k, v = (x.flatten(0, 1).to(exact) for x in (q_BALE, k_BAME, v_BAME))
        with torch.autocast("cpu", enabled=False):
            out_BALE = _DroppedAttention.apply(q, k, v, p, causal).view(q_BALE.shape)
    else:
        out_BALE = F.scaled_dot_product_attention(q_BALE, k_BAME, v_BAME, dropout_p=p, is_causal=causal)
    out_BLD: Tensor = out_BALE.transpose(1, 2).flatten(2)
    return out_BLD


def softmax_in_place(x: Tensor) -> Tensor:
    """Softmax over the last dimension, on a CPU in the memory of x: torch's kernel there reads a row before writing it."""
    return torch.softmax(x, -1, out=x if x.device.type == "cpu" else None)


class _DroppedAttention(torch.autograd.Function):
    """Attention with dropout, X = B * A heads of frames, which never holds a whole map [L, M] nor its noise.

    Some heads at a time, block by block of queries: a causal block never touches the keys after it. The backward pass
    recomputes the weights.
    """

    @staticmethod
    def forward(ctx: Any, q_XLE: Tensor, k_XME: Tensor, v_XME: Tensor, p: float, causal: bool) -> Tensor:
        attending = _Attending(q_XLE, k_XME, p, causal)
        out_XLE = torch.empty_like(q_XLE)
        for x, queries, keys, weights_xlm, kept_xlm in attending.blocks():
            out_XLE[x, queries] = torch.bmm(weights_xlm.mul_(kept_xlm), v_XME[x, keys])
        out_XLE /= 1 - p
        ctx.save_for_backward(q_XLE, k_XME, v_XME, out_XLE)
        ctx.attending = attending
        return out_XLE

    @staticmethod
    def backward(ctx: Any, grad_XLE: Tensor) -> tuple[Tensor | None, ...]:
        q_XLE, k_XME, v_XME, out_XLE = ctx.saved_tensors
        mean_XL1 = (grad_XLE * out_XLE).sum(-1, keepdim=True)  # mean of the weights' gradients, weighted by the weights
        grad_XLE = grad_XLE / (1 - ctx.attending.p)
        grads = grad_q_XLE, grad_k_XME, grad_v_XME = torch.empty_like(q_XLE), torch.zeros_like(k_XME), torch.zeros_like(v_XME)
        for x, queries, keys, weights_xlm, kept_xlm in ctx.attending.blocks():
            grad_xlE = grad_XLE[x, queries]
            grad_xlm = torch.bmm(grad_xlE, v_XME[x, keys].transpose(1, 2)).mul_(kept_xlm)
            grad_v_XME[x, keys] += torch.bmm(kept_xlm.mul_(weights_xlm).transpose(1, 2), grad_xlE)
            grad_xlm = grad_xlm.sub_(mean_XL1[x, queries]).mul_(weights_xlm).mul_(ctx.attending.scale)
            grad_q_XLE[x, queries] = torch.bmm(grad_xlm, k_XME[x, keys])
            grad_k_XME[x, keys] += torch.bmm(grad_xlm.transpose(1, 2), q_XLE[x, queries])
        return *grads, None, None


class _Attending:
    """Attention weights before dropout, and dropout's mask for them, block by block in the same memory."""

    def __init__(self, q_XLE: Tensor, k_XME: Tensor, p: float, causal: bool) -> None:
        self.q_XLE, self.k_XME, self.p, self.causal, self.scale = q_XLE, k_XME, p, causal, q_XLE.shape[-1] ** -0.5
        self.block = CAUSAL_BLOCK if causal else q_XLE.shape[1]
        self.noise = Drawn(len(q_XLE), min(self.block, q_XLE.shape[1]) * k_XME.shape[1], PART)

    def blocks(self) -> Iterator[tuple[slice, slice, slice, Tensor, Tensor]]:
        """Which heads, queries and keys; for these their weights [x, l, m], and the mask: 1 where kept, else 0."""
        length, count = self.q_XLE.shape[1], self.k_XME.shape[1]
        room = self.q_XLE.new_empty(2, self.noise.part * min(self.block, length) * count)
        for x in self.noise.parts():
            for start in range(0, length, self.block):
                queries = slice(start, min(start + self.block, length))
                keys = slice(queries.stop if self.causal else count)
                shape = x.stop - x.start, queries.stop - start, keys.stop
                weights_xlm, kept_xlm = (part[: math.prod(shape)].view(shape) for part in room)
                torch.bmm(self.q_XLE[x, queries] * self.scale, self.k_XME[x, keys].transpose(1, 2), out=weights_xlm)
                if self.causal:
                    weights_xlm[:, :, start:] += torch.full(shape[1:2] * 2, -torch.inf, dtype=weights_xlm.dtype).triu(1)
                softmax_in_place(weights_xlm)
                yield x, queries, keys, weights_xlm, keep_mask(kept_xlm, self.p, self.noise.seeds(x, start))


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names and the initialization of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int, p: float) -> None:
        super().__init__()
        self.heads, self.p = heads, p
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BMD: Tensor, last: int | None = None) -> Tensor:
        """Attend among all M inputs, but only from the `last` L of them (None: from all): returns [B, L, D]."""
        p = self.p if self.training else 0.0
        if last is None:
            q, k, v = F.linear(x_BMD, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            width = x_BMD.shape[-1]
            q = F.linear(x_BMD[:, -last:], self.in_proj_weight[:width], self.in_proj_bias[:width])
            k, v = F.linear(x_BMD, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, -1)
        q, k, v = split_heads(q, self.heads), split_heads(k, self.heads), split_heads(v, self.heads)
        out_BLD: Tensor = self.out_proj(attend(q, k, v, p))
        return out_BLD


class EncoderLayer(nn.Module):
    """A pre-norm transformer encoder layer (ReLU) with the parameters of torch's `nn.TransformerEncoderLayer`."""

    def __init__(self, width: int, heads: int, ffn: int, p: float) -> None:
        super().__init__()
        self.p = p
        self.self_attn = SelfAttention(width, heads, p)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x_BMD: Tensor, last: int | None = None) -> Tensor:
        """[B, M, D] -> [B, M, D], or only its `last` positions, which are all that a final layer has to compute."""
        p = self.p if self.training else 0.0
        attended = self.self_attn(self.norm1(x_BMD), last)
        x_BLD = (x_BMD if last is None else x_BMD[:, -last:]) + dropout(attended, p)
        hidden = dropout(self.linear1(self.norm2(x_BLD)), p, relu=True)
        return x_BLD + dropout(self.linear2(hidden), p)


class Encoder(nn.Module):
    """Encoder layers without a final norm, keyed `layers.<i>` and initialized alike, as in `nn.TransformerEncoder`."""

    def __init__(self, layers: int, width: int, heads: int, ffn: int, p: float) -> None:
        super().__init__()
        layer = EncoderLayer(width, heads, ffn, p)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(layers))

    def forward(self, x_BMD: Tensor, last: int | None = None) -> Tensor:
        """[B, M, D] -> [B, M, D], or its `last` positions."""
        for layer in self.layers[:-1]:
            x_BMD = layer(x_BMD)
        out_BLD: Tensor = self.layers[-1](x_BMD, last)
        return out_BLD
