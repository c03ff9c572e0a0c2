"""STEVE (arXiv 2205.14065): slots that follow the objects of a video, learned by predicting its visual tokens.

Architecture of SlotFormer's published Physion STEVE; the frozen dVAE is not inside, its tokens are passed in.
Shapes: B batch, T frames, S slots, D slot size, N tokens per frame, V codes, C channels, H W pixels; the feature map and
the masks have h = H / 2 and w = W / 2 (or a quarter: `encoder_stride`), P = h * w positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from physion.config.schema import STEVEModel
from physion.models.attention import Encoder
from physion.models.cross_entropy import to_autocast
from physion.models.decoder import TokenDecoder, causal_masks
from physion.models.dvae import DVAE
from physion.models.slot_attention import SlotAttention
from physion.models.slots import SlotModel, SlotOutput

TOGETHER = 1 << 16  # pixels at a time through the encoder


class VideoState(NamedTuple):
    """The state that carries a video's slots from one frame to the next."""

    slots: Tensor  # [B, S, D] of the last frame
    hidden: Tensor  # [B * S, E], as `cell` the predictor's LSTM state: zero before a video's second frame
    cell: Tensor


class GridPositions(nn.Module):
    """A linear map of each position's (y, x, 1 - y, 1 - x), from 0 to 1, added to the features there."""

    grid: Tensor

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(4, channels)
        axis = torch.linspace(0, 1, side)
        yx = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
        self.register_buffer("grid", torch.cat([yx, 1 - yx], -1)[None], persistent=False)

    def forward(self, features_FhwC: Tensor) -> Tensor:
        """[F, h, w, C] -> [F, h, w, C]."""
        out_FhwC: Tensor = features_FhwC + self.dense(self.grid)
        return out_FhwC


class LSTM(nn.Module):
    """One step at a time of a one-layer LSTM with the parameters of `nn.LSTM`."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * hidden, inputs).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * hidden, hidden).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.empty(4 * hidden).uniform_(-bound, bound))
        self.bias_hh_l0 = nn.Parameter(torch.empty(4 * hidden).uniform_(-bound, bound))

    def forward(self, x_XD: Tensor, hidden_XE: Tensor, cell_XE: Tensor) -> tuple[Tensor, Tensor]:
        """Advance the hidden state and the cell, [X, E] each, by an input [X, D]."""
        weights = self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0
        return torch.lstm_cell(x_XD, (hidden_XE, cell_XE), *weights)


class Predictor(nn.Module):
    """Predicts a frame's slots from the previous ones: a transformer across the slots, then an LSTM along each slot's time."""

    def __init__(self, model: STEVEModel) -> None:
        super().__init__()
        self.base_predictor = nn.ModuleDict({
            "transformer_encoder": Encoder(
                model.predictor_layers, model.slot_size, model.predictor_heads, model.predictor_ffn, model.dropout
            )
        })  # fmt: skip
        self.rnn = LSTM(model.slot_size, model.predictor_lstm)
        self.out_projector = nn.Linear(model.predictor_lstm, model.slot_size)
        # Normalized, because a plain sum grows with every frame beyond the length of the training clips.
        self.norm_guess = nn.LayerNorm(model.slot_size) if model.residual_guess else None

    def forward(self, state: VideoState) -> VideoState:
        """Advance a frame's slots [B, S, D] and the LSTM state; returns the guess and the new state."""
        x_BSD = self.base_predictor["transformer_encoder"](state.slots)
        with torch.autocast(x_BSD.device.type, enabled=False):  # the recurrent state stays float32
            hidden_XE, cell_XE = self.rnn(x_BSD.flatten(0, 1), state.hidden, state.cell)
        guess_BSD = self.out_projector(hidden_XE).to(x_BSD.dtype).view(x_BSD.shape)
        if self.norm_guess is not None:
            guess_BSD = self.norm_guess(state.slots + guess_BSD)
        return VideoState(guess_BSD, hidden_XE, cell_XE)


