"""The stages of the study, one module each, and the registry that names them.

A stage is a pure function of its config section, its input artifacts and its parameters to one output artifact. Its version
goes into the fingerprint: raise it when a change to the code changes what comes out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from physion.errors import Interrupted, Preempted

if TYPE_CHECKING:
    from physion.store.artifacts import Artifact, ArtifactWriter


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


@dataclass(frozen=True)
class Job:
    """Everything a stage's `run` gets."""

    instance: str
    config: Any
    inputs: dict[str, Artifact]
    output: ArtifactWriter
    params: dict[str, str | int] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    weights: Artifact | None = None  # given for this stage, which then does not train
    stop: Stop = field(default_factory=Stop)


@dataclass(frozen=True)
class Stage:
    """A kind of stage: its name, the version of what it makes, and the module that holds its `run`."""

    name: str
    version: int
    summary: str
    module: str

    def load(self) -> Callable[[Job], dict[str, Any]]:
        """The stage's `run(job) -> headline metrics`; loading it may load torch."""
        run: Callable[[Job], dict[str, Any]] = importlib.import_module(f"physion.stages.{self.module}").run
        return run


STAGES = {
    stage.name: stage
    for stage in (
        Stage("simulate", 1, "simulate, render and encode PhysionSim videos", "simulate"),
        Stage("fetch", 1, "bring in the official Physion videos", "fetch"),
        Stage("frames", 1, "decode and resize the videos of a subset", "frames"),
        Stage("train-dvae", 1, "train the dVAE that turns frames into tokens", "train_dvae"),
        Stage("tokenize", 1, "dVAE tokens of the training frames", "tokenize"),
        Stage("train-steve", 1, "train STEVE, which finds slots in video", "train_steve"),
        Stage("extract-slots", 1, "slots of every frame of a subset", "extract_slots"),
        Stage("train-slotformer", 1, "train SlotFormer, which predicts slots", "train_slotformer"),
        Stage("rollout", 1, "predict the slots after the observed frames", "rollout"),
        Stage("train-readout", 2, "train a readout on slots: will red touch yellow?", "train_readout"),
        Stage("evaluate", 2, "test the readouts once and write the report", "evaluate"),
    )
}
