"""The one training loop: Adam, warm-up and cosine, clipping, mixed precision, held-out loss, checkpoints, exact resume.

All randomness is a function of the step: clips come from (seed, step) by `StepBatches`, noise from (seed, step, position in the
global batch). A checkpoint therefore holds weights, optimizer moments and the step, and on a CPU a run that was killed and
resumed equals an undisturbed one, bit for bit.

The configuration fixes the global batch, however many ranks divide it: each takes its part, micro-batch by micro-batch, and DDP
averages their gradients. Decisions that all ranks must share (a stop, a checkpoint, where to resume) are put to a vote or made
by rank 0 for all.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from physion.config.schema import Optim, TrainingStage
from physion.data.clips import Batch, Clips
from physion.data.order import StepBatches, spread
from physion.errors import ConfigError, DataError, PhysionError, TransientError
from physion.job import Job, Stop
from physion.machine import cores
from physion.models.noise import sample_noise
from physion.models.weights import save_weights
from physion.progress import progress, say
from physion.training.captured import Captured
from physion.training.checkpoints import Checkpoints, State, best_row, best_weights
from physion.training.distributed import data_parallel
from physion.training.precision import arithmetic
from physion.training.watchdog import Watchdog
from physion.training.watching import Watch, forget_after

ModelT = TypeVar("ModelT", bound=nn.Module)
WEIGHTS, BEST = "weights.safetensors", "best.safetensors"
HISTORY = "history.json"
EAGER_STEPS = 3  # before a step is captured: libraries initialize themselves in the first ones
PREFETCHED, IN_HAND = 4, 2  # batches that a data worker is ahead, and that the training holds
PAGE, LOCKS = 4096, 2**20  # bytes: the granularity of shared memory, and the most that the workers' locks and queues take
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where data workers hand over their batches)
LOOK_EVERY = 50  # steps between transfers of the losses from the device, which is when a non-finite one is noticed
PICTURED = 4  # held-out clips in a picture
SIGNALS = (None, "SIGINT", "SIGTERM")  # what ranks vote on; the later one wins


class NonFiniteLoss(PhysionError):
    """The loss became NaN or infinite; training again from the same checkpoint would do the same."""

    exit_code = 3


class Task(ABC):
    """What a stage's training adds to the loop."""

    model: nn.Module
    train: Clips
    heldout: Clips
    sample_flops: float | None = None  # FLOPs of a training step, per sample
    unused_parameters = False  # whether some parameters get no gradient
    capturable = False  # whether the loss is the same work at every step and never waits for the device's results
    cpu_micro_batch: int | None = None  # samples per micro-batch whose tensors stay in a CPU's caches

    def groups(self, optim: Optim) -> list[tuple[list[nn.Parameter], float]]:
        """Parameter groups with their peak learning rates."""
        return [([p for p in self.model.parameters() if p.requires_grad], optim.lr)]

    @abstractmethod
    def loss(self, batch: Batch, step: int) -> Tensor:
        """The training loss of a batch, a scalar: the mean over its samples."""

    def compile(self) -> None:
        """Compile the parts of the loss that take a GPU's or CPU's time; called only if compiling is enabled."""
        for part in self.model.children():
            part.compile()

    def after_step(self, done: int) -> None:  # noqa: B027 (most tasks have nothing to do)
        """Called on rank 0 after each optimizer step, before that step's checkpoint; `done` counts the steps made."""

    def heldout_loss(self, batch: Batch) -> Tensor:
        """The held-out loss of a batch, a scalar: the mean over its samples; the model is in eval mode."""
        return self.loss(batch, 0)

    def watched(self, step: int) -> dict[str, float]:
        """Other values of a step to log, such as a temperature."""
        return {}

    def measures(self) -> dict[str, float]:
        """Other held-out measurements for the history; called on rank 0 only, with the model in eval mode."""
        return {}

    def picture(self, batch: Batch) -> np.ndarray | None:
        """The model's view of a few held-out clips, uint8 [H, W, 3]; the model is in eval mode."""
        return None


