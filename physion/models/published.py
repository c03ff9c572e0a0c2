"""Converts published SlotFormer state dicts (github.com/pairlab/SlotFormer) to ours and back.

Our parameters have the published names, so only what is not a trained part of a model differs: constants that the published
modules store (position grid, causal masks, sine positions, slot pairs), and frozen copies of other models (the dVAE inside
STEVE; the dVAE and STEVE's decoder inside SlotFormer). Reading checks them and takes them out, writing puts them back. The
table of kinds says which kind has what.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from physion.errors import ConfigError, DataError
from physion.models.kinds import MODELS, Copy, Published, shared_parts
from physion.models.weights import FACTS, build_model, misfit, read_tensors
from physion.store.keys import one_line

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model")  # entries of a file under which trainers keep it
SHOWN_ENTRIES = 8
MOST_INFLATED = 8  # size limit in memory, as a multiple of the .pth file's size


# --------------------------------------------------------------------------------------------------- state dicts
def from_published(name: str, published: Mapping[str, Tensor]) -> State:
    """Select from a published state dict of model `name` what our model loads."""
    form = form_of(name)
    return {
        key.removeprefix(form.prefix): value
        for key, value in published.items()
        if _first(key) not in form.frozen and not key.endswith(form.constants)
    }


def frozen_copies(name: str, published: Mapping[str, Tensor]) -> State:
    """Take the frozen copies of other models out of a published state dict of model `name`, with unchanged keys."""
    form = form_of(name)
    return {key: value for key, value in published.items() if _first(key) in form.frozen and not key.endswith(form.constants)}


def to_published(name: str, model: nn.Module, frozen: Mapping[str, Tensor] | None = None) -> State:
    """Make the published state dict of a model `name`, in the published order, including these frozen copies."""
    form = form_of(name)
    ours = [(f"{form.prefix}{key}", value) for key, value in model.state_dict().items()]
    copies = [(key, value) for part in form.frozen for key, value in (frozen or {}).items() if _first(key) == part]
    at = next(number for number, (key, _) in enumerate(ours) if key.startswith(form.frozen_before))
    parameters = dict([*ours[:at], *copies, *ours[at:]])
    constants = cast(Any, model).published_constants(parameters) if form.constants else {}
    state: State = {}
    for key, value in parameters.items():
        # torch lists what a module holds itself before what its children hold.
        state |= {c: constants.pop(c) for c in list(constants) if key.startswith(c[: c.rfind(".") + 1])}
        state[key] = value
    return state


def copies_for(name: str, models: Mapping[str, nn.Module]) -> State:
    """The frozen copies in a published state dict of a model, taken from the models, by kind, that it was trained with."""
    state: State = {}
    for part, copy in MODELS[name].frozen().items():
        if copy.kind in models:
            state |= models[copy.kind].get_submodule(copy.module).state_dict(prefix=f"{part}.")
    return state


def form_of(name: str) -> Published:
    """How the published state dict of a kind of model differs from ours. Raises ConfigError if there is none."""
    form = MODELS[name].published
    if form is None:
        known = ", ".join(kind.name for kind in MODELS.values() if kind.published)
        raise ConfigError(f"{name} has no published form for the authors' code; only {known} have one. `physion weights push` "
                          "shares it between stores")  # fmt: skip
    return form


def save_copies(path: Path, frozen: Mapping[str, Tensor]) -> None:
    """Write frozen copies as a safetensors file, which sorts its keys, together with their published order."""
    save_file({key: value.contiguous() for key, value in frozen.items()}, path, metadata={FACTS: json.dumps(list(frozen))})


def load_copies(path: Path) -> State:
    """The frozen copies in a file, in their published order. Raises DataError if it is not such a file."""
    order, state = read_tensors(path, f"frozen copies {path}")
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(state):
        raise DataError(f"{path} holds no frozen copies: its metadata does not list its tensors")
    return {key: state[key] for key in order}


def digests(name: str, state: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the parts that show whether weights of several models belong together: `dvae`, STEVE's `decoder`."""
    shared = dict(frozen)
    for part, copy in shared_parts().items():
        if copy.kind == name:
            inside = f"{copy.module}." if copy.module else ""
            shared |= {f"{part}.{key.removeprefix(inside)}": v for key, v in state.items() if key.startswith(inside)}
    found = {}
    for part in shared_parts():
        digest = hashlib.sha256()
        keys = sorted(key for key in shared if _first(key) == part)
        for key in keys:
            digest.update(f"{key} {list(shared[key].shape)} ".encode() + shared[key].float().cpu().numpy().tobytes())
        if keys:
            found[part] = digest.hexdigest()
    return found


def _first(key: str) -> str:
    """The first name of a key: `dvae` of `dvae.encoder.0.bias`."""
    return key.partition(".")[0]


