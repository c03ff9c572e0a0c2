"""What checkpoints and per-sample noise cost a training step on a CPU: python benchmarks/training.py

Checkpoints: the time that training is blocked, and the CPU time that the background takes (which on a GPU machine it has to
spare), as a share of the steps between two of them at the default interval. Noise: steps with a generator a sample, against
steps with torch's global one, interleaved.
"""

import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from physion.config.load import load_config
from physion.config.schema import TrainingStage
from physion.models.dvae import DVAE
from physion.models.noise import sample_noise
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE
from physion.store.artifacts import ArtifactWriter
from physion.store.local import LocalStore
from physion.training.checkpoints import Checkpoints, History, State

ROUNDS = 7
INTERVAL = TrainingStage.model_fields["checkpoint_every"].default


def trainings(preset, batch):
    """Each model of a preset with a function that computes its loss on random data of `batch` samples."""
    config = load_config(preset)
    size = config.frames.image_size
    dvae, steve, slotformer = config.train_dvae, config.train_steve, config.train_slotformer
    images = torch.rand(batch, steve.clip_frames, 3, size, size) * 2 - 1
    tokens = torch.randint(dvae.model.codes, (batch, steve.clip_frames, (size // 4) ** 2))
    slots = torch.randn(batch, slotformer.model.burn_in + slotformer.rollout_frames, steve.model.slots, steve.model.slot_size)
    model = DVAE(dvae.model)
    yield "dVAE", model, lambda model=model: model.loss(images[:, 0], 1.0)
    model = STEVE(steve.model, size, dvae.model.codes)
    yield "STEVE", model, lambda model=model: model.loss(model.encode(images).slots, tokens)
    model = SlotFormer(slotformer.model, steve.model.slots, steve.model.slot_size)
    yield "SlotFormer", model, lambda model=model: model.loss(slots)


def step(model, adam, loss, noise):
    """Seconds of a training step."""
    started = time.perf_counter()
    with noise:
        loss().backward()
    adam.step()
    adam.zero_grad()
    return time.perf_counter() - started


class Timed(Checkpoints):
    background = 0.0

    def _save(self, state, also):
        began = time.thread_time()
        super()._save(state, also)
        self.background = time.thread_time() - began


def checkpoint(model, adam):
    """Size of a checkpoint in MB, seconds that training is blocked by it, CPU seconds in the background: medians."""
    with tempfile.TemporaryDirectory() as folder, Timed(ArtifactWriter(LocalStore(Path(folder)), "train", "f")) as checkpoints:
        checkpoints.take_over()
        times = []
        for number in range(ROUNDS):
            started = time.perf_counter()
            checkpoints.save(State.of(number, History(), model, adam, torch.amp.GradScaler("cpu", enabled=False)))
            blocked = time.perf_counter() - started
            checkpoints.wait()
            times.append((blocked, checkpoints.background))
        megabytes = max(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / 1e6
    return megabytes, *(statistics.median(column) for column in zip(*times, strict=True))


def main():
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, a checkpoint every {INTERVAL} steps\n")
    print("| sizes | model | batch | step, ms | per-sample noise | checkpoint, MB | blocked, ms | background, ms | cost |")
    print("|---|---|---|---|---|---|---|---|---|")
    for preset, batch in (("tiny", 4), ("paper", 1)):
        for name, model, loss in trainings(preset, batch):
            adam = torch.optim.Adam(model.parameters(), fused=True)
            step(model, adam, loss, nullcontext())
            pairs = [
                (step(model, adam, loss, sample_noise(range(batch))), step(model, adam, loss, nullcontext()))
                for _ in range(ROUNDS)
            ]
            ratio = statistics.median(by_sample / plain for by_sample, plain in pairs)
            took = statistics.median(by_sample for by_sample, _ in pairs)
            megabytes, blocked, background = checkpoint(model, adam)
            cost = (blocked + background) / (INTERVAL * took)
            print(
                f"| {preset} | {name} | {batch} | {took * 1000:.0f} | {ratio:.2f}x | {megabytes:.1f} | {blocked * 1000:.1f} "
                f"| {background * 1000:.1f} | {cost:.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
