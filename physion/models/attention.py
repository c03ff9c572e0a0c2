"""Attention over heads, and the pre-norm encoder layer that STEVE's predictor and the rollouter are made of.

Shapes: B batch, L queries, M keys, D width, A heads, E = D / A head size.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.models.noise import dropout, keep_mask

CAUSAL_BLOCK = 128  # queries a block on the CPU: small, to skip most of the masked half, but enough for a fast GEMM


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """View [B, L, D] as [B, A, L, E]."""
    x_BLAE: Tensor = x_BLD.unflatten(-1, (heads, -1))
    return x_BLAE.transpose(1, 2)


def attend(q_BALE: Tensor, k_BAME: Tensor, v_BAME: Tensor, p: float = 0.0, causal: bool = False) -> Tensor:
    """Attend with scale E^-0.5 and dropout p on the attention weights; returns the heads merged, [B, L, D].

    torch's kernels, except for dropout on a CPU, which they know only by way of a full [L, M] map of slow noise.
    """
    if p > 0 and q_BALE.device.type == "cpu":
        out_BALE = _attend_in_blocks(q_BALE, k_BAME, v_BAME, p, causal)
    else:
        out_BALE = F.scaled_dot_product_attention(q_BALE, k_BAME, v_BAME, dropout_p=p, is_causal=causal)
    return out_BALE.transpose(1, 2).flatten(2)


def _attend_in_blocks(q_BALE: Tensor, k_BAME: Tensor, v_BAME: Tensor, p: float, causal: bool) -> Tensor:
    """Attention with dropout, block by block of queries: a causal block never touches the keys after it."""
    q_XLE = q_BALE.flatten(0, 1) * q_BALE.shape[-1] ** -0.5
    k_XEM = k_BAME.flatten(0, 1).transpose(1, 2)
    v_XME = v_BAME.flatten(0, 1) / (1 - p)
    length = q_XLE.shape[1]
    block = CAUSAL_BLOCK if causal else length
    outs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        if causal:
            future_LM = torch.full((stop - start, stop), -torch.inf, dtype=q_XLE.dtype).triu(start + 1)
            scores_XLM = torch.baddbmm(future_LM, q_XLE[:, start:stop], k_XEM[:, :, :stop])
        else:
            scores_XLM = torch.bmm(q_XLE, k_XEM)
        weights_XLM = scores_XLM.softmax(-1)
        weights_XLM = weights_XLM * keep_mask(weights_XLM.shape, p)
        outs.append(torch.bmm(weights_XLM, v_XME[:, : weights_XLM.shape[2]]))
    return torch.cat(outs, 1).view(q_BALE.shape)


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names and the initialisation of `nn.MultiheadAttention`."""

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
        """[B, M, D] -> [B, M, D], or only its `last` positions, which is all that a final layer has to compute."""
        p = self.p if self.training else 0.0
        attended = self.self_attn(self.norm1(x_BMD), last)
        x_BLD = (x_BMD if last is None else x_BMD[:, -last:]) + dropout(attended, p)
        hidden = dropout(F.relu(self.linear1(self.norm2(x_BLD))), p)
        return x_BLD + dropout(self.linear2(hidden), p)


class Encoder(nn.Module):
    """A stack of encoder layers without a final norm, keyed `layers.<i>` and starting alike as in `nn.TransformerEncoder`."""

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
