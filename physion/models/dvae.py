"""The discrete VAE: turns an image into a grid of visual tokens, one of V codes for every 4x4 pixels, and back.

Architecture and training of SlotFormer's Physion dVAE (arXiv 2210.05861; based on SLATE, arXiv 2110.11405).
Shapes: B batch, V codes, C channels, H W pixels, h = H / 4 and w = W / 4 tokens per side.

The 4096-way tensors are the expensive part. No [B, V, h, w] ever exists, in training or in tokenizing: the positions pass
through the codes in parts that stay in the caches, and a backward pass recomputes the soft codes from the seeds of their noise.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.config.schema import DVAEModel
from physion.models.noise import Drawn, log_exponential

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 25}  # elements [positions, V] at a time: as many as fit in a CPU's caches, or fill a GPU
TOKENIZED = 1 << 16  # pixels at a time through the encoder, for the same reason
GROUP = 64  # codes whose maximum is taken together


class Block(nn.Module):
    """Convolution, group norm with one group (over the whole image) and a gain and bias per channel, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.m = nn.Conv2d(inputs, outputs, size, stride, padding=1 if size == 3 else 0, bias=False)
        nn.init.kaiming_uniform_(self.m.weight, nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        return self.normalised(pointwise(self.m, x_BCHW) if self.m.kernel_size == (1, 1) else self.m(x_BCHW))

    def normalised(self, x_BCHW: Tensor) -> Tensor:
        """What follows the convolution."""
        return F.group_norm(x_BCHW, 1, self.weight, self.bias, eps=1e-5).relu_()


def pointwise(conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """A 1x1 convolution computed as a matrix product, unlike torch's on a CPU; channels last in and out."""
    return F.linear(x_BCHW.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)


def plain_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Make a 1x1 convolution with bias, Xavier initialized."""
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class DVAE(nn.Module):
    """The dVAE; images are float in [-1, 1], with sides divisible by 4."""

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
        """Images [B, 3, H, W] -> the most likely codes, int64 [B, h, w]."""
        return self.most_likely(images_B3HW)[0]

    @torch.no_grad()
    def most_likely(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] -> the most likely codes, int64 [B, h, w], and their logits, finite if all logits are."""
        few = max(1, TOKENIZED // images_B3HW[0, 0].numel()) if images_B3HW.device.type == "cpu" else len(images_B3HW)
        codes, logits = zip(*map(self._most_likely, images_B3HW.split(few)), strict=True)
        return torch.cat(codes), torch.cat(logits)

    def _most_likely(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BhwC = self._hidden(images_B3HW)
        codes, best = [], []
        for chunk_PC in hidden_BhwC.flatten(0, 2).split(max(1, CHUNK[images_B3HW.device.type] // self.model.codes)):
            logits_PV = self._logits(chunk_PC)
            codes.append(first_maximum(logits_PV))
            best.append(logits_PV.gather(1, codes[-1][:, None]).squeeze(1))
        return torch.cat(codes).view(hidden_BhwC.shape[:3]), torch.cat(best).view(hidden_BhwC.shape[:3])

    def decode(self, codes_BVhw: Tensor) -> Tensor:
        """Hard (one-hot) or soft codes [B, V, h, w] -> images [B, 3, H, W], not clipped."""
        return self._image(F.linear(codes_BVhw.movedim(1, -1), self._code_weights()))

    def decode_tokens(self, tokens_Bhw: Tensor) -> Tensor:
        """Tokens int64 [B, h, w] -> images [B, 3, H, W]: `decode` of their one-hot codes, by column lookup."""
        return self._image(F.embedding(tokens_Bhw, self._code_weights().t()))

    def loss(self, images_B3HW: Tensor, tau: float, exponential_BVhw: Tensor | None = None) -> Tensor:
        """Mean squared error of the reconstruction from Gumbel-softmax codes at temperature tau, a scalar.

        The noise is -log of standard exponentials, drawn as `physion.models.noise` describes if none are passed.
        """
        hidden_BhwC, conv = self._hidden(images_B3HW), cast(nn.Conv2d, self.encoder[-1])
        noise = Noise(hidden_BhwC[..., 0].numel(), self.model.codes, hidden_BhwC.device, exponential_BVhw)
        embedded_BhwC = through_codes(hidden_BhwC, conv.weight.flatten(1), conv.bias, self._code_weights(), tau, noise)
        return F.mse_loss(self._image(embedded_BhwC), images_B3HW)

    def loss_at_once(self, images_B3HW: Tensor, tau: Tensor) -> Tensor:
        """As `loss`, in plain operations on all codes at once, which torch.compile fuses well. tau: a scalar on the device."""
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
        """Weights [C, V] of the decoder's first convolution: each column is a code as the decoder sees it."""
        return cast(Block, self.decoder[0]).m.weight.flatten(1)

    def _image(self, embedded_BhwC: Tensor) -> Tensor:
        """Decode the output of the decoder's first convolution."""
        x_BChw = cast(Block, self.decoder[0]).normalised(embedded_BhwC.movedim(-1, 1))
        return pointwise(cast(nn.Conv2d, self.decoder[-1]), self.decoder[1:-1](x_BChw))


def first_maximum(x_PV: Tensor) -> Tensor:
    """`x_PV.argmax(-1)`, the first of several; by groups on a CPU, where torch's argmax takes 12 times as long as `amax`."""
    if x_PV.device.type != "cpu" or x_PV.shape[1] < GROUP**2 or x_PV.shape[1] % GROUP:
        return x_PV.argmax(-1)
    grouped_PGg = x_PV.unflatten(1, (-1, GROUP))
    group_P1 = grouped_PGg.amax(-1).argmax(-1, keepdim=True)
    within_Pg = grouped_PGg.gather(1, group_P1[..., None].expand(-1, 1, GROUP)).squeeze(1)
    first_P: Tensor = group_P1.squeeze(1) * GROUP + within_Pg.argmax(-1)
    return first_P


class Noise(Drawn):
    """Logarithms of exponentials [P, V] for the codes of P positions, drawn or given."""

    def __init__(self, positions: int, codes: int, device: torch.device, exponential_BVhw: Tensor | None = None) -> None:
        super().__init__(positions, codes, CHUNK[device.type])
        self.codes, self.given = codes, exponential_BVhw

    def fill(self, rows: slice, out_pV: Tensor) -> Tensor:
        """The noise of a part, the same each time."""
        if self.given is None:
            return log_exponential(out_pV, self.seeds(rows))
        return out_pV.copy_(self.given.movedim(1, -1).flatten(0, 2)[rows]).add_(torch.finfo(out_pV.dtype).tiny).log_()


def through_codes(
    hidden_BhwC: Tensor, to_logits_VC: Tensor, bias_V: Tensor | None, from_codes_CV: Tensor, tau: float, noise: Noise
) -> Tensor:
    """Hidden [B, h, w, C] -> logits -> soft samples of the codes at temperature tau -> their embeddings, [B, h, w, C].

    z = softmax((logits + Gumbel noise) / tau), without straight-through.
    """
    device = hidden_BhwC.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_BhwC.dtype
    tensors = [tensor.to(dtype) for tensor in (hidden_BhwC.flatten(0, 2), to_logits_VC, from_codes_CV)]
    with torch.autocast(device, enabled=False):
        embedded_PC: Tensor = _ThroughCodes.apply(*tensors, bias_V, tau, noise)
    return embedded_PC.view(hidden_BhwC.shape)


class _ThroughCodes(torch.autograd.Function):
    """`through_codes` for P = B * h * w positions, p at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PC: Tensor, to_logits_VC: Tensor, from_codes_CV: Tensor, bias_V: Tensor, tau: float, noise: Noise
    ) -> Tensor:
        to_codes = _ToCodes(hidden_PC, to_logits_VC, bias_V, tau, noise)
        from_codes_VC, embedded_PC = from_codes_CV.t().contiguous(), torch.empty_like(hidden_PC)
        for rows in noise.parts():
            embedded_PC[rows] = to_codes(rows).to(hidden_PC.dtype) @ from_codes_VC
        ctx.save_for_backward(hidden_PC, to_logits_VC, from_codes_CV, bias_V, embedded_PC)
        ctx.tau, ctx.noise = tau, noise
        return embedded_PC

    @staticmethod
    def backward(ctx: Any, grad_PC: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PC, to_logits_VC, from_codes_CV, bias_V, embedded_PC = ctx.saved_tensors
        to_codes = _ToCodes(hidden_PC, to_logits_VC, bias_V, ctx.tau, ctx.noise)
        grad_hidden_PC, grad_bias_V = torch.empty_like(hidden_PC), torch.zeros_like(bias_V)
        grad_to_CV, grad_from_CV = (torch.zeros_like(from_codes_CV, dtype=bias_V.dtype) for _ in range(2))
        mean_P1 = (grad_PC * embedded_PC).sum(
            -1, keepdim=True, dtype=bias_V.dtype
        )  # mean of the codes' gradients, weighted by the codes
        for rows in ctx.noise.parts():
            codes_pV, grad_pC = to_codes(rows), grad_PC[rows]
            grad_from_CV += grad_pC.t() @ codes_pV.to(grad_PC.dtype)
            grad_pV = to_codes.product(grad_pC, from_codes_CV).sub_(mean_P1[rows]).mul_(codes_pV)
            grad_bias_V += grad_pV.sum(0)
            grad_pV = grad_pV.to(grad_PC.dtype)
            grad_hidden_PC[rows] = grad_pV @ to_logits_VC
            grad_to_CV += hidden_PC[rows].t() @ grad_pV
        grads = grad_hidden_PC.div_(ctx.tau), grad_to_CV.t() / ctx.tau, grad_from_CV, grad_bias_V.div_(ctx.tau)
        return *(grad.to(hidden_PC.dtype) for grad in grads[:3]), grads[3], None, None


class _ToCodes:
    """Soft codes [p, V] of a part, in memory reused for every part: fresh memory costs more than arithmetic."""

    def __init__(self, hidden_PC: Tensor, to_logits_VC: Tensor, bias_V: Tensor, tau: float, noise: Noise) -> None:
        self.hidden_PC, self.tau, self.noise = hidden_PC, tau, noise
        self.to_logits_CV, self.bias_V = (
            (to_logits_VC / tau).t().contiguous(),
            bias_V / tau,
        )  # scales the small tensors
        self.first_pV, self.second_pV = (
            bias_V.new_empty(noise.part, noise.codes, dtype=x) for x in (bias_V.dtype, torch.float32)
        )

    def __call__(self, rows: slice) -> Tensor:
        noise_pV = self.noise.fill(rows, self.second_pV[: rows.stop - rows.start])
        logits_pV = self.product(self.hidden_PC[rows], self.to_logits_CV, self.bias_V).sub_(noise_pV, alpha=1 / self.tau)
        return torch.softmax(logits_pV, -1, out=noise_pV if noise_pV.dtype == logits_pV.dtype else None)

    def product(self, left_pC: Tensor, right_CV: Tensor, bias_V: Tensor | None = None) -> Tensor:
        """The matrix product in the first buffer, which `__call__` leaves free, with the precision of a bias."""
        out_pV = self.first_pV[: len(left_pC)]
        if left_pC.dtype != out_pV.dtype:
            out_pV.copy_(left_pC @ right_CV)
            return out_pV if bias_V is None else out_pV.add_(bias_V)
        return torch.mm(left_pC, right_CV, out=out_pV) if bias_V is None else torch.addmm(bias_V, left_pC, right_CV, out=out_pV)


def gumbel_tau(step: int, total_steps: int, start: float = 1.0, end: float = 0.1, fraction: float = 0.15) -> float:
    """Temperature of training step `step` (0 first): half a cosine from start to end over a fraction of the run."""
    progress = min(step / (fraction * total_steps), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
