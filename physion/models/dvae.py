"""The discrete VAE: an image becomes a grid of visual tokens, one of V codes for every 4x4 pixels, and comes back.

Architecture and training of SlotFormer's Physion dVAE (arXiv 2210.05861; after SLATE, arXiv 2110.11405).
Shapes: B batch, V codes, C channels, H W pixels, h = H / 4 and w = W / 4 tokens a side.

The 4096-way tensors are what costs: they are laid out with the codes last, so that the 1x1 convolutions around them are
plain matrix products, and the training step holds as few of them as it can.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.config.schema import DVAEModel
from physion.models.noise import standard_exponential

TOKENIZE_CHUNK = 4096  # positions whose V logits exist at a time while tokenizing


class Block(nn.Module):
    """Convolution, group norm of one group (over the whole image) with a gain and bias a channel, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.m = nn.Conv2d(inputs, outputs, size, stride, padding=1 if size == 3 else 0, bias=False)
        nn.init.kaiming_uniform_(self.m.weight, nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return self.normalised(self.m(x_BCHW))

    def normalised(self, x_BCHW: Tensor) -> Tensor:
        """Do what follows the convolution."""
        return F.relu(F.group_norm(x_BCHW, 1, self.weight, self.bias, eps=1e-5))


def plain_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Make a 1x1 convolution with bias, Xavier initialised."""
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class DVAE(nn.Module):
    """The dVAE; images are float in [-1, 1] and of any size that 4 divides."""

    def __init__(self, model: DVAEModel) -> None:
        super().__init__()
        self.model = model
        c, v = model.channels, model.codes
        to_logits = plain_conv(c, v)
        with torch.no_grad():
            to_logits.weight.mul_(model.initial_logit_scale)
        self.encoder = nn.Sequential(Block(3, c, 4, stride=4), *(Block(c, c) for _ in range(6)), to_logits)
        self.decoder = nn.Sequential(
            Block(v, c), Block(c, c, 3), Block(c, c), Block(c, c), Block(c, 4 * c), nn.PixelShuffle(2),
            Block(c, c, 3), Block(c, c), Block(c, c), Block(c, 4 * c), nn.PixelShuffle(2), plain_conv(c, 3),
        )  # fmt: skip

    @classmethod
    def from_sizes(cls, model: dict[str, Any]) -> DVAE:
        """Make one from the section `model` as plain data."""
        return cls(DVAEModel(**model))

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, V, h, w]."""
        return self._logits(self._hidden(images_B3HW)).movedim(-1, 1)

    @torch.no_grad()
    def tokenize(self, images_B3HW: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> the most likely codes, int64 [B, h, w], a few thousand positions' logits at a time."""
        hidden_BhwC = self._hidden(images_B3HW)
        chunks = hidden_BhwC.flatten(0, 2).split(TOKENIZE_CHUNK)
        return torch.cat([self._logits(chunk).argmax(-1) for chunk in chunks]).view(hidden_BhwC.shape[:3])

    def decode(self, codes_BVhw: Tensor) -> Tensor:
        """Hard (one-hot) or soft codes [B, V, h, w] -> images [B, 3, H, W], not clipped."""
        return self._image(F.linear(codes_BVhw.movedim(1, -1), self._code_weights()))

    def decode_tokens(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens int64 [B, h, w] -> images [B, 3, H, W]: `decode` of their one-hot codes, by looking columns up."""
        return self._image(F.embedding(tokens_Bhw, self._code_weights().t()))

    def loss(self, images_B3HW: Tensor, tau: float, exponential_BVhw: Tensor | None = None) -> Tensor:
        """Mean squared error of the reconstruction from Gumbel-softmax codes at temperature tau, a scalar.

        The noise is -log of standard exponentials, drawn from torch's global generator if none are passed.
        """
        logits_BhwV = self._logits(self._hidden(images_B3HW))
        exponential_BhwV = None if exponential_BVhw is None else exponential_BVhw.movedim(1, -1)
        codes_BhwV = gumbel_softmax(logits_BhwV, tau, exponential_BhwV)
        return F.mse_loss(self._image(F.linear(codes_BhwV, self._code_weights())), images_B3HW)

    def loss_at_once(self, images_B3HW: Tensor, tau: Tensor) -> Tensor:
        """As `loss`, in plain operations on all codes at once: what torch.compile fuses well. tau: a scalar on the device."""
        logits_BhwV = self._logits(self._hidden(images_B3HW)).float()
        gumbel_BhwV = -(torch.empty_like(logits_BhwV).exponential_() + torch.finfo(torch.float32).tiny).log()
        codes_BhwV = ((logits_BhwV + gumbel_BhwV) / tau).softmax(-1)
        return F.mse_loss(self._image(F.linear(codes_BhwV, self._code_weights())), images_B3HW)

    def _hidden(self, images_B3HW: Tensor) -> Tensor:
        hidden_BChw: Tensor = self.encoder[:-1](images_B3HW.contiguous(memory_format=torch.channels_last))
        return hidden_BChw.movedim(1, -1)

    def _logits(self, hidden_BhwC: Tensor) -> Tensor:
        conv = cast(nn.Conv2d, self.encoder[-1])
        return F.linear(hidden_BhwC, conv.weight.flatten(1), conv.bias)

    def _code_weights(self) -> Tensor:
        """Weights [C, V] of the decoder's first convolution: a column is what a code looks like to the decoder."""
        return cast(Block, self.decoder[0]).m.weight.flatten(1)

    def _image(self, embedded_BhwC: Tensor) -> Tensor:
        """Decode what the first convolution of the decoder made of the codes."""
        x_BChw = cast(Block, self.decoder[0]).normalised(embedded_BhwC.movedim(-1, 1))
        images_B3HW: Tensor = self.decoder[1:](x_BChw)
        return images_B3HW


def gumbel_softmax(logits: Tensor, tau: float, exponential: Tensor | None = None) -> Tensor:
    """Soft samples of the categorical distributions with these logits (last dimension), without straight-through.

    exponential: standard exponentials of the logits' shape; drawn from torch's global generator if None.
    """
    if exponential is None:
        exponential = standard_exponential(logits.shape, logits.device)
    gumbel = (exponential + torch.finfo(torch.float32).tiny).log_().neg_()
    return gumbel.add_(logits).div_(tau).softmax(-1)


def gumbel_tau(step: int, total_steps: int, start: float = 1.0, end: float = 0.1, fraction: float = 0.15) -> float:
    """Temperature of training step `step` (0 first): half a cosine from start to end over a fraction of the run."""
    progress = min(step / (fraction * total_steps), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
