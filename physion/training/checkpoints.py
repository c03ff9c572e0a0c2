"""Training state as one safetensors file: weights, Adam moments, step, loss scale and history. Never a pickle.

A file's name holds the token of the run that wrote it, the step, and the start of its SHA-256, so damage is noticed before use.
Tokens keep two runs of one training apart: a starting run takes the next number, and from then on every older run, such as a
zombie on a node that was thought dead, leaves the checkpoints alone.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError, field_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from physion.errors import DataError
from physion.models.weights import misfit, read_tensors
from physion.progress import say
from physion.store.artifacts import ArtifactWriter
from physion.store.checksums import sha256_of

KEPT = 2
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, each as large as its parameter
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
CHECKPOINT = re.compile(r"(?P<token>\d{6,18})-(?P<step>\d{8,18})-[0-9a-f]{16}\.safetensors")
OWNER = re.compile(r"(?P<token>\d{6,18})\.json")


@dataclass
class History:
    """The history of a training: finished rows, and the sums of the current row."""

    rows: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    steps: int = 0

    def count(self, loss: float, norm: float) -> None:
        """Add one step to the current row."""
        self.loss_sum += loss
        self.norm_sum += norm
        self.steps += 1

    def close_row(self, **values: float) -> None:
        """Finish a row: the means over the steps since the last one, and these values."""
        if self.steps:
            values |= {"loss": self.loss_sum / self.steps, "grad_norm": self.norm_sum / self.steps}
        self.rows.append(values)
        self.loss_sum, self.norm_sum, self.steps = 0.0, 0.0, 0

    @property
    def best_step(self) -> int | None:
        """The step after which the held-out loss was lowest, except the start; None before the first measurement."""
        return best_row(self.rows)["step"] if len(self.rows) > 1 else None  # type: ignore[return-value]


def best_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """The row with the lowest held-out loss after the start."""
    return min(rows[1:], key=lambda row: row["heldout_loss"])


@dataclass
class State:
    """What a checkpoint holds. Tensors are `model.<name>` and `adam.<exp_avg, ...>.<name>`, on the CPU.

    seconds: how long all runs together have taken to get here.
    """

    step: int = 0
    history: History = field(default_factory=History)
    scaler: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(cls, step: int, history: History, model: nn.Module, adam: torch.optim.Adam, scaler: Any) -> State:
        """A copy of the state, independent of further training."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key, value in adam.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        tensors = {name: torch.empty(t.shape, dtype=t.dtype).copy_(t) for name, t in tensors.items()}
        copied = History(list(history.rows), history.loss_sum, history.norm_sum, history.steps)
        return cls(step, copied, scaler.state_dict(), tensors)

    def load(self, model: nn.Module, adam: torch.optim.Adam, scaler: Any) -> None:
        """Restore the state."""
        if not self.tensors:
            return
        ours = {n.removeprefix("model."): t for n, t in self.tensors.items() if n.startswith("model.")}
        if problem := misfit(model.state_dict(), ours) or self._misfit_of_adam(model):
            raise DataError(f"the checkpoint of step {self.step} does not fit the model: {problem}; --force starts over")
        model.load_state_dict(ours)
        for name, parameter in model.named_parameters():
            state: dict[str, Tensor] = {}
            if (count := self.tensors.get(f"adam.step.{name}")) is not None:
                state["step"] = count.to(parameter.device, torch.float32)
            for kind in MOMENTS:
                if (saved := self.tensors.get(f"adam.{kind}.{name}")) is not None:
                    state[kind] = torch.empty_like(parameter, requires_grad=False).copy_(saved)  # the parameter's memory layout
            if state:
                adam.state[parameter] = state
        if self.scaler:  # else it was made without one, in another precision, and the scale is found anew
            scaler.load_state_dict(self.scaler)

    def _misfit_of_adam(self, model: nn.Module) -> str | None:
        """As `misfit`: all of a parameter's state or nothing, in its shape."""
        found = {name: tensor for name, tensor in self.tensors.items() if not name.startswith("model.")}
        expected: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            state = {f"adam.step.{name}": torch.empty(()), **{f"adam.{kind}.{name}": parameter for kind in MOMENTS}}
            expected |= state if state.keys() & found.keys() else {}
        return misfit(expected, found)


