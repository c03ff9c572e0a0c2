"""The one training loop: Adam, warm-up and cosine, clipping, mixed precision, held-out loss, checkpoints, exact resume.

Everything random is a function of the step: clips come from (seed, step) by `StepBatches`, and the global generators are
seeded from (seed, step) before every step. A checkpoint therefore holds weights, optimizer moments and the step, and on a CPU a
run that was killed and resumed equals one that was not, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from physion.config.schema import Optim, TrainingStage
from physion.data.clips import Batch, Clips
from physion.data.order import StepBatches, spread
from physion.errors import DataError, PhysionError
from physion.models.weights import save_weights
from physion.progress import progress, say
from physion.stages import Job
from physion.training.checkpoints import Checkpoints

ModelT = TypeVar("ModelT", bound=nn.Module)
WEIGHTS = "weights.safetensors"
HISTORY = "history.json"
LOOK_EVERY = 50  # steps between transfers of the losses from the device, which is when a non-finite one is seen


class NonFiniteLoss(PhysionError):
    """The loss became NaN or infinite; training again from the same checkpoint would do the same."""

    exit_code = 3


class Task(ABC):
    """What one trained stage adds to the loop."""

    model: nn.Module
    train: Clips
    heldout: Clips

    def groups(self, optim: Optim) -> list[tuple[list[nn.Parameter], float]]:
        """Parameter groups with their peak learning rates."""
        return [([p for p in self.model.parameters() if p.requires_grad], optim.lr)]

    @abstractmethod
    def loss(self, batch: Batch, step: int) -> Tensor:
        """The training loss of a batch, a scalar."""

    def after_step(self, done: int) -> None:  # noqa: B027 (most tasks have nothing to do)
        """Called after each optimizer step, before a checkpoint of that step; `done` counts the steps made."""

    def heldout_loss(self, batch: Batch) -> Tensor:
        """The held-out loss of a batch, a scalar; the model is in eval mode."""
        return self.loss(batch, 0)


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def initial_model(seed: int, build: Callable[[], ModelT]) -> ModelT:
    """A model whose initial weights follow from the seed."""
    torch.manual_seed(step_seed(seed, -1))
    return build()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Run torch on `count` CPU threads inside, on as many as before outside; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learning_rate(step: int, peak: float, optim: Optim) -> float:
    """Learning rate in force at a step: linear from peak * final_lr, then half a cosine back to it."""
    low = peak * optim.final_lr
    warmup = optim.warmup * optim.steps
    if step < warmup:
        return low + (peak - low) * step / warmup
    return low + (peak - low) * (1 + math.cos(math.pi * (step - warmup) / (optim.steps - warmup))) / 2


def step_seed(seed: int, step: int) -> int:
    """Seed of the global generators for one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:7], "little")


