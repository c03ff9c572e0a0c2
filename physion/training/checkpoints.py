"""Training state as one safetensors file: weights, Adam moments, step, loss scale and history. Never a pickle.

The file's name holds the step and the start of its SHA-256, so a damaged one is known before it is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from physion.progress import say
from physion.store.artifacts import ArtifactWriter
from physion.store.checksums import sha256_of

KEPT = 2


@dataclass
class History:
    """The course of a training: finished rows, and the sums of the row being gathered."""

    rows: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    steps: int = 0

    def count(self, loss: float, norm: float) -> None:
        """Add one step to the row being gathered."""
        self.loss_sum += loss
        self.norm_sum += norm
        self.steps += 1

    def close_row(self, **values: float) -> None:
        """Finish a row: the means of the steps since the last one, and these values."""
        if self.steps:
            values |= {"loss": self.loss_sum / self.steps, "grad_norm": self.norm_sum / self.steps}
        self.rows.append(values)
        self.loss_sum, self.norm_sum, self.steps = 0.0, 0.0, 0


class Checkpoints:
    """The checkpoints of an artifact that is being made."""

    def __init__(self, output: ArtifactWriter) -> None:
        self._output = output
        self._prefix = f"{output.prefix}/checkpoints"
        self.last: int | None = None
        self.where = f"{output.store.uri}/{self._prefix}"

    def save(self, step: int, history: History, model: nn.Module, adam: torch.optim.Adam, scaler: Any) -> None:
        """Store the state after `step` steps, then remove all but the newest two."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key, value in adam.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        facts = json.dumps({"step": step, "history": vars(history), "scaler": scaler.state_dict()})
        path = self._output.scratch / "checkpoint"
        save_file(tensors, str(path), {"physion": facts})
        self._output.store.upload(f"{self._prefix}/{step:08d}-{sha256_of(path)[:16]}.safetensors", path)
        self.last = step
        for key in self._keys()[:-KEPT]:
            self._output.store.delete(key)

    def restore(self, model: nn.Module, adam: torch.optim.Adam, scaler: Any) -> tuple[int, History]:
        """Load the newest undamaged checkpoint in place. Returns its step and history: 0 and empty when there is none."""
        for key in reversed(self._keys()):
            try:
                path = self._output.store.fetch(key)
                intact = sha256_of(path)[:16] == Path(key).stem.partition("-")[2]
            except FileNotFoundError:  # another runner of this training just removed it
                continue
            if not intact:
                say(f"{self.where}: {Path(key).name} is damaged; taking the one before")
                self._output.store.delete(key)
                continue
            with safe_open(str(path), framework="pt") as file:
                facts = json.loads(file.metadata()["physion"])
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
            for name, parameter in model.named_parameters():
                state = {}
                for kind in ("step", "exp_avg", "exp_avg_sq"):
                    if (saved := tensors.get(f"adam.{kind}.{name}")) is not None:
                        state[kind] = saved.to(parameter.device)
                if state:
                    adam.state[parameter] = state
            scaler.load_state_dict(facts["scaler"])
            self.last = step = int(facts["step"])
            return step, History(**facts["history"])
        return 0, History()

    def _keys(self) -> list[str]:
        return self._output.store.list(self._prefix)
