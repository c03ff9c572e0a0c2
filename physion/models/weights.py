"""Weights files: safetensors whose metadata describes the model, so that a file alone rebuilds it."""

from __future__ import annotations

import contextlib
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
from physion.store.artifacts import json_of
from physion.store.keys import shown

FACTS = "physion"
MODEST = 10_000  # largest size accepted without tensors to match
MOST_UNHELD = 2**30  # bytes
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
    """Write a model's parameters and what `build_model` needs to rebuild it."""
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
        if (largest := _largest(config)) > (values := sum(tensor.numel() for tensor in state.values())) + MODEST:
            raise ValueError(f"a size of {largest}, where the file holds {values} values")
        with torch.device("meta"):  # takes no memory, whatever the sizes
            sketch = build_model(kind, config)
        if not (problem := misfit(sketch.state_dict(), state)):
            unheld = sum(buffer.nbytes for buffer in sketch.buffers()) - sum(tensor.nbytes for tensor in state.values())
            if unheld > MOST_UNHELD:
                raise ValueError(f"{unheld} bytes of buffers that the file does not hold")
            model = build_model(kind, config)
    except Exception as error:  # whatever a model raises for invalid sizes
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(shown(f"weights file {path} describes a model that this version cannot build: {why}")) from error
    if problem:
        raise DataError(shown(f"weights in {path} do not fit its {kind} model: {problem}"))
    model.load_state_dict(state)
    return model.eval()


def kind_of_weights(path: Path) -> str:
    """Which kind of model a weights file is of. Raises DataError as `load_model` does."""
    return _read(path, tensors=False)[0]


def _read(path: Path, *, tensors: bool = True) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    facts, state = read_tensors(path, f"weights file {path}", tensors=tensors)
    if not isinstance(facts, dict) or not isinstance(facts.get("model"), str) or "config" not in facts:
        raise DataError(f"{path} is not a weights file of physion: its metadata names no model")
    return facts["model"], facts["config"], state


def read_tensors(path: Path, what: str, *, tensors: bool = True) -> tuple[Any, dict[str, torch.Tensor]]:
    """Our facts (JSON) in the metadata of a safetensors file, None if there are none, and its tensors, views of the file.

    Raises DataError, which begins with `what`, if the file is missing, truncated or corrupt.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FACTS)
            state = {key: file.get_tensor(key) for key in file.keys() if tensors}  # noqa: SIM118 (a safetensors file is no dict)
        with contextlib.suppress(ValueError):
            return None if text is None else json_of(text.encode()), state
        return None, state
    except FileNotFoundError as error:
        raise DataError(f"no {what}: there is none at {path}") from error
    except (OSError, ValueError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise DataError(shown(f"{what} is truncated or corrupt: {error}")) from error


def _largest(sizes: Any) -> float:
    """The largest number in a model's sizes."""
    if isinstance(sizes, dict | list):
        return max(map(_largest, sizes.values() if isinstance(sizes, dict) else sizes), default=0)
    return sizes if isinstance(sizes, int | float) else 0


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
