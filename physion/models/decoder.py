"""STEVE's token decoder: an autoregressive transformer that reads a frame's slots and writes its visual tokens.

Shapes: N frames (B * T), S slots, D width (the slot size), L tokens per frame, V codes, A heads, E = D / A head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.models.attention import attend, softmax_in_place, split_heads
from physion.models.cross_entropy import CrossEntropy
from physion.models.noise import dropout

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 27}  # logits at a time in the loss: as many as fit in a CPU's caches, or fill a GPU


def linear(inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    """Make a linear layer of a block: unlike torch's own, Xavier initialized, with zero bias."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class KeysValues:
    """Keys and values of the tokens written so far, [N, A, L, E] each, filled up to `length`."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0

    def append(self, key_NA1E: Tensor, value_NA1E: Tensor) -> tuple[Tensor, Tensor]:
        """Add a token's key and value; returns all of them so far."""
        self.keys[:, :, self.length : self.length + 1] = key_NA1E
        self.values[:, :, self.length : self.length + 1] = value_NA1E
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Attention(nn.Module):
    """Multi-head attention without biases, dropout on its weights and on its output."""

    def __init__(self, width: int, heads: int, p: float, gain: float) -> None:
        super().__init__()
        self.heads, self.p = heads, p
        self.proj_q = linear(width, width, bias=False)
        self.proj_k = linear(width, width, bias=False)
        self.proj_v = linear(width, width, bias=False)
        self.proj_o = linear(width, width, bias=False, gain=gain)

    def keys_values(self, x_NMD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the inputs, [N, A, M, E] each."""
        return split_heads(self.proj_k(x_NMD), self.heads), split_heads(self.proj_v(x_NMD), self.heads)

    def forward(self, x_NLD: Tensor, keys_values: tuple[Tensor, Tensor], causal: bool = False) -> Tensor:
        """[N, L, D] -> [N, L, D]."""
        p = self.p if self.training else 0.0
        attended = attend(split_heads(self.proj_q(x_NLD), self.heads), *keys_values, p=p, causal=causal)
        return dropout(self.proj_o(attended), p)


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to the slots, FFN; pre-norm and residual, except as `first` says."""

    def __init__(self, width: int, heads: int, p: float, gain: float, first: bool) -> None:
        super().__init__()
        self.first, self.p = first, p
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, heads, p, gain)
        self.encoder_decoder_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_decoder_attn = Attention(width, heads, p, gain)
        self.ffn_layer_norm = nn.LayerNorm(width)
        widening = linear(width, 4 * width)
        nn.init.kaiming_uniform_(widening.weight, nonlinearity="relu")
        self.ffn = nn.Sequential(widening, nn.ReLU(inplace=True), linear(4 * width, width, gain=gain))

    def forward(self, x_NLD: Tensor, slots: tuple[Tensor, Tensor], past: KeysValues | None = None) -> Tensor:
        """All tokens at once, or only the next one after those in `past`; slots: their keys and values."""
        p = self.p if self.training else 0.0
        normed_NLD = self.self_attn_layer_norm(x_NLD)
        if self.first:  # as published: the residual stream starts from the normalized input
            x_NLD = normed_NLD
        tokens = self.self_attn.keys_values(normed_NLD)
        if past is not None:
            tokens = past.append(*tokens)
        x_NLD = x_NLD + self.self_attn(normed_NLD, tokens, causal=past is None)
        x_NLD = x_NLD + self.encoder_decoder_attn(self.encoder_decoder_attn_layer_norm(x_NLD), slots)
        return x_NLD + dropout(self.ffn(self.ffn_layer_norm(x_NLD)), p)


class Positions(nn.Module):
    """A learned vector for every token position."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pe = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width)))


class DecoderStack(nn.Module):
    """The blocks and the final norm."""

    def __init__(self, layers: int, width: int, heads: int, p: float) -> None:
        super().__init__()
        gain = (3 * layers) ** -0.5
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, p, gain, first=i == 0) for i in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    def keys_values(self, slots_NSD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the slots for each block's cross-attention."""
        return [cast(DecoderBlock, block).encoder_decoder_attn.keys_values(slots_NSD) for block in self.blocks]


