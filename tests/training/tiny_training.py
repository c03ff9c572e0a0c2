"""A training of a few parameters with everything the real ones have: groups, dropout, clipping, held-out measures."""

import os
import signal
from pathlib import Path

import torch
from torch import nn

from physion.config.schema import Optim, TrainingStage
from physion.job import Job, Stop
from physion.store.artifacts import ArtifactWriter
from physion.store.local import LocalStore
from physion.training.engine import Task, fit, initial_model, publish_weights

FINGERPRINT = "f" * 20
STEPS = 24


class Points:
    """Points of a plane and which side of a curve they lie on."""

    def __init__(self, seed, count):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 2, generator=generator)
        self.y = (self.x[:, 0].sin() > self.x[:, 1]).float()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, clips):
        return {"x": self.x[list(clips)], "y": self.y[list(clips)]}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.LayerNorm(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.body(x)).squeeze(-1)


class TinyTask(Task):
    def __init__(self, at_step=None):
        self.model = initial_model(3, Network)
        self.train, self.heldout = Points(0, 37), Points(1, 11)
        self.at_step = at_step or (lambda step: None)

    def groups(self, optim):
        return [(list(self.model.body.parameters()), optim.lr), (list(self.model.head.parameters()), 3 * optim.lr)]

    def loss(self, batch, step):
        if self.model.training:
            self.at_step(step)
        return nn.functional.binary_cross_entropy_with_logits(self.model(batch["x"]), batch["y"])


def settings(**changes):
    optim = Optim(**({"lr": 1e-2, "batch_size": 5, "steps": STEPS, "clip": 0.5} | changes.pop("optim", {})))
    return TrainingStage(**({"optim": optim, "heldout_every": 5, "heldout_batches": 1, "checkpoint_every": 4} | changes))


def make_job(store, stop=None):
    """A job with its output in a store, or in a folder."""
    store = LocalStore(Path(store)) if isinstance(store, str | Path) else store
    output = ArtifactWriter(store, "train-dvae", FINGERPRINT)
    return Job("train-dvae", None, {}, output, stop=stop or Stop())


def train(store, *, task=None, stop=None, **changes):
    """Train and publish in a store, or the one in a folder. Returns the rows and the bytes of the weights file."""
    task, job = task or TinyTask(), make_job(store, stop)
    rows = fit(task, settings(**changes), job)
    publish_weights(task.model, "readout", {}, rows, job)
    return rows, job.output.store.read(f"{job.output.prefix}/weights.safetensors")


def checkpoints(root):
    """Its checkpoints, the newest last."""
    return sorted(Path(root).glob("artifacts/train-dvae/*/checkpoints/*"))


def steps_of(root):
    return [int(path.name.split("-")[1]) for path in checkpoints(root)]


def die_at(step):
    def at_step(now):
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_step


def train_until(root, step):
    """Train, and die by SIGKILL in the middle of a step."""
    train(root, task=TinyTask(die_at(step)))
