"""Published SlotFormer state dicts (github.com/pairlab/SlotFormer) to ours and back.

Our parameters carry the published names, so only what is not a trained part of a model differs: constants that the
published modules store (position grid, causal masks, sine positions, slot pairs), and frozen copies of other models
(the dVAE inside STEVE; the dVAE and STEVE's decoder inside SlotFormer). Reading checks them and takes them apart, writing
puts them back.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from physion.errors import DataError
from physion.models.kinds import MODELS
from physion.models.readout import Readout
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE
from physion.models.weights import FACTS, build_model, misfit

State = dict[str, Tensor]

CONSTANTS = ("encoder_pos_embedding.grid", ".self_attn_mask", "enc_t_pe", "comb_idx")  # stored beside the parameters
ROLLOUTER = "rollouter."


# --------------------------------------------------------------------------------------------------- state dicts
def from_published(name: str, published: Mapping[str, Tensor]) -> State:
    """Pick from a published state dict of model `name` (dvae, steve, slotformer, readout) what our model loads."""
    ours = {key: value for key, value in published.items()
            if not key.startswith(_frozen(name)) and not key.endswith(CONSTANTS)}  # fmt: skip
    if name == "slotformer":
        ours = {key.removeprefix(ROLLOUTER): value for key, value in ours.items()}
    return ours


def frozen_copies(name: str, published: Mapping[str, Tensor]) -> State:
    """Take the frozen copies of other models out of a published state dict of model `name`, keys as they are."""
    return {key: value for key, value in published.items() if key.startswith(_frozen(name)) and not key.endswith(CONSTANTS)}


def to_published(model: nn.Module, frozen: Mapping[str, Tensor] | None = None) -> State:
    """Make the published state dict of a model, in the published order, with these frozen copies in it."""
    ours, frozen = dict(model.state_dict()), frozen or {}
    copies = {prefix: {k: v for k, v in frozen.items() if k.startswith(prefix)} for prefix in ("dvae.", "decoder.")}
    if isinstance(model, STEVE):
        state: State = {}
        for key, value in ours.items():
            if key == "encoder.0.0.weight":
                state |= copies["dvae."]
            if key == "encoder_pos_embedding.dense.weight":
                state["encoder_pos_embedding.grid"] = model.encoder_pos_embedding.grid.clone()
            state |= _with_mask(key, value, model.trans_decoder.tokens)
        return state
    if isinstance(model, SlotFormer):
        state = copies["dvae."]
        for key, value in copies["decoder."].items():
            state |= _with_mask(key, value, frozen["decoder.pos_emb.pe"].shape[1])
        state[ROLLOUTER + "enc_t_pe"] = model.positions[None].clone()
        return state | {ROLLOUTER + key: value for key, value in ours.items()}
    if isinstance(model, Readout):
        pairs = torch.tensor(list(itertools.combinations(range(model.slots), 2)))
        return {"comb_idx": pairs.flatten()} | ours
    return ours


def copies_for(name: str, models: Mapping[str, nn.Module]) -> State:
    """The frozen copies that a published state dict of a model holds, from the models, by kind, that it was trained with."""
    state: State = {}
    for prefix, other in MODELS[name].frozen.items():
        part = cast(STEVE, models[other]).trans_decoder if prefix == "decoder." else models[other]
        state |= part.state_dict(prefix=prefix)
    return state


def save_copies(path: Path, frozen: Mapping[str, Tensor]) -> None:
    """Write frozen copies as a safetensors file, which sorts its keys, with their published order beside them."""
    save_file({key: value.contiguous() for key, value in frozen.items()}, path, metadata={FACTS: json.dumps(list(frozen))})


def load_copies(path: Path) -> State:
    """The frozen copies of a file, in their published order."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in json.loads(file.metadata()[FACTS])}