class Checkpoints:
    """The checkpoints of an artifact in the making; used on rank 0 only, as a context that waits for the last one."""

    def __init__(self, output: ArtifactWriter) -> None:
        self._output, self._store = output, output.store
        self._prefix, self._owners = f"{output.prefix}/checkpoints", f"{output.prefix}/owners"
        self._token = 0
        self._fenced = False
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None
        self.last: int | None = None
        self.where = f"{self._store.uri}/{self._prefix}"

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        with suppress(*([] if kind is None else [Exception])):  # report the first failure
            self.wait()
        self._thread.shutdown()

    def take_over(self) -> State:
        """Become the only run that writes checkpoints here, and read the newest undamaged one: an empty state if there is none.

        Checkpoints of the newest run count as newest.
        """
        facts = json.dumps({"host": platform.node(), "pid": os.getpid()}).encode()
        self._token = self._newest_owner() + 1
        while not self._store.write(self._owner(self._token), facts, if_absent=True):
            self._token += 1
        while keys := self._keys():
            try:
                path = self._store.fetch(keys[-1])
                if sha256_of(path)[:16] == Path(keys[-1]).stem.split("-")[2]:
                    state = read_state(path)
                    self.last = state.step
                    return state
            except FileNotFoundError:  # the previous run was still tidying up
                continue
            except DataError:
                pass
            say(f"{self.where}: {Path(keys[-1]).name} is damaged; using the one before it")
            self._store.delete(keys[-1])
        return State()

    def save(self, state: State, also: Callable[[], None] = lambda: None) -> None:
        """Store a state in the background, after what `also` stores; then remove all but the newest two and the best.

        Waits for the previous save, and raises its error.
        """
        self.wait()
        self._saving = self._thread.submit(self._save, state, also)

    def wait(self) -> None:
        """Return once the last state is stored; raises the error that prevented it."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def owned(self) -> bool:
        """Whether no newer run has taken over."""
        if not self._fenced and (self._store.size(self._owner(self._token)) is None or self._newest_owner() > self._token):
            self._fenced = True  # if there is no owner, somebody has published the artifact
            say(f"{self.where}: another run of this training has taken over; this one continues without saving its state")
        return not self._fenced

    def _save(self, state: State, also: Callable[[], None]) -> None:
        path = self._output.scratch / "checkpoint"
        told = {"step": state.step, "history": vars(state.history), "scaler": state.scaler, "seconds": state.seconds}
        save_file(state.tensors, str(path), {"physion": json.dumps(told)})
        digest = sha256_of(path)[:16]
        if not self.owned():
            return
        also()
        self._store.upload(f"{self._prefix}/{self._token:06d}-{state.step:08d}-{digest}.safetensors", path)
        self.last = state.step
        best = state.history.best_step
        outdated = [key for key in self._keys()[:-KEPT] if _step(key) != best]
        if outdated and self.owned():
            for key in outdated:
                self._store.delete(key)

    def _keys(self) -> list[str]:
        """Checkpoints of this run and older ones, newest last."""
        names = ((key, CHECKPOINT.fullmatch(Path(key).name)) for key in self._store.list(self._prefix))
        return [key for key, name in names if name and int(name["token"]) <= self._token]

    def _owner(self, token: int) -> str:
        return f"{self._owners}/{token:06d}.json"

    def _newest_owner(self) -> int:
        names = (OWNER.fullmatch(Path(key).name) for key in self._store.list(self._owners))
        return max((int(name["token"]) for name in names if name), default=0)


class _Course(BaseModel):
    rows: list[dict[str, int | float]]
    loss_sum: float
    norm_sum: float
    steps: NonNegativeInt

    @field_validator("rows")
    @classmethod
    def _are_measured(cls, rows: list[dict[str, int | float]]) -> list[dict[str, int | float]]:
        if not all({"step", "heldout_loss"} <= row.keys() for row in rows):
            raise ValueError("a row has no step or no held-out loss")
        return rows


class _Facts(BaseModel):
    step: NonNegativeInt
    history: _Course
    scaler: dict[str, int | float]
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)

    @field_validator("scaler")
    @classmethod
    def _is_whole(cls, scaler: dict[str, int | float]) -> dict[str, int | float]:
        if scaler and scaler.keys() != SCALER:
            raise ValueError("is not a loss scaler's state")
        return scaler


def read_state(path: Path) -> State:
    """Read a checkpoint file and release it: NFS keeps removed files while they are mapped. Raises DataError."""
    facts, tensors = read_tensors(path, f"checkpoint {path}")
    try:
        known = _Facts.model_validate(facts)
    except ValidationError as error:
        raise DataError(f"{path} is not a checkpoint: its metadata is invalid ({error.error_count()} fields)") from error
    history, kept = History(**vars(known.history)), {name: tensor.clone() for name, tensor in tensors.items()}
    return State(known.step, history, known.scaler, kept, known.seconds)


def best_weights(output: ArtifactWriter, step: int) -> dict[str, Tensor] | None:
    """The model's tensors after a step whose checkpoint was kept; None if it is missing."""
    for key in reversed(output.store.list(f"{output.prefix}/checkpoints")):
        if CHECKPOINT.fullmatch(Path(key).name) and _step(key) == step:
            with suppress(FileNotFoundError):
                tensors = read_state(output.store.fetch(key)).tensors
                return {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    return None


def _step(key: str) -> int:
    return int(Path(key).stem.split("-")[1])