class Loss(nn.Module):
    """A task's training loss as the forward pass of a module, so that DDP and autograd see the same pass."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def forward(self, batch: Batch, step: int) -> Tensor:
        """The task's loss."""
        return self._task.loss(batch, step)


def best_device() -> torch.device:
    """The GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def initial_model(seed: int, build: Callable[[], ModelT]) -> ModelT:
    """A model whose initial weights are determined by the seed."""
    torch.manual_seed(step_seed(seed, -1))
    return build()


def require_compilers(job: Job, device: torch.device) -> None:
    """Raise ConfigError unless torch.compile has the compilers it needs; torch itself would fail in the middle of a step."""
    if device.type == "cuda":
        compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
        missing = ["Triton"] if importlib.util.find_spec("triton") is None else []
    else:
        compilers, missing = [os.environ.get("CXX", "g++")], []
    if not any(shutil.which(name) for name in compilers):
        missing.append(f"a {'C' if device.type == 'cuda' else 'C++'} compiler ({' or '.join(compilers)})")
    if missing:
        raise ConfigError(
            f"{job.instance}: torch.compile needs {' and '.join(missing)} for a {device.type} device, and neither the "
            f"container image nor every machine has that: leave out {job.output.stage}.compile=true, or install it"
        )


def learning_rate(step: int, peak: float, optim: Optim) -> float:
    """Learning rate at a step: linear from peak * final_lr to the peak, then half a cosine back down."""
    low = peak * optim.final_lr
    warmup = optim.warmup * optim.steps
    if step < warmup:
        return low + (peak - low) * step / warmup
    return low + (peak - low) * (1 + math.cos(math.pi * (step - warmup) / (optim.steps - warmup))) / 2


def step_seed(seed: int, *place: int) -> int:
    """Seed of a generator for one step, or for one sample of its batch."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, (seed, *place))).encode()).digest()[:7], "little")


def fit(task: Task, config: TrainingStage, job: Job) -> list[dict[str, float]]:
    """Train `task.model` in place, from the newest checkpoint if there is one, together with all ranks of the job.

    Returns the history: rows with step, lr, heldout_loss, on rank 0 also the task's measurements, and the mean loss and
    grad_norm since the previous row.

    Raises NonFiniteLoss naming the step and the last good checkpoint; Preempted or Interrupted, with the state saved, if a rank
    is asked to stop; ConfigError if the batch cannot be divided among the ranks or does not fit into memory, or if a compiler
    is missing.
    """
    if config.compile:
        require_compilers(job, best_device())
    if not len(task.heldout) or not len(task.train):
        what = "is held out; raise" if len(task.train) else "is left to train on; lower"
        raise DataError(f"{job.instance}: no video {what} frames.heldout, or add videos")
    batch, ranks = config.optim.batch_size, job.ranks
    if batch < ranks.count:
        raise ConfigError(
            f"{job.instance}: a batch of {batch} cannot be divided among {ranks.count} ranks; start fewer, or raise "
            f"{job.instance}.optim.batch-size"
        )
    who = f"rank {ranks.rank} of {job.instance}" if ranks.count > 1 else job.instance
    with (
        arithmetic(_precision(config.precision, best_device()), config.threads),
        Watchdog(who, config.stuck_after) as watchdog,
        Checkpoints(job.output) as checkpoints,
    ):
        return Training(task, config, job, who, checkpoints, watchdog).run()