def fit(task: Task, config: TrainingStage, job: Job) -> list[dict[str, float]]:
    """Train `task.model` in place, from the newest checkpoint where there is one.

    Returns the history: rows with step, lr, heldout_loss, and the mean loss and grad_norm since the row before.

    Raises NonFiniteLoss naming the step and the last good checkpoint; Preempted or Interrupted, with the state saved, when
    the job is asked to stop.
    """
    where = device()
    if not len(task.heldout) or not len(task.train):
        what = "is held out; raise" if len(task.train) else "is left to train on; lower"
        raise DataError(f"{job.instance}: no video {what} frames.heldout, or add videos")
    model = task.model.to(where)
    optim = config.optim
    groups = task.groups(optim)
    peaks = [peak for _, peak in groups]
    adam = torch.optim.Adam([{"params": params} for params, _ in groups], lr=1.0, fused=True)
    precision = _precision(config.precision, where)
    scaler = torch.amp.GradScaler(where.type, enabled=precision == torch.float16)
    checkpoints = Checkpoints(job.output)
    start, history = checkpoints.restore(model, adam, scaler)
    if start:
        say(f"{job.instance}: goes on from step {start} of {optim.steps}")
    waiting: list[tuple[Tensor, Tensor]] = []  # losses and gradient norms still on the device

    def require_finite(loss: float, what: str, step: int) -> None:
        if not math.isfinite(loss):
            last = "none yet" if checkpoints.last is None else f"step {checkpoints.last} in {checkpoints.where}"
            raise NonFiniteLoss(
                f"{job.instance}: the {what} is {loss} at step {step}; last good checkpoint: {last}. "
                f"Lower {job.instance}'s optim.lr or set its precision to fp32"
            )

    def look(step: int) -> None:
        """Fetch what the steps before `step` gave, and stop at the first loss that is not finite."""
        values = torch.stack([torch.stack(pair) for pair in waiting]).tolist() if waiting else []
        for number, (loss, norm) in enumerate(values, step - len(values)):
            require_finite(loss, "loss", number)
            history.count(loss, norm)
        waiting.clear()

    def measure(step: int) -> None:
        rate = learning_rate(min(step, optim.steps - 1), peaks[0], optim)
        loss = _heldout_loss(task, config, where, precision)
        require_finite(loss, "held-out loss", step)
        history.close_row(step=step, lr=rate, heldout_loss=loss)

    if not history.rows:
        measure(0)
    parameters = [p for params, _ in groups for p in params]
    batches = StepBatches(len(task.train), optim.batch_size, config.seed, start, optim.steps)
    with cpu_threads(config.threads), progress(job.instance, optim.steps, "steps", start) as bar:
        model.train()
        for step, batch in enumerate(_loader(task.train, batches, config, where), start):
            torch.manual_seed(step_seed(config.seed, step))
            for group, peak in zip(adam.param_groups, peaks, strict=True):
                group["lr"] = learning_rate(step, peak, optim)
            with torch.autocast(where.type, precision, enabled=precision != torch.float32):
                loss = task.loss(_to(batch, where), step)
            scaler.scale(loss).backward()
            scaler.unscale_(adam)
            norm = nn.utils.clip_grad_norm_(parameters, optim.clip or math.inf)
            scaler.step(adam)
            scaler.update()
            adam.zero_grad()
            waiting.append((loss.detach().float(), norm))
            done = step + 1
            task.after_step(done)
            measuring = done % config.heldout_every == 0 or done == optim.steps
            saving = done < optim.steps and (done % config.checkpoint_every == 0 or job.stop.signal is not None)
            if measuring or saving or len(waiting) == LOOK_EVERY:
                look(done)
            if measuring:
                measure(done)
                model.train()
            if saving:
                checkpoints.save(done, history, model, adam, scaler)
                job.stop.check()
            bar.advance(note=f"held-out loss {history.rows[-1]['heldout_loss']:.4f}")
    return history.rows


def publish_weights(
    model: nn.Module, kind: str, sizes: dict[str, Any], rows: list[dict[str, float]], job: Job
) -> dict[str, Any]:
    """Make the trained weights and the history the files of the artifact. Returns the headline metrics."""
    weights, history = job.output.scratch / WEIGHTS, job.output.scratch / HISTORY
    save_weights(weights, model.cpu(), kind, sizes)
    history.write_text(json.dumps(rows))
    job.output.add_part("training", {WEIGHTS: weights, HISTORY: history})
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": rows[-1]["step"],
        "heldout_loss_before": rows[0]["heldout_loss"],
        "heldout_loss": rows[-1]["heldout_loss"],
    }


@torch.no_grad()
def _heldout_loss(task: Task, config: TrainingStage, where: torch.device, precision: torch.dtype) -> float:
    """Mean held-out loss over a fixed sample of clips, spread over all of them."""
    task.model.eval()
    clips = spread(len(task.heldout), config.heldout_batches * config.optim.batch_size)
    total = 0.0
    for first in range(0, len(clips), config.optim.batch_size):
        chosen = clips[first : first + config.optim.batch_size]
        with torch.autocast(where.type, precision, enabled=precision != torch.float32):
            total += task.heldout_loss(_to(task.heldout[chosen], where)).item() * len(chosen)
    return total / len(clips)


def _loader(clips: Clips, batches: StepBatches, config: TrainingStage, where: torch.device) -> Iterable[Batch]:
    workers = config.loader_workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if where.type == "cuda" else 0
    return DataLoader(
        cast(Any, clips),
        sampler=batches,
        batch_size=None,  # a "sample" is a whole batch: the sampler yields its clip numbers
        num_workers=workers,
        pin_memory=where.type == "cuda",
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_interrupt,
    )


def _ignore_interrupt(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when loading ends


def _to(batch: Batch, where: torch.device) -> Batch:
    return {name: tensor.to(where, non_blocking=True) for name, tensor in batch.items()}


def _precision(wanted: str, where: torch.device) -> torch.dtype:
    if where.type == "cpu":
        return torch.float32
    if wanted == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
