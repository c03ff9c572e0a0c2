"""The typed configuration of the whole study: one section a stage, pydantic only, so that reading it never loads torch.

A field marked `Knob` does not change results (workers, intervals) and stays out of fingerprints.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

KNOB = {"knob": True}
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen part of the configuration in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"),
                              validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


# ---------------------------------------------------------------------------------------------------- models
class DVAEModel(Section):
    """Sizes of the dVAE; the defaults are the published ones (0.68 M parameters)."""

    codes: PositiveInt = Field(4096, description="size V of the visual vocabulary")
    channels: PositiveInt = Field(64, description="width of every hidden block")


class STEVEModel(Section):
    """Sizes of STEVE; the defaults are the published ones (6.87 M trainable parameters)."""

    slots: PositiveInt = Field(6, description="slots S a frame")
    slot_size: PositiveInt = Field(192, description="slot size D, also the width of the decoder")
    slot_iterations: PositiveInt = Field(2, description="slot-attention iterations a frame")
    slot_mlp: PositiveInt = Field(384, description="hidden size of the slot MLP")
    encoder_channels: PositiveInt = Field(64, description="width of the four 5x5 convolutions")
    predictor_layers: PositiveInt = 2
    predictor_heads: PositiveInt = 4
    predictor_ffn: PositiveInt = 768
    predictor_lstm: PositiveInt = Field(384, description="hidden size of the LSTM that carries slots from frame to frame")
    decoder_layers: PositiveInt = 4
    decoder_heads: PositiveInt = 4
    dropout: Fraction = 0.1


class SlotFormerModel(Section):
    """Sizes of the rollouter; the defaults are the published ones (6.42 M parameters)."""

    burn_in: PositiveInt = Field(15, description="frames of context; the window slides, its length stays")
    stride: PositiveInt = Field(3, description="video frames between two frames of the window")
    d_model: PositiveInt = 256
    layers: PositiveInt = 8
    heads: PositiveInt = 8
    ffn: PositiveInt = 1024
    dropout: Fraction = 0.1