class STEVE(SlotModel):
    """Encoder, slot attention over frames, predictor between frames, and the autoregressive token decoder."""

    def __init__(self, model: STEVEModel, image_size: int, codes: int) -> None:
        super().__init__()
        self.model, self.image_size, self.codes = model, image_size, codes
        c, d = model.encoder_channels, model.slot_size
        self.init_latents = nn.Parameter(torch.randn(1, model.slots, d))
        self.slot_attention = SlotAttention(d, model.slot_mlp, model.slot_iterations)
        self.encoder = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, c, 5, stride=model.encoder_stride, padding=2), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(c, c, 5, padding=2), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(c, c, 5, padding=2), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(c, c, 5, padding=2)),
        )
        self.encoder_pos_embedding = GridPositions(image_size // model.encoder_stride, c)
        self.encoder_out_layer = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, d), nn.ReLU(inplace=True), nn.Linear(d, d))
        self.trans_decoder = TokenDecoder(
            d, model.decoder_layers, model.decoder_heads, (image_size // 4) ** 2, codes, model.dropout
        )
        self.predictor = Predictor(model)

    @classmethod
    def from_sizes(cls, model: dict[str, Any], image_size: int, codes: int) -> STEVE:
        """Make one from the section `model` as plain data."""
        return cls(STEVEModel(**model), image_size, codes)

    def encode(self, images_BT3HW: Tensor, state: VideoState | None = None, with_masks: bool = False) -> SlotOutput:
        """Find the slots of successive frames, float in [-1, 1]: the first of a video, or those that follow `state`.

        Going chunk by chunk while carrying the state gives the slots of the whole video at once. Returns slots [B, T, S, D],
        with_masks the masks [B, T, S, h, w] (each slot's share of every position), and the state after the last frame.
        """
        videos, frames = images_BT3HW.shape[:2]
        # Without gradients, which keep everything anyway, reused memory is faster on a CPU than fresh memory.
        pixels, at_once = images_BT3HW[:, 0, 0].numel(), torch.is_grad_enabled() or images_BT3HW.device.type != "cpu"
        few = frames if at_once else max(1, TOGETHER // pixels)
        slots, masks = [], []
        for features_BTPD in map(self._features, images_BT3HW.split(few, 1)):
            for features_BPD in features_BTPD.unbind(1):
                state = self._first(videos) if state is None else self.predictor(state)
                slots_BSD, masks_BSP = self.slot_attention(features_BPD, state.slots)
                state = state._replace(slots=slots_BSD)
                slots.append(slots_BSD)
                if with_masks:
                    masks.append(masks_BSP)
        assert state is not None, "a chunk has at least one frame"
        side = self.image_size // self.model.encoder_stride
        masks_BTShw = torch.stack(masks, 1).unflatten(-1, (side, side)) if with_masks else None
        return SlotOutput(torch.stack(slots, 1), masks_BTShw, state)

    def logits(self, slots_BTSD: Tensor, tokens_BTN: Tensor) -> Tensor:
        """Slots and the true tokens int64 -> teacher-forced logits [B, T, N, V]; all frames in parallel."""
        hidden_XND = self.trans_decoder(slots_BTSD.flatten(0, 1), tokens_BTN.flatten(0, 1))
        logits_XNV: Tensor = self.trans_decoder.head(hidden_XND)
        return logits_XNV.view(*tokens_BTN.shape, self.codes)

    def loss(self, slots_BTSD: Tensor, tokens_BTN: Tensor, worth_V: Tensor | None = None) -> Tensor:
        """Cross-entropy of all tokens of all frames, mean: a scalar. worth_V: a weight for the tokens of each code."""
        return self.trans_decoder.loss(slots_BTSD.flatten(0, 1), tokens_BTN.flatten(0, 1), worth_V)

    def generate(self, slots_NSD: Tensor) -> Tensor:
        """Slots of any frames [N, S, D] -> their greedily decoded tokens int64 [N, tokens per frame]."""
        return self.trans_decoder.generate(slots_NSD)

    def published_constants(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the published modules store besides their parameters: the position grid, and the decoder's masks."""
        return {"encoder_pos_embedding.grid": self.encoder_pos_embedding.grid.clone()} | causal_masks(state)

    def _features(self, images_BT3HW: Tensor) -> Tensor:
        """Features [B, T, P, D] of all frames at once, normalized for slot attention."""
        images_F3HW = images_BT3HW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features_FhwD = self._project(self.encoder(images_F3HW).movedim(1, -1))
        batch, frames = images_BT3HW.shape[:2]
        return features_FhwD.reshape(batch, frames, -1, self.model.slot_size)

    def _project(self, features_FhwC: Tensor) -> Tensor:
        """Add positions to features and project them to the width of slots."""
        features_FhwD = self.encoder_out_layer(self.encoder_pos_embedding(features_FhwC))
        return to_autocast(self.slot_attention.norm_inputs(features_FhwD))

    def _first(self, batch: int) -> VideoState:
        """Start a video: the learned slots and an LSTM that has seen nothing."""
        slots_BSD = self.init_latents.expand(batch, -1, -1)
        zeros_XE = slots_BSD.new_zeros(batch * self.model.slots, self.model.predictor_lstm)
        return VideoState(slots_BSD, zeros_XE, zeros_XE)


class STEVEWithDVAE(SlotModel):
    """STEVE with the dVAE whose tokens it predicts, so that it can draw what it sees."""

    def __init__(self, steve: STEVE, dvae: DVAE) -> None:
        super().__init__()
        self.steve, self.dvae = steve, dvae

    def encode(self, images_BT3HW: Tensor, state: VideoState | None = None, with_masks: bool = False) -> SlotOutput:
        """As `STEVE.encode`."""
        return self.steve.encode(images_BT3HW, state, with_masks)

    def decode(self, slots_NSD: Tensor) -> Tensor:
        """Slots -> their most likely tokens, one after another -> images [N, 3, H, W]."""
        tokens_NL = self.steve.generate(slots_NSD)
        side = int(tokens_NL.shape[1] ** 0.5)
        return self.dvae.decode_tokens(tokens_NL.view(-1, side, side))

    def reconstruct(self, images_N3HW: Tensor) -> Tensor:
        """Images -> their tokens -> images."""
        return self.dvae.decode_tokens(self.dvae.tokenize(images_N3HW))
