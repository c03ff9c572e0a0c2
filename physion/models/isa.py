"""ISA: slots that have a color, a place and an extent, trained by drawing the frames.

Slot attention along a video as in SAVi (arXiv 2111.12594), which SlotFormer's authors use wherever scenes look simple; with a
frame of reference for each slot (invariant slot attention, arXiv 2302.04973): a slot says where it is, and sees and draws the
picture relative to that. Every slot draws all of the picture and they compete for each pixel (arXiv 1901.11390). Color, place
and extent are moments of what a slot wins of the frame, so that a readout can find the object that a question names.

Not in SlotFormer's paper for Physion, which has STEVE there. No dVAE, no tokens.

Shapes: B batch, T frames, N frames of any videos, S slots, D slot size, C = D - 7 its content, K patches, Z pixels per patch,
H W pixels; the feature map has P = h * w positions. A slot is its content, its color (times COLOR), its place y, x (times
PLACE), and the logarithm of its extent in y and x; colors and places are from -1 to 1, extents in the unit of places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from physion.config.schema import COLOR, MOMENTS, PLACE, ISAModel
from physion.models.attention import Encoder
from physion.models.slots import SlotModel, SlotOutput

SMALLEST = 0.04  # extent: about a pixel of 64
OUTSIDE = 1.5  # farthest place that is guessed
FEW = {"cpu": 1, "cuda": 32}  # frames drawn at a time: on a CPU what fits in its caches, 3 times as fast as 32
FAR = 6.0  # extents from a slot at which everything looks equally far to it
GOLDEN_ANGLE = math.pi * (3 - 5**0.5)


class Slots(NamedTuple):
    """Slots taken apart."""

    content: Tensor  # [B, S, C]
    color: Tensor  # [B, S, 3]
    place: Tensor  # [B, S, 2], y and x
    extent: Tensor  # [B, S, 2]

    def joined(self) -> Tensor:
        """[B, S, D]."""
        return torch.cat([self.content, self.color * COLOR, self.place * PLACE, self.extent.log()], -1)


def taken_apart(slots_BSD: Tensor) -> Slots:
    """The opposite of `Slots.joined`, within bounds: a predicted slot may say anything."""
    content, color, place, extent = slots_BSD.split([slots_BSD.shape[-1] - MOMENTS, 3, 2, 2], -1)
    places = (place / PLACE).clamp(-OUTSIDE, OUTSIDE)
    return Slots(content, (color / COLOR).clamp(-1, 1), places, extent.clamp(math.log(SMALLEST), 0).exp())


def grid(side: int) -> Tensor:
    """Places of the cells of a square grid, [side * side, 2]."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)