# -------------------------------------------------------------------------------------------------------- files
def read_published(path: Path) -> State:
    """The state dict of a published .pth file: the whole file, or its `state_dict` or `model` entry.

    No code in the file is run. The `module.` that DataParallel puts before every name is removed.

    Raises DataError if the file is missing, truncated, not a state dict, or holds anything but tensors and plain containers.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as entries:
                if sum(entry.file_size for entry in entries.infolist()) > MOST_INFLATED * path.stat().st_size:
                    raise DataError(f"{path} is refused: it is compressed, and would take far more memory than its size")
                if broken := entries.testzip():  # torch does not check the checksums
                    raise DataError(f"{path} is damaged: the checksum of its entry {broken} is wrong")
        with warnings.catch_warnings(action="ignore"):  # torch's, about its own old formats
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"no file at {path}") from error
    except DataError:
        raise
    except Exception as error:  # whatever torch and zipfile raise for bytes they cannot read
        if wanted := re.search(r"nsupported .*?(?:GLOBAL|class) ([\w.]+)", str(error)):
            raise DataError(
                f"{path} is refused: it asks for {wanted[1]}, and unpickling anything but tensors and plain containers can "
                "run any code. If you trust its origin, load it there and save the model's state_dict() alone"
            ) from error
        reason = str(error).split("\n")[0].split(". ")[0].removeprefix("Weights only load failed")
        raise DataError(f"{path} is truncated or not a .pth file{f' ({reason})' if ' ' in reason else ''}") from error
    state = content
    for _ in WRAPPERS:  # one may contain the other
        inside = [state[key] for key in WRAPPERS if isinstance(state.get(key), dict)] if isinstance(state, dict) else []
        state = inside[0] if inside else state
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path} holds no state dict (names of parameters with their tensors), bare or under "
                        f"{' or '.join(WRAPPERS)}; found: {_found(content)}")  # fmt: skip
    while all(str(key).startswith("module.") for key in state):
        state = {str(key).removeprefix("module."): value for key, value in state.items()}
    for key, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.nbytes > _stored(value):
            raise DataError(f"{path} is refused: it does not hold all the values of {key} {list(value.shape)}")
    if sum(value.nbytes for value in state.values()) > MOST_INFLATED * path.stat().st_size:
        raise DataError(f"{path} is refused: its tensors take far more memory than its size")
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{path} is unusable: {key} holds values that are not finite")
    return {str(key): value.float() if value.is_floating_point() else value for key, value in state.items()}


def _found(content: Any) -> str:
    """What a file contains, as one line of an error."""
    if not isinstance(content, dict):
        return type(content).__name__
    entries = [f"{one_line(str(key))[:60]} ({type(value).__name__})" for key, value in content.items()]
    more = f" and {len(entries) - SHOWN_ENTRIES} more" if len(entries) > SHOWN_ENTRIES else ""
    return (", ".join(entries[:SHOWN_ENTRIES]) or "nothing") + more


def _stored(value: Tensor) -> int:
    """Bytes that a tensor's storage holds from the tensor's start on."""
    return value.untyped_storage().nbytes() - int(value.storage_offset()) * value.element_size()


def kind_of(published: Mapping[str, Tensor]) -> str | None:
    """The kind of model of a published state dict, by keys that only this kind has; None if it is none of them."""
    marks = {kind.name: kind.published.mark for kind in MODELS.values() if kind.published}
    return next((name for name, mark in marks.items() if any(key.startswith(mark) for key in published)), None)


def take_apart(published: State, name: str, sizes: Mapping[str, dict[str, Any]], file: str) -> tuple[nn.Module, State]:
    """Model `name` from a published state dict, and the frozen copies in it. `sizes`: what `build_model` needs, by model.

    A dVAE can also be taken from inside STEVE or SlotFormer. Raises DataError naming `file` if it is of another model, if a key
    is missing, extra or of another shape, or if a stored constant is not what this model computes.
    """
    form, found = form_of(name), kind_of(published)
    for part in (part for part, copy in shared_parts().items() if copy == Copy(name)):
        if inside := {key.removeprefix(f"{part}."): value for key, value in published.items() if _first(key) == part}:
            found, published = name, inside
    if found is None:
        known = ", ".join(kind.name for kind in MODELS.values() if kind.published)
        keys = ", ".join(one_line(key)[:60] for key in list(published)[:SHOWN_ENTRIES])
        raise DataError(f"{file} matches no known model: its {len(published)} keys, such as {keys}, belong to none of {known}")
    if found != name:
        raise DataError(f"{file} holds a {found} model, not {name}: import it --as {found}")
    model, frozen = build_model(name, sizes[name]), frozen_copies(name, published)
    present = {_first(key) for key in frozen}
    copies = copies_for(name, {other: build_model(other, sizes[other]) for other in MODELS[name].copied()})
    expected = to_published(name, model, {key: value for key, value in copies.items() if _first(key) in present})
    if problem := misfit(expected, published):
        raise DataError(f"{file} does not fit the configured {name} model: {problem}. Sizes come from --preset and --set")
    for key, value in expected.items():
        if key.endswith(form.constants) and not torch.allclose(value.float(), published[key].float(), atol=1e-5, rtol=0):
            raise DataError(f"{file}: the stored constant {key} is not what this {name} model computes")
    model.load_state_dict(from_published(name, published))
    return model.eval(), frozen