def digests(name: str, state: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the parts by which weights of several models can be told to belong together: `dvae`, STEVE's `decoder`."""
    shared = dict(frozen)
    if name == "dvae":
        shared |= {f"dvae.{key}": value for key, value in state.items()}
    if name == "steve":
        shared |= {key.removeprefix("trans_"): v for key, v in state.items() if key.startswith("trans_decoder.")}
    found = {}
    for part in ("dvae", "decoder"):
        digest = hashlib.sha256()
        keys = sorted(key for key in shared if key.startswith(f"{part}."))
        for key in keys:
            digest.update(f"{key} {list(shared[key].shape)} ".encode() + shared[key].float().cpu().numpy().tobytes())
        if keys:
            found[part] = digest.hexdigest()
    return found


def _frozen(name: str) -> tuple[str, ...]:
    """Prefixes of the frozen copies in a published state dict."""
    return tuple(MODELS[name].frozen)


def _with_mask(key: str, value: Tensor, tokens: int) -> State:
    """Put a block's causal mask (True where attention is forbidden) before its first parameter."""
    if not key.endswith("self_attn_layer_norm.weight"):
        return {key: value}
    mask_LL = torch.ones(tokens, tokens, dtype=torch.bool, device=value.device).triu(1)
    return {key.removesuffix("_layer_norm.weight") + "_mask": mask_LL, key: value}


# -------------------------------------------------------------------------------------------------------- files
def read_published(path: Path) -> State:
    """The state dict of a published .pth file: the whole file, or its `state_dict` entry. No code of the file is run.

    Raises DataError when the file is missing, truncated, no state dict, or holds anything but tensors and plain containers.
    """
    try:
        if zipfile.is_zipfile(path) and (broken := zipfile.ZipFile(path).testzip()):  # torch does not look at the checksums
            raise DataError(f"{path} is damaged: the checksum of its entry {broken} is wrong")
        with warnings.catch_warnings(action="ignore"):  # of torch about its own old formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"no file at {path}") from error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, UnpicklingError) as error:
        if wanted := re.search(r"nsupported .*?(?:GLOBAL|class) ([\w.]+)", str(error)):
            raise DataError(
                f"{path} is refused: it asks for {wanted[1]}, and unpickling anything but tensors and plain containers can "
                "run any code. If you trust its origin, load it there and save the model's state_dict() alone"
            ) from error
        reason = str(error).split("\n")[0].split(". ")[0].removeprefix("Weights only load failed")
        raise DataError(f"{path} is truncated or no .pth file{f' ({reason})' if ' ' in reason else ''}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path} holds no state dict (names of parameters with their tensors)")
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{path} is of no use: {key} holds values that are not finite")
    return {str(key): value.float() if value.is_floating_point() else value for key, value in state.items()}


def kind_of(published: Mapping[str, Tensor]) -> str | None:
    """Which model a published state dict is of, by keys that only that one has; None when it is none of them."""
    marked = (kind for kind in MODELS.values() if kind.mark and any(key.startswith(kind.mark) for key in published))
    return next((kind.name for kind in marked), None)


def take_apart(published: State, name: str, sizes: Mapping[str, dict[str, Any]], file: str) -> tuple[nn.Module, State]:
    """Model `name` from a published state dict, and the frozen copies in it. `sizes`: what `build_model` needs, by model.

    A dVAE is also taken from inside STEVE or SlotFormer. Raises DataError naming `file` when it is of another model, or when
    a key is missing, extra or of another shape, or when a stored constant is not what this model computes.
    """
    found = kind_of(published)
    inside = {k.removeprefix("dvae."): v for k, v in published.items() if k.startswith("dvae.")}
    if name == "dvae" and inside:
        found, published = "dvae", inside
    if found != name:
        if found is None:
            raise DataError(f"{file} is of no known model: no key of it is a dVAE's, STEVE's, SlotFormer's or a readout's")
        raise DataError(f"{file} holds {MODELS[found].title}, not {MODELS[name].title}: import it --as {found}")
    model, frozen = build_model(name, sizes[name]), frozen_copies(name, published)
    present = tuple(prefix for prefix in _frozen(name) if any(key.startswith(prefix) for key in frozen))
    copies = copies_for(name, {other: build_model(other, sizes[other]) for other in set(MODELS[name].frozen.values())})
    expected = to_published(model, {key: value for key, value in copies.items() if key.startswith(present)})
    if problem := misfit(expected, published):
        raise DataError(f"{file} does not fit the configured {name} model: {problem}. Sizes come from --preset and --set")
    for key, value in expected.items():
        if key.endswith(CONSTANTS) and not torch.allclose(value.float(), published[key].float(), atol=1e-5, rtol=0):
            raise DataError(f"{file}: the stored constant {key} is not what this {name} model computes")
    model.load_state_dict(from_published(name, published))
    return model.eval(), frozen