class InvariantAttention(nn.Module):
    """Slot attention in which slots also take the mean color and the mean place of what they win, and its spread as extent."""

    def __init__(self, content: int, mlp: int, iterations: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.iterations, self.eps = iterations, eps
        self.project_q = nn.Sequential(nn.LayerNorm(content), nn.Linear(content, content, bias=False))
        self.project_k = nn.Linear(content, content, bias=False)
        self.project_v = nn.Linear(content, content, bias=False)
        self.look = nn.Linear(content, 4, bias=False)  # how a slot likes places relative to it, and their squares
        self.moved = nn.Linear(2 * MOMENTS, content)
        self.gru = nn.GRUCell(content, content)
        self.mlp = nn.Sequential(nn.LayerNorm(content), nn.Linear(content, mlp), nn.ReLU(), nn.Linear(mlp, content))
        self.norm = nn.LayerNorm(content)

    def forward(self, features_BPC: Tensor, colors_BP3: Tensor, slots: Slots, grid_P2: Tensor) -> Slots:
        """Update the slots from a frame's normalized features and its colors."""
        for _ in range(self.iterations):
            apart_BSP2 = ((grid_P2 - slots.place[:, :, None]) / slots.extent[:, :, None]).clamp(-FAR, FAR)
            q_BSC = self.project_q(slots.content)
            scores_BSP = (q_BSC @ self.project_k.weight) @ features_BPC.mT * q_BSC.shape[-1] ** -0.5
            squared_BSP2 = apart_BSP2.square()
            likes_BS41 = self.look(q_BSC)[..., None]
            scores_BSP = scores_BSP + (torch.cat([apart_BSP2, squared_BSP2], -1) @ likes_BS41).squeeze(-1)
            won_BSP = (scores_BSP - squared_BSP2.sum(-1) / 2).softmax(1) + self.eps  # over slots: they compete
            won_BSP = won_BSP / won_BSP.sum(2, keepdim=True)
            place_BS2 = won_BSP @ grid_P2
            spread_BS2 = (won_BSP @ grid_P2.square() - place_BS2.square()).clamp(min=1e-4).sqrt().clamp(SMALLEST, 1)
            color_BS3 = won_BSP @ colors_BP3
            now = color_BS3, place_BS2, spread_BS2.log()
            change = color_BS3 - slots.color, (place_BS2 - slots.place) / slots.extent, (spread_BS2 / slots.extent).log()
            seen_BSC = self.project_v(won_BSP @ features_BPC) + self.moved(torch.cat(now + change, -1))
            content_BSC = self.gru(seen_BSC.flatten(0, 1), slots.content.flatten(0, 1)).view(q_BSC.shape)
            slots = Slots(content_BSC + self.mlp(content_BSC), color_BS3, place_BS2, spread_BS2)
        return slots._replace(content=self.norm(slots.content))


class Drawing(NamedTuple):
    """What slots draw at some patches, Z pixels each."""

    colors: Tensor  # [N, S, K, 3, Z], in [-1, 1] if drawn well
    claims: Tensor  # [N, S, K, Z]: the softmax over slots is each one's share of a pixel

    def mixed(self) -> Tensor:
        """The picture, [N, K, 3, Z]."""
        return (self.colors * self.claims.softmax(1)[:, :, :, None]).sum(1)


class InvariantDecoder(nn.Module):
    """Draws patches: a slot's color, and what its content adds at their place relative to the slot."""

    def __init__(self, content: int, width: int, pixels: int) -> None:
        super().__init__()
        self.of_slot, self.of_place = nn.Linear(content + 2, width), nn.Linear(6, width, bias=False)
        self.hidden = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 4 * pixels)
        self.tightness = nn.Linear(content, 1)

    def forward(self, slots: Slots, patches_K2: Tensor) -> Drawing:
        """Draw the patches at these places."""
        hidden_NSKW, loss_NSK = self._before_the_head(slots, patches_K2)
        drawn_NSK4Z = self.head(hidden_NSKW).unflatten(-1, (4, -1))
        colors_NSK3Z = drawn_NSK4Z[..., :3, :] + slots.color[:, :, None, :, None]
        return Drawing(colors_NSK3Z, drawn_NSK4Z[..., 3, :] - loss_NSK[..., None])

    def claims(self, slots: Slots, patches_K2: Tensor) -> Tensor:
        """`Drawing.claims` alone."""
        hidden_NSKW, loss_NSK = self._before_the_head(slots, patches_K2)
        last = self.head.out_features // 4
        claims_NSKZ: Tensor = F.linear(hidden_NSKW, self.head.weight[-last:], self.head.bias[-last:]) - loss_NSK[..., None]
        return claims_NSKZ

    def _before_the_head(self, slots: Slots, patches_K2: Tensor) -> tuple[Tensor, Tensor]:
        apart_NSK2 = ((patches_K2 - slots.place[:, :, None]) / slots.extent[:, :, None]).clamp(-FAR, FAR)
        near_NSK2 = apart_NSK2.clamp(-4, 4) / 2
        of_place = self.of_place(torch.cat([near_NSK2, near_NSK2.square(), near_NSK2.abs()], -1))
        x_NSKW = self.of_slot(torch.cat([slots.content, slots.extent.log()], -1))[:, :, None] + of_place
        return self.hidden(x_NSKW), F.softplus(self.tightness(slots.content)) / 2 * apart_NSK2.square().sum(-1)


