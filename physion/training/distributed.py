"""Several ranks train one model: how they meet, agree and average their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from physion.errors import PhysionError, TransientError
from physion.job import Ranks

T = TypeVar("T")
SLACK = 30.0  # seconds that a collective outlasts the watchdog, whose message says more


@contextmanager
def joined(rank: int, count: int, local_rank: int, stuck_after: float, attempt: str = "0") -> Iterator[Ranks]:
    """Inside, this process is one of `count` ranks, which meet at MASTER_ADDR, MASTER_PORT.

    attempt: differs between the starts of a group that meets there repeatedly, as torchrun's do after a restart; otherwise a
    rank would find the addresses of dead ones.

    Raises TransientError if the ranks do not meet, or lose each other.
    """
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local_rank)
    timeout = timedelta(seconds=stuck_after + SLACK)
    try:
        store, _, _ = next(rendezvous("env://", rank, count, timeout=timeout))
        store = PrefixStore(f"physion-{attempt}", store)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timeout, rank=rank, world_size=count, store=store)
        group = Group(timeout)
        yield group
        group.all_reduce(torch.zeros(1))  # nobody leaves before all are done
        dist.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL", "Socket"))):
            raise
        first_line = str(error).partition("\n")[0]
        raise TransientError(
            f"rank {rank} of {count} has lost the others ({first_line}); the same command resumes from the last checkpoint"
        ) from error


class Group(Ranks):
    """The ranks of a training."""

    def __init__(self, timeout: timedelta) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        # Small CPU tensors use gloo, even alongside nccl: agreeing must not wait for the device.
        self._control = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """On every rank, what `work` returns on rank 0, the only one to run it, or the PhysionError it raises there."""
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = work()
            except PhysionError as error:
                answer[1] = error
        dist.broadcast_object_list(answer, 0, self._control)
        result, failed = answer
        if failed is not None:
            failed.quiet = self.rank > 0
            raise failed
        return result  # type: ignore[no-any-return]

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all ranks of a CPU tensor, on every rank."""
        dist.all_reduce(values, group=self._control)
        return values

    def vote(self, number: int) -> Callable[[], int]:
        """Start agreeing on the maximum of all ranks' numbers; the returned function waits for the result."""
        highest = torch.tensor(number)
        work = dist.all_reduce(highest, dist.ReduceOp.MAX, self._control, async_op=True)

        def agreed() -> int:
            work.wait()
            return int(highest)

        return agreed


def data_parallel(module: nn.Module, ranks: Ranks, *, unused_parameters: bool = False) -> nn.Module:
    """A module whose backward pass leaves the mean of all ranks' gradients on each; all start with rank 0's parameters."""
    if ranks.count == 1:
        return module
    together = DistributedDataParallel(module, find_unused_parameters=unused_parameters)
    if dist.get_backend() == "gloo":
        together.register_comm_hook(None, lambda _, bucket: _mean_by_rank(bucket))
    return together


def _mean_by_rank(bucket: Any) -> torch.futures.Future[Tensor]:
    """The mean of a bucket's gradients over all ranks, added in the order of the ranks.

    gloo's own sum depends on a gradient's position in the bucket, and DDP rearranges its buckets after the first step. On more
    than two ranks, a resumed run would therefore treat one step as its first, and differ from then on in the last bits. On a
    CPU, a resumed run must equal an undisturbed one bit for bit.
    """
    mine = bucket.buffer()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    mean: torch.futures.Future[Tensor] = torch.futures.Future()
    mean.set_result(torch.stack(parts).mean(0, dtype=torch.float64).to(mine.dtype))
    return mean
