"""The stages of the study, one module each, and the registry that names them.

A stage is a pure function of its config section, its input artifacts and its parameters to one output artifact. Its version
goes into the fingerprint: raise it when a change to the code changes what comes out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from physion.errors import Interrupted, Preempted, TransientError

if TYPE_CHECKING:
    from torch import Tensor

    from physion.store.artifacts import Artifact, ArtifactWriter

SHOWN_PARTS = 20  # that an error names
T = TypeVar("T")


@dataclass
class Stop:
    """Whether the process was asked to stop, and by which signal; stages look at it between pieces of work."""

    signal: str | None = None

    def check(self) -> None:
        """Raise Interrupted after Ctrl-C, Preempted after SIGTERM."""
        if self.signal == "SIGINT":
            raise Interrupted("interrupted; what is done is saved, and the same command goes on from there")
        if self.signal == "SIGTERM":
            raise Preempted("stopped by SIGTERM; what is done is saved, and the same command goes on from there")


class Ranks:
    """The processes that make one artifact together. This kind is a process alone; `training/distributed.py` has the other."""

    rank = 0
    count = 1

    def share(self, size: int) -> slice:
        """This rank's share of `size` things: contiguous, and of the same size on all ranks to within one."""
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def on_first(self, work: Callable[[], T]) -> T:
        """On every rank, what `work` returns on rank 0, the only one to do it, or the PhysionError it raises there."""
        return work()

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks of a CPU tensor, on every rank."""
        return values

    def vote(self, number: int) -> Callable[[], int]:
        """Begin to agree on the highest of all ranks' numbers; what it returns waits for it."""
        return lambda: number


@dataclass(frozen=True)
class Job:
    """Everything a stage's `run` gets. `share` selects, of the list of its parts, those that this process does."""

    instance: str
    config: Any
    inputs: dict[str, Artifact]
    output: ArtifactWriter
    params: dict[str, str | int] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    weights: Artifact | None = None  # given for this stage, which then does not train
    stop: Stop = field(default_factory=Stop)
    share: slice = field(default_factory=lambda: slice(None))
    ranks: Ranks = field(default_factory=Ranks)


class PartsMissing(TransientError):
    """The parts that this process had to do are done, but others are not; `missing` has their numbers, of `total`."""

    def __init__(self, instance: str, missing: Sequence[int], total: int) -> None:
        self.missing, self.total = list(missing), total
        shown = ", ".join(map(str, self.missing[:SHOWN_PARTS])) + (", ..." if len(missing) > SHOWN_PARTS else "")
        super().__init__(
            f"{instance}: {len(missing)} of {total} parts are not done: {shown}. Wait for who does them, run "
            f"`--shard {self.missing[0]}/{total}` for that one and so on, or the same command without --shard for all of them"
        )


@dataclass(frozen=True)
class Stage:
    """A kind of stage: its name, the version of what it makes, and the module that holds its `run`.

    `parts`: its work is a list of parts, so that several processes can share it.
    """

    name: str
    version: int
    summary: str
    module: str
    parts: bool = False

    def load(self) -> Callable[[Job], dict[str, Any]]:
        """The stage's `run(job) -> headline metrics`; loading it may load torch."""
        run: Callable[[Job], dict[str, Any]] = importlib.import_module(f"physion.stages.{self.module}").run
        return run


STAGES = {
    stage.name: stage
    for stage in (
        Stage("simulate", 1, "simulate, render and encode PhysionSim videos", "simulate", parts=True),
        Stage("fetch", 1, "bring in the official Physion videos", "fetch"),
        Stage("frames", 1, "decode and resize the videos of a subset", "frames", parts=True),
        Stage("train-dvae", 3, "train the dVAE that turns frames into tokens", "train_dvae"),
        Stage("tokenize", 2, "dVAE tokens of the training frames", "tokenize", parts=True),
        Stage("train-steve", 3, "train STEVE, which finds slots in video", "train_steve"),
        Stage("extract-slots", 2, "slots of every frame of a subset", "extract_slots", parts=True),
        Stage("train-slotformer", 3, "train SlotFormer, which predicts slots", "train_slotformer"),
        Stage("rollout", 2, "predict the slots after the observed frames", "rollout", parts=True),
        Stage("train-readout", 3, "train a readout on slots: will red touch yellow?", "train_readout"),
        Stage("evaluate", 3, "test the readouts once and write the report", "evaluate"),
    )
}