class ISA(SlotModel):
    """Encoder, invariant slot attention over frames, predictor between frames, and the decoder that draws."""

    grid: Tensor
    patches: Tensor

    def __init__(self, model: ISAModel, image_size: int) -> None:
        super().__init__()
        self.model, self.image_size, self.side = model, image_size, image_size // model.patch
        c, content = model.encoder_channels, model.slot_size - MOMENTS
        self.encoder = nn.Sequential(
            nn.Conv2d(3, c, 5, stride=model.encoder_stride, padding=2), nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 5, padding=2), nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 5, padding=2), nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 5, padding=2),
        )  # fmt: skip
        self.features = nn.Sequential(
            nn.LayerNorm(c), nn.Linear(c, content), nn.ReLU(inplace=True), nn.Linear(content, content), nn.LayerNorm(content)
        )
        self.attention = InvariantAttention(content, model.slot_mlp, model.slot_iterations)
        self.first_content = nn.Parameter(torch.randn(model.slots, content) / 2)
        self.first_color = nn.Parameter(torch.zeros(model.slots, 3))
        # On a spiral that covers the picture evenly.
        number = torch.arange(model.slots)
        radius, angle = ((number + 0.5) / model.slots).sqrt() * 0.8, number * GOLDEN_ANGLE
        self.first_place = nn.Parameter(torch.stack([radius * angle.cos(), radius * angle.sin()], -1))
        self.first_extent = nn.Parameter(torch.full((model.slots, 2), math.log(0.4)))
        self.predictor = Encoder(model.predictor_layers, model.slot_size, model.predictor_heads, model.predictor_ffn, 0.0)
        self.step = nn.Linear(model.slot_size, model.slot_size)
        nn.init.zeros_(self.step.weight)
        nn.init.zeros_(self.step.bias)
        self.norm_guess = nn.LayerNorm(content)
        self.decoder = InvariantDecoder(content, model.decoder_width, model.patch**2)
        self.register_buffer("grid", grid(image_size // model.encoder_stride), persistent=False)
        self.register_buffer("patches", grid(self.side), persistent=False)

    @classmethod
    def from_sizes(cls, model: dict[str, Any], image_size: int) -> ISA:
        """Make one from the section `model` as plain data."""
        return cls(ISAModel(**model), image_size)

    def encode(self, images_BT3HW: Tensor, state: Tensor | None = None, with_masks: bool = False) -> SlotOutput:
        """See `SlotModel`; the state is the last frame's slots, [B, S, D]."""
        batch, frames = images_BT3HW.shape[:2]
        images_X3HW = images_BT3HW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features_BTPC = self.features(self.encoder(images_X3HW).movedim(1, -1).flatten(1, 2)).unflatten(0, (batch, frames))
        colors_XP3 = F.avg_pool2d(images_X3HW, self.model.encoder_stride).movedim(1, -1).flatten(1, 2)
        found = []
        with torch.autocast(images_BT3HW.device.type, enabled=False):  # places and the recurrent state stay float32
            frame_by_frame = zip(
                features_BTPC.float().unbind(1), colors_XP3.unflatten(0, (batch, frames)).unbind(1), strict=True
            )
            for features_BPC, colors_BP3 in frame_by_frame:
                state = self.attention(features_BPC, colors_BP3, self._guess(state, batch), self.grid).joined()
                found.append(state)
            slots_BTSD = torch.stack(found, 1)
            return SlotOutput(slots_BTSD, self.masks(slots_BTSD) if with_masks else None, state)

    def masks(self, slots_BTSD: Tensor) -> Tensor:
        """See `SlotModel`: each slot's share of each patch."""
        slots_XSD = slots_BTSD.flatten(0, 1)
        shares = [self.decoder.claims(few, self.patches).softmax(1).mean(-1) for few in self._few(slots_XSD)]
        return torch.cat(shares).view(*slots_BTSD.shape[:3], self.side, self.side)

    def loss(self, images_BT3HW: Tensor, chosen_K: Tensor | None = None) -> Tensor:
        """Mean squared error of the drawn frames, at all patches or at those with these numbers: a scalar."""
        patches_XK3Z = self._in_patches(images_BT3HW.flatten(0, 1))
        places_K2 = self.patches
        if chosen_K is not None:
            patches_XK3Z, places_K2 = patches_XK3Z[:, chosen_K], places_K2[chosen_K]
        slots_XSD = self.encode(images_BT3HW).slots.flatten(0, 1)
        return F.mse_loss(self.decoder(taken_apart(slots_XSD), places_K2).mixed(), patches_XK3Z)

    def decode(self, slots_NSD: Tensor) -> Tensor:
        """Draw slots as images [N, 3, H, W] in [-1, 1]."""
        drawn_NK3Z = torch.cat([self.decoder(few, self.patches).mixed() for few in self._few(slots_NSD)])
        patch, side = self.model.patch, self.side
        images = drawn_NK3Z.view(-1, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
        return images.reshape(-1, 3, self.image_size, self.image_size).clamp(-1, 1)

    def _in_patches(self, images_N3HW: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, K, 3, Z]."""
        patch, side = self.model.patch, self.side
        return images_N3HW.reshape(-1, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5).reshape(-1, side**2, 3, patch**2)

    def _few(self, slots_NSD: Tensor) -> Iterator[Slots]:
        """A few frames at a time, to be drawn whole."""
        return map(taken_apart, slots_NSD.split(FEW[slots_NSD.device.type]))

    def _guess(self, slots_BSD: Tensor | None, batch: int) -> Slots:
        """Where attention starts: a video's first slots, or a prediction from the last frame's."""
        if slots_BSD is None:
            first = Slots(self.first_content, self.first_color, self.first_place, self.first_extent.exp())
            return Slots(*(each.expand(batch, -1, -1) for each in first))
        guess = taken_apart(slots_BSD + self.step(self.predictor(slots_BSD)))
        return guess._replace(content=self.norm_guess(guess.content))
