"""Published SlotFormer state dicts (github.com/pairlab/SlotFormer) to ours and back.

Our parameters carry the published names, so only what is not a trained part of a model differs: constants that the
published modules store (position grid, causal masks, sine positions, slot pairs), and frozen copies of other models
(the dVAE inside STEVE; the dVAE and STEVE's decoder inside SlotFormer). Reading drops them, writing regenerates them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from physion.models.dvae import DVAE
from physion.models.readout import Readout
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE

State = dict[str, Tensor]

# What a published state dict of each model holds besides that model: prefixes of keys, and constants by their ending.
FROZEN = {"dvae": (), "steve": ("dvae.",), "slotformer": ("dvae.", "decoder."), "readout": ()}
CONSTANTS = ("encoder_pos_embedding.grid", ".self_attn_mask", "enc_t_pe", "comb_idx")
ROLLOUTER = "rollouter."


def from_published(name: str, published: Mapping[str, Tensor]) -> State:
    """Pick from a published state dict of model `name` (dvae, steve, slotformer, readout) what our model loads."""
    ours = {key: value for key, value in published.items()
            if not key.startswith(FROZEN[name]) and not key.endswith(CONSTANTS)}  # fmt: skip
    if name == "slotformer":
        ours = {key.removeprefix(ROLLOUTER): value for key, value in ours.items()}
    return ours


def frozen_part(published: Mapping[str, Tensor], part: str) -> State:
    """Take the frozen copy of another model out of a published state dict: `dvae`, or SlotFormer's `decoder`."""
    return {key.removeprefix(f"{part}."): value for key, value in published.items()
            if key.startswith(f"{part}.") and not key.endswith(CONSTANTS)}  # fmt: skip


def to_published(model: DVAE | STEVE | SlotFormer | Readout, dvae: DVAE | None = None, steve: STEVE | None = None) -> State:
    """Make the published state dict of a model, in the published order.

    STEVE takes its dVAE, SlotFormer its dVAE and STEVE, to hold their frozen copies; what is not given is left out.
    """
    ours = dict(model.state_dict())
    if isinstance(model, STEVE):
        state: State = {}
        for key, value in ours.items():
            if key == "encoder.0.0.weight":
                state |= _dvae_copy(dvae)
            if key == "encoder_pos_embedding.dense.weight":
                state["encoder_pos_embedding.grid"] = model.encoder_pos_embedding.grid.clone()
            state |= _with_mask(key, value, model)
        return state
    if isinstance(model, SlotFormer):
        state = _dvae_copy(dvae)
        if steve is not None:
            for key, value in steve.trans_decoder.state_dict(prefix="decoder.").items():
                state |= _with_mask(key, value, steve)
        state[ROLLOUTER + "enc_t_pe"] = model.positions[None].clone()
        return state | {ROLLOUTER + key: value for key, value in ours.items()}
    if isinstance(model, Readout):
        pairs = torch.tensor(list(itertools.combinations(range(model.slots), 2)))
        return {"comb_idx": pairs.flatten()} | ours
    return ours


def _dvae_copy(dvae: DVAE | None) -> State:
    return {} if dvae is None else dict(dvae.state_dict(prefix="dvae."))


def _with_mask(key: str, value: Tensor, steve: STEVE) -> State:
    """Put a block's causal mask (True where attention is forbidden) before its first parameter."""
    if not key.endswith("self_attn_layer_norm.weight"):
        return {key: value}
    tokens = steve.trans_decoder.tokens
    mask_LL = torch.ones(tokens, tokens, dtype=torch.bool, device=value.device).triu(1)
    return {key.removesuffix("_layer_norm.weight") + "_mask": mask_LL, key: value}
