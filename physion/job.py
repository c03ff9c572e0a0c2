"""What a running stage is given: its work, how it is asked to stop, and the processes it works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from physion.errors import Interrupted, Preempted

if TYPE_CHECKING:
    from torch import Tensor

    from physion.store.artifacts import Artifact, ArtifactWriter

T = TypeVar("T")


@dataclass
class Stop:
    """Whether the process was asked to stop, and by which signal; stages check it between pieces of work."""

    signal: str | None = None

    def check(self) -> None:
        """Raise Interrupted after Ctrl-C, Preempted after SIGTERM."""
        if self.signal == "SIGINT":
            raise Interrupted("interrupted; progress is saved, and the same command resumes from there")
        if self.signal == "SIGTERM":
            raise Preempted("stopped by SIGTERM; progress is saved, and the same command resumes from there")


class Ranks:
    """The processes that make one artifact together. Here, a single one; `training/distributed.py` has the other kind."""

    rank = 0
    count = 1

    def share(self, size: int) -> slice:
        """This rank's share of `size` things: contiguous, with sizes that differ between ranks by at most one."""
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """On every rank, what `work` returns on rank 0, the only one to run it, or the PhysionError it raises there."""
        return work()

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all ranks of a CPU tensor, on every rank."""
        return values

    def vote(self, number: int) -> Callable[[], int]:
        """Start agreeing on the maximum of all ranks' numbers; the returned function waits for the result."""
        return lambda: number


@dataclass(frozen=True)
class Job:
    """Everything a stage's `run` gets.

    config: the stage's section of the configuration. settings: what else of the configuration it may read, by name. share
    selects the parts, from the list of all parts, that this process makes.
    """

    instance: str
    config: Any
    inputs: dict[str, Artifact]
    output: ArtifactWriter
    params: dict[str, str | int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)
    share: slice = field(default_factory=lambda: slice(None))
    ranks: Ranks = field(default_factory=Ranks)
