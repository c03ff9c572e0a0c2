"""Weights files: safetensors whose metadata says which model they are of, so that a file alone rebuilds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from physion.errors import DataError
from physion.models.kinds import MODELS

FACTS = "physion"
SHOWN_KEYS = 3  # keys that an error names before it counts the others


def build_model(name: str, sizes: dict[str, Any]) -> nn.Module:
    """Construct a model of a kind with fresh weights from its sizes, JSON values (`ModelKind.sizes`).

    Raises TypeError or ValueError if they do not fit, or if there is no such kind.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; is it one of a plugin?")
    model: nn.Module = MODELS[name].make(**sizes)
    return model


def save_weights(path: Path, model: nn.Module, name: str, config: dict[str, Any]) -> None:
    """Write a model's parameters and what `build_model` needs to make it again."""
    state = {key: value.detach().contiguous().cpu() for key, value in model.state_dict().items()}
    # One key: safetensors writes several in random order, and equal weights must give equal files.
    save_file(state, path, metadata={FACTS: json.dumps({"model": name, "config": config}, sort_keys=True)})


def load_model(path: Path, name: str | None = None) -> Any:
    """Rebuild the model of a weights file, on the CPU and in eval mode; with `name`, only if it is of that kind.

    Raises DataError if the file is missing, truncated or corrupt, or if its weights do not fit its own description.
    """
    kind, config, state = _read(path)
    if name is not None and kind != name:
        raise DataError(f"weights file {path} holds a {kind} model, not {name}")
    try:
        model = build_model(kind, config)
    except (TypeError, ValueError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"weights file {path} describes a model that this version cannot build: {why}") from error
    problem = misfit(model.state_dict(), state)
    if problem:
        raise DataError(f"weights in {path} do not fit its {kind} model: {problem}")
    model.load_state_dict(state)
    return model.eval()


def kind_of_weights(path: Path) -> str:
    """Which kind of model a weights file is of. Raises DataError as `load_model` does."""
    return _read(path, tensors=False)[0]


def _read(path: Path, *, tensors: bool = True) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys() if tensors}  # noqa: SIM118 (a safetensors file is no dict)
    except FileNotFoundError as error:
        raise DataError(f"no weights file at {path}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"weights file {path} is truncated or corrupt: {error}") from error
    try:
        facts = json.loads(metadata[FACTS])
        kind, config = facts["model"], facts["config"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a weights file of physion: its metadata names no model") from error
    return kind, config, state


def misfit(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str | None:
    """Say in one line how a state dict differs from the expected keys and shapes (missing, extra, mismatched), or None."""
    problems = {
        "missing": [key for key in expected if key not in state],
        "extra": [key for key in state if key not in expected],
        "mismatched": [
            f"{key} {list(value.shape)} instead of {list(expected[key].shape)}"
            for key, value in state.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    return "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys) or None


def _some(keys: list[str]) -> str:
    more = len(keys) - SHOWN_KEYS
    return ", ".join(keys[:SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")