class TokenDecoder(nn.Module):
    """Predicts token i of a frame from its slots, a BOS token and the tokens before i, in raster order."""

    def __init__(self, width: int, layers: int, heads: int, tokens: int, codes: int, p: float) -> None:
        super().__init__()
        self.codes, self.tokens, self.p = codes, tokens, p
        self.in_proj = nn.Linear(width, width)
        self.tok_emb = nn.Embedding(codes + 1, width)  # the last entry is BOS
        self.pos_emb = Positions(tokens, width)
        self.tf_dec = DecoderStack(layers, width, heads, p)
        self.head = nn.Linear(width, codes, bias=False)
        self.cross_entropy = CrossEntropy()

    def forward(self, slots_NSD: Tensor, tokens_NL: Tensor) -> Tensor:
        """Slots [N, S, D] and the true tokens int64 [N, L] -> the input of `head`, teacher forced, [N, L, D]."""
        inputs_NL = F.pad(tokens_NL[:, :-1], (1, 0), value=self.codes)
        x_NLD = dropout(self.tok_emb(inputs_NL) + self.pos_emb.pe, self.p if self.training else 0.0)
        for block, cross in zip(self.tf_dec.blocks, self.tf_dec.keys_values(self.in_proj(slots_NSD)), strict=True):
            x_NLD = block(x_NLD, cross)
        out_NLD: Tensor = self.tf_dec.layer_norm(x_NLD)
        return out_NLD

    def loss(self, slots_NSD: Tensor, tokens_NL: Tensor, worth_V: Tensor | None = None) -> Tensor:
        """Slots [N, S, D] and the true tokens int64 [N, L] -> their mean cross-entropy, with only some logits in memory at a
        time.

        worth_V: float32, the weight of a token's cross-entropy by its code; default: 1.
        """
        hidden_PD, weight_VD = self(slots_NSD, tokens_NL).flatten(0, 1), self.head.weight
        if hidden_PD.device.type != "cpu":
            on_gpu: Tensor = self.cross_entropy(hidden_PD, weight_VD, tokens_NL.flatten(), worth_V)
            return on_gpu
        device = hidden_PD.device.type
        if torch.is_autocast_enabled(device):
            hidden_PD, weight_VD = (x.to(torch.get_autocast_dtype(device)) for x in (hidden_PD, weight_VD))
        with torch.autocast(device, enabled=False):
            loss: Tensor = _TokenLoss.apply(hidden_PD, weight_VD, tokens_NL.flatten(), worth_V)
        return loss

    @torch.no_grad()
    def generate(self, slots_NSD: Tensor) -> Tensor:
        """Slots [N, S, D] -> the greedily chosen tokens int64 [N, L], each computed once: past keys are cached."""
        frames = slots_NSD.shape[0]
        cross = self.tf_dec.keys_values(self.in_proj(slots_NSD))
        room = (frames, cross[0][0].shape[1], self.tokens, cross[0][0].shape[3])
        past = [KeysValues(keys.new_empty(room), keys.new_empty(room)) for keys, _ in cross]
        tokens_NL = torch.full((frames, self.tokens + 1), self.codes, dtype=torch.int64, device=slots_NSD.device)
        for i in range(self.tokens):
            x_N1D = self.tok_emb(tokens_NL[:, i : i + 1]) + self.pos_emb.pe[:, i : i + 1]
            for block, block_cross, block_past in zip(self.tf_dec.blocks, cross, past, strict=True):
                x_N1D = block(x_N1D, block_cross, block_past)
            tokens_NL[:, i + 1] = self.head(self.tf_dec.layer_norm(x_N1D)).squeeze(1).argmax(-1)
        return tokens_NL[:, 1:]


class _TokenLoss(torch.autograd.Function):
    """Mean cross-entropy of P tokens from the input of `head`. Computes the gradients too, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, tokens_P: Tensor, worth_V: Tensor | None) -> Tensor:
        exact = torch.promote_types(hidden_PD.dtype, torch.float32)
        wanted, count, rows = any(ctx.needs_input_grad), len(tokens_P), max(1, CHUNK[hidden_PD.device.type] // len(weight_VD))
        grad_PD, grad_VD = torch.empty_like(hidden_PD), torch.zeros_like(weight_VD, dtype=exact)
        losses, weight_DV = [], weight_VD.t().contiguous()
        room_pV = hidden_PD.new_empty(min(rows, count), len(weight_VD), dtype=exact)
        for chunk in (slice(first, min(first + rows, count)) for first in range(0, count, rows)):
            hidden_pD, tokens_p1, logits_pV = hidden_PD[chunk], tokens_P[chunk, None], room_pV[: chunk.stop - chunk.start]
            if hidden_pD.dtype == exact:
                torch.mm(hidden_pD, weight_DV, out=logits_pV)
            else:
                logits_pV.copy_(hidden_pD @ weight_DV)
            highest_p, chosen_p = logits_pV.amax(-1), logits_pV.gather(1, tokens_p1).squeeze(1)
            chances_pV = softmax_in_place(logits_pV)
            losses.append(highest_p - chances_pV.amax(-1).log() - chosen_p)
            worth_p1 = None if worth_V is None else worth_V[tokens_p1]
            if worth_p1 is not None:
                losses[-1] *= worth_p1[:, 0]
            if wanted:
                grad_pV = chances_pV.scatter_add_(1, tokens_p1, -torch.ones_like(chosen_p)[:, None]).to(hidden_pD.dtype)
                if worth_p1 is not None:
                    grad_pV *= worth_p1
                grad_PD[chunk] = grad_pV @ weight_VD
                grad_VD += grad_pV.t() @ hidden_pD
        ctx.save_for_backward(grad_PD, grad_VD)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_PD, grad_VD = ctx.saved_tensors
        scale = grad / len(grad_PD)
        return (grad_PD * scale).to(grad_PD.dtype), (grad_VD * scale).to(grad_PD.dtype), None, None


def causal_masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks bool [L, L], True where attention is forbidden, that the published decoder stores in every block, by key.

    state: a published state dict with the parameters of a decoder, below any prefix.
    """
    masks = {}
    for key, value in state.items():
        if key.endswith(".self_attn_layer_norm.weight"):
            tokens = state[f"{key.partition('tf_dec.')[0]}pos_emb.pe"].shape[1]
            mask_LL = torch.ones(tokens, tokens, dtype=torch.bool, device=value.device).triu(1)
            masks[f"{key.removesuffix('_layer_norm.weight')}_mask"] = mask_LL
    return masks