class Training:
    """A training on one rank."""

    def __init__(
        self, task: Task, config: TrainingStage, job: Job, who: str, checkpoints: Checkpoints, watchdog: Watchdog
    ) -> None:
        self.task, self.config, self.optim, self.job, self.who = task, config, config.optim, job, who
        self.ranks, self.checkpoints, self.watchdog = job.ranks, checkpoints, watchdog
        self.device = best_device()
        self.precision = _precision(config.precision, self.device)
        self.model = task.model.to(self.device)
        if self.device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        if config.compile:
            task.compile()
        groups = task.groups(self.optim)
        self.peaks = [peak for _, peak in groups]
        self.parameters = [p for params, _ in groups for p in params]
        self.adam = torch.optim.Adam([{"params": params} for params, _ in groups], lr=1.0, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.share = self.ranks.share(self.optim.batch_size)
        cached = task.cpu_micro_batch if self.device.type == "cpu" else None
        self.micro = config.micro_batch or cached or self.share.stop - self.share.start
        self.waiting: list[tuple[Tensor, Tensor]] = []  # losses and gradient norms still on the device
        whole = self.ranks.count == 1 and self.micro >= self.share.stop - self.share.start
        self.captured = Captured(EAGER_STEPS) if self.device.type == "cuda" and whole and task.capturable else None

    def run(self) -> list[dict[str, float]]:
        """Train to the end. Returns the history."""
        optim, name = self.optim, self.job.instance
        workers = self._data_workers()
        state = self.ranks.on_rank_0(self._take_over)
        state.load(self.model, self.adam, self.scaler)
        start, self.history = state.step, state.history
        self.job.output.earlier = state.seconds
        del state
        if start:
            say(f"{name}: resumes at step {start} of {optim.steps}")
        self.watch = Watch(self.job.output, start)
        self.module = data_parallel(Loss(self.task), self.ranks, unused_parameters=self.task.unused_parameters)
        if not self.history.rows:
            self._measure(0)
        batches = StepBatches(len(self.task.train), optim.batch_size, self.config.seed, start, optim.steps, self.share)
        loader = iter(_loader(self.task.train, batches, workers, self.device))
        with _lost_workers(self.who), progress(name, optim.steps, "steps", start) as bar:
            self.model.train()
            self.watch.restart_clock(start)
            for step in range(start, optim.steps):
                self.watchdog.doing(f"waiting for the batch of step {step}")
                with self.watch.waiting():
                    batch = _next(loader)
                self.watchdog.doing(f"in step {step}, computing or in the all-reduce of its gradients")
                self._train(batch, step)
                self._after(step + 1)
                bar.advance(note=f"held-out loss {self.history.rows[-1]['heldout_loss']:.4f}")
        self.watchdog.doing("publishing what was watched")
        self.ranks.on_rank_0(self._finish)
        return self.history.rows

    def _data_workers(self) -> int:
        """How many processes load batches; by default no more than fit into free shared memory.

        Raises ConfigError if it is too small for the number requested: a worker that finds no room waits forever.
        """
        wanted, ranks = self.config.loader_workers, 1
        if self.device.type == "cuda":
            ranks = max(1, torch.cuda.device_count())  # one per GPU
            wanted = min(8, max(1, cores() // ranks)) if wanted is None else wanted
        if not wanted or not SHARED_MEMORY.is_dir():
            return wanted or 0
        rows = self.share.stop - self.share.start
        size = sum(PAGE * -(-tensor.nbytes * rows // PAGE) for tensor in self.task.train[[0]].values())
        free = shutil.disk_usage(SHARED_MEMORY).free // min(ranks, self.ranks.count)
        fit = max(0, int((free - LOCKS) / max(1, size) - IN_HAND) // PREFETCHED)
        if fit >= wanted:
            return wanted
        few = (
            f"{self.who}: {wanted} data workers hand over {PREFETCHED * wanted + IN_HAND} batches of {size / 1e6:,.2f} MB in "
            f"{SHARED_MEMORY}, which has {free / 1e6:,.2f} MB free for them"
        )
        if self.config.loader_workers is not None:
            option = f"--set {self.job.output.stage}.loader-workers={fit}"
            raise ConfigError(f"{few}: make it larger (docker run --shm-size 2g), or {option}")
        say(f"{few}: there are {fit} workers instead")
        return fit

    def _train(self, batch: Batch, step: int) -> None:
        """One optimizer step, together with all ranks."""
        for group, peak in zip(self.adam.param_groups, self.peaks, strict=True):
            group["lr"] = learning_rate(step, peak, self.optim)
        try:
            loss = self._captured(batch, step) if self.captured else self._backward(_to(batch, self.device), step)
        except torch.OutOfMemoryError:
            loss = None  # search for a size that fits only once the exception, which holds the tensors, is gone
        if loss is None:
            raise ConfigError(self._out_of_memory(batch, step))
        self.vote = self.ranks.vote(SIGNALS.index(self.job.stop.signal))
        self.scaler.unscale_(self.adam)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.optim.clip or math.inf)
        self.scaler.step(self.adam)
        self.scaler.update()
        if not (self.captured and self.captured.graph):  # which overwrites its gradients in place
            self.adam.zero_grad()
        self.waiting.append((loss, norm))

    def _captured(self, batch: Batch, step: int) -> Tensor:
        """As `_backward`; once captured, by a graph of all its kernels, which launches them faster than Python can."""
        assert self.captured is not None
        seed = step_seed(self.config.seed, step, self.share.start)
        return self.captured(_to(batch, self.device), seed, lambda batch: self._backward(batch, step))

    def _backward(self, batch: Batch, step: int) -> Tensor:
        """Gradients of the global batch's mean loss, by micro-batches. Returns this rank's part of the loss.

        Ranks synchronize in their last micro-batch. DDP averages their gradients, so each contributes its part times the number
        of ranks.
        """
        size, module = self.share.stop - self.share.start, self.module
        total = torch.zeros((), device=self.device)
        for first in range(0, size, self.micro):
            last = min(first + self.micro, size)
            piece = {name: tensor[first:last] for name, tensor in batch.items()}
            part = (last - first) / self.optim.batch_size
            with module.no_sync() if last < size and isinstance(module, DistributedDataParallel) else nullcontext():
                with self._noise(step, self.share.start + first, self.share.start + last), self._autocast():
                    loss = module(piece, step)
                self.scaler.scale(loss * (part * self.ranks.count)).backward()
            total += loss.detach().float() * part
        return total

    def _after(self, done: int) -> None:
        """What is due after `done` steps: checking the losses, a held-out measurement, a checkpoint, a stop."""
        config, steps = self.config, self.optim.steps
        if self.ranks.rank == 0:
            self.task.after_step(done)
        self.watchdog.doing(f"waiting for the other ranks after step {done - 1}")
        self.stop = Stop(SIGNALS[self.vote()])
        measuring = done % config.heldout_every == 0 or done == steps
        saving = done < steps and (done % config.checkpoint_every == 0 or self.stop.signal is not None)
        if measuring or saving or len(self.waiting) == LOOK_EVERY:
            self._look(done)
        if measuring:
            self._measure(done)
            saving = done < steps and (saving or self.history.best_step == done)
        if saving:
            self._save(done)
        if measuring or saving:
            self.watch.restart_clock(done)

    def _look(self, done: int) -> None:
        """Fetch the losses of the steps before `done`, and stop at the first that is not finite."""
        values = torch.stack([torch.stack(pair) for pair in self.waiting]).double().cpu()
        losses = self.ranks.all_reduce(values[:, 0].contiguous()).tolist()
        norms = values[:, 1].tolist()
        if self.scaler.is_enabled():  # loss scaling skips steps whose gradients are not finite
            norms = [norm if math.isfinite(norm) else 0.0 for norm in norms]
        for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), done - len(losses)):
            self._require_finite(loss, "loss", number)
            self._require_finite(norm, "norm of the gradients", number)
            self.history.count(loss, norm)
        self.waiting.clear()
        if self.ranks.rank == 0:
            flops = self.task.sample_flops and self.task.sample_flops * self.optim.batch_size / self.ranks.count
            shown = {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}
            shown |= {"lr": learning_rate(done - 1, self.peaks[0], self.optim), **self.task.watched(done - 1)}
            self.watch.log(done, self.optim.batch_size, flops, self.device, **shown)

    @torch.no_grad()
    def _measure(self, step: int) -> None:
        """Mean held-out loss over a fixed sample of clips, spread over all of them and divided among the ranks."""
        self.model.eval()
        clips = spread(len(self.task.heldout), self.config.heldout_batches * self.optim.batch_size)
        mine = clips[self.ranks.share(len(clips))]
        total = torch.zeros((), dtype=torch.float64)
        for first in range(0, len(mine), self.micro):
            self.watchdog.doing(f"measuring the held-out loss after {step} steps")
            chosen = mine[first : first + self.micro]
            with self._autocast():
                total += self.task.heldout_loss(_to(self.task.heldout[chosen], self.device)).item() * len(chosen)
        loss = self.ranks.all_reduce(total).item() / len(clips)
        self._require_finite(loss, "held-out loss", step)
        rate = learning_rate(min(step, self.optim.steps - 1), self.peaks[0], self.optim)
        beside: dict[str, float] = {}
        if self.ranks.rank == 0:
            few = _to(self.task.heldout[clips[:PICTURED]], self.device)
            with self._autocast():
                beside = self.task.measures()
                self.watch.measured(step, {"heldout_loss": loss, **beside}, self.task.picture(few))
        self.history.close_row(step=step, lr=rate, heldout_loss=loss, **beside)
        self.model.train()

    def _save(self, done: int) -> None:
        """Hand the state to the background; if the job was asked to stop, wait until the state is stored, then stop."""
        self.watchdog.doing(f"saving the state after step {done - 1}")

        def save() -> None:
            state = State.of(done, self.history, self.model, self.adam, self.scaler)
            state.seconds = self.job.output.seconds
            segment = self.watch.take(done)
            self.checkpoints.save(state, also=lambda: segment.store(self.job.output))
            if self.stop.signal is not None:
                self.checkpoints.wait()
                self.stop.check()

        self.ranks.on_rank_0(save)

    def _take_over(self) -> State:
        state = self.checkpoints.take_over()
        forget_after(self.job.output, state.step)
        return state

    def _finish(self) -> None:
        self.checkpoints.wait()
        self.watch.publish(self.watch.take(self.optim.steps))

    def _require_finite(self, loss: float, what: str, step: int) -> None:
        if not math.isfinite(loss):
            self.checkpoints.wait()
            name, last = self.job.instance, self.checkpoints.last
            good = "none yet" if last is None else f"step {last} in {self.checkpoints.where}"
            error = NonFiniteLoss(
                f"{name}: the {what} is {loss} at step {step}; last good checkpoint: {good}. "
                f"Lower {name}'s optim.lr or set its precision to fp32"
            )
            error.quiet = self.ranks.rank > 0
            raise error

    def _out_of_memory(self, batch: Batch, step: int) -> str:
        """The error for a micro-batch that does not fit, with the largest that does, found by trying."""
        size = smaller = min(self.micro, self.share.stop - self.share.start)
        option = f"--set {self.job.output.stage}.micro-batch"
        while smaller := smaller // 2:
            self.adam.zero_grad()
            torch.cuda.empty_cache()
            with suppress(torch.OutOfMemoryError), self._autocast():
                loss = self.task.loss(_to({key: tensor[:smaller] for key, tensor in batch.items()}, self.device), step)
                torch.autograd.grad(loss, self.parameters, allow_unused=True)  # without DDP's hooks
                return f"{self.who}: {size} samples at a time do not fit into memory, {smaller} do: {option}={smaller}"
        return f"{self.who}: not even one sample fits into memory; use a smaller model or a larger device"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    @contextmanager
    def _noise(self, step: int, first: int, last: int) -> Iterator[None]:
        """Noise for samples `first` to `last` - 1 of the global batch of a step.

        On a CPU it does not depend on how the batch is split. A GPU's kernels draw their own, from one seed per micro-batch.
        """
        seed = self.config.seed
        if self.device.type == "cuda":
            if not torch.cuda.is_current_stream_capturing():  # a graph uses the seed set when it is replayed
                torch.manual_seed(step_seed(seed, step, first))
            yield
            return
        torch.manual_seed(step_seed(seed, step, first))
        with sample_noise([step_seed(seed, step, position) for position in range(first, last)]):
            yield


def load_best(model: nn.Module, rows: list[dict[str, float]], job: Job) -> dict[str, float]:
    """Load into a model, on the CPU, the weights with the lowest held-out loss; returns their row. Raises DataError if gone."""
    best = best_row(rows)
    if best is not rows[-1]:
        tensors = best_weights(job.output, int(best["step"]))
        if tensors is None:
            raise DataError(
                f"{job.output.prefix}: the checkpoint of step {best['step']}, the best one, is gone: --force trains again"
            )
        model.load_state_dict(tensors)
    return best


def publish_weights(
    model: nn.Module,
    kind: str,
    sizes: dict[str, Any],
    rows: list[dict[str, float]],
    job: Job,
    kept: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Store the trained weights, any better ones from an earlier step, and the history as files of the artifact.

    kept: the row whose weights the model has; default: the last. Returns the headline metrics.
    """
    best, kept = best_row(rows), kept or rows[-1]

    def publish() -> None:
        files = {name: job.output.scratch / name for name in (WEIGHTS, HISTORY)}
        save_weights(files[WEIGHTS], model.cpu(), kind, sizes)
        files[HISTORY].write_text(json.dumps(rows), encoding="utf-8")
        if best is not kept and (tensors := best_weights(job.output, int(best["step"]))):
            files[BEST] = job.output.scratch / BEST
            best_model = copy.deepcopy(model)
            best_model.load_state_dict(tensors)
            save_weights(files[BEST], best_model, kind, sizes)
        job.output.add_part("training", files)

    job.ranks.on_rank_0(publish)
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": rows[-1]["step"],
        "heldout_loss_before": rows[0]["heldout_loss"],
        "heldout_loss": kept["heldout_loss"],
        "best_heldout_loss": best["heldout_loss"],
        "best_step": best["step"],
    }


def _loader(clips: Clips, batches: StepBatches, workers: int, device: torch.device) -> Iterable[Batch]:
    return DataLoader(
        cast(Any, clips),
        sampler=batches,
        batch_size=None,  # a "sample" is a whole batch: the sampler yields its clip numbers
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=False,
        prefetch_factor=PREFETCHED if workers else None,
        worker_init_fn=_only_its_parent_ends_it,
    )


@contextmanager
def _lost_workers(who: str) -> Iterator[None]:
    """A data worker that was killed, which torch raises as a RuntimeError wherever the rank is, is a reason to try again."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TransientError(
            f"{who}: a data worker was killed, for want of memory perhaps (fewer loader-workers need less); the same command "
            f"resumes from the last checkpoint ({' '.join(str(error).split())})"
        ) from error


def _next(batches: Iterator[Batch]) -> Batch:
    """The next batch. A DataError of a data worker, which comes with its traceback, is as clear as it was there."""
    try:
        return next(batches)
    except DataError as error:
        raise DataError(str(error).rpartition(f"{DataError.__module__}.{DataError.__name__}: ")[2].strip()) from error


def _only_its_parent_ends_it(_: int) -> None:
    """In a data worker: signals for the whole group (Ctrl-C, `timeout`) are for the parent, which saves and ends it."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _precision(wanted: str, device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    if wanted == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
