"""Ours against the published arithmetic on a CPU, interleaved, at published sizes: python benchmarks/published.py [row ...]

In float32; benchmarks/gpu.py is for GPUs. The plain models are in published_models.py, with the same weights. `limit` is
the rate at which the multiply-adds that the published model needs would take as long as those of a large product of float32
matrices, measured in the same run. `memory` is how much a process that does one of the two grows from before the first step to
its peak in the second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from published_models import PublishedDVAE, PublishedReadout, PublishedSlotFormer, PublishedSTEVE

from physion.config.load import load_config
from physion.data.clips import to_unit
from physion.models import flops
from physion.models.dvae import DVAE
from physion.models.noise import sample_noise
from physion.models.readout import Readout
from physion.models.slotformer import SlotFormer
from physion.models.slots import encode_video
from physion.models.steve import STEVE
from physion.stages.train_dvae import CACHED, DVAETask
from physion.stages.train_readout import ReadoutTask
from physion.stages.train_slotformer import SlotFormerTask
from physion.stages.train_steve import STEVETask
from physion.training.captured import Captured
from physion.training.engine import EAGER_STEPS

CONFIG = load_config("paper")
CODES, PIXELS, SLOTS, WIDTH = CONFIG.train_dvae.model.codes, CONFIG.frames.image_size, 6, 192
FRAME_FLOPS = flops.slots_flops(CONFIG.train_steve.model, PIXELS)
STEP_FLOPS = flops.predict_flops(CONFIG.train_slotformer.model, SLOTS, WIDTH)
OBSERVED, VIDEO = 45, 150


class Work(NamedTuple):
    """The same work, done in two ways."""

    unit: str
    amount: int  # units a call
    flops: float  # a unit, of the published models' products
    ours: Callable[[], object]
    published: Callable[[], object]


def same_weights(ours, published, device):
    published.load_state_dict(ours.state_dict())
    if device.type == "cuda":  # as the engine does
        ours.to(memory_format=torch.channels_last)
    return ours.to(device), published.to(device)


def task(kind, model, compiled=False, **facts):
    """A stage's task, of which only the loss is asked."""
    made = kind.__new__(kind)
    vars(made).update(model=model, **facts)
    if compiled:
        made.compile()
    return made


def step(model, loss, pieces, device, rates, clip=None, own_noise=False, captured=False, **adam):
    """A training step. pieces: ranges of samples, its micro-batches; own_noise: by sample, as in the engine on a CPU."""
    decoder = {id(p) for p in model.trans_decoder.parameters()} if hasattr(model, "trans_decoder") else set()
    parts = [[p for p in model.parameters() if (id(p) in decoder) == inside] for inside in (False, True)]
    groups = [{"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=False)]
    optimizer = torch.optim.Adam(groups, **adam)
    graph = Captured(EAGER_STEPS) if captured and device.type == "cuda" else None
    model.train()

    def backward(_, autocast):
        for piece in pieces:
            with (
                sample_noise(piece) if own_noise else nullcontext(),
                torch.autocast(device.type, autocast, enabled=autocast is not None),
            ):
                value = loss(piece) / len(pieces)
            value.backward()
        return value.detach()

    def run():
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        with torch.autocast(device.type, enabled=False):
            if graph is None:
                backward({}, autocast)
            else:
                graph({}, 0, lambda batch: backward(batch, autocast))
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if graph is None or graph.graph is None:
                optimizer.zero_grad()

    return run


def both_steps(trained, published, batch, loss, device, rates, clip=None, **tensors):
    """Steps of ours, by its task, and of the published model. tensors: a batch of the task."""
    cpu = device.type == "cpu"
    micro = (trained.cpu_micro_batch if cpu else None) or batch
    pieces = [range(first, min(first + micro, batch)) for first in range(0, batch, micro)]

    def our_loss(piece):
        return trained.loss({name: tensor[piece.start : piece.stop] for name, tensor in tensors.items()}, 0)

    ours = step(trained.model, our_loss, pieces, device, rates, clip, cpu, trained.capturable, fused=True)
    return ours, step(published, lambda _: loss(), [range(batch)], device, rates, clip)


def images_of(device, *shape):
    """Random pixels, uint8, and the same in [-1, 1]."""
    pixels = torch.randint(256, (*shape, 3, PIXELS, PIXELS), dtype=torch.uint8, device=device)
    return pixels, to_unit(pixels)


def train_dvae(device, batch=8, compiled=False):
    ours, published = same_weights(DVAE(CONFIG.train_dvae.model), PublishedDVAE(), device)
    pixels, images = images_of(device, batch)
    trained = task(DVAETask, ours, compiled, config=CONFIG.train_dvae, cpu_micro_batch=max(1, CACHED // PIXELS**2))
    loss = lambda: published.loss(images, 1.0)  # noqa: E731
    steps = both_steps(trained, published, batch, loss, device, [1e-3], images=pixels[:, None])
    return Work("images", batch, 3 * flops.reconstruct_flops(CONFIG.train_dvae.model, PIXELS), *steps)


def tokenize(device, batch=32):
    ours, published = same_weights(DVAE(CONFIG.train_dvae.model), PublishedDVAE(), device)
    _, images = images_of(device, batch)
    needed = flops.encode_flops(CONFIG.train_dvae.model, PIXELS)
    return Work("images", batch, needed, *inference(lambda: ours.tokenize(images), lambda: published.tokenize(images)))


def train_steve(device, batch=1, frames=6, compiled=False):
    ours, published = same_weights(STEVE(CONFIG.train_steve.model, PIXELS, CODES), PublishedSTEVE(), device)
    pixels, video = images_of(device, batch, frames)
    tokens = torch.randint(CODES, (batch, frames, 1024), device=device)
    trained = task(STEVETask, ours, compiled)
    loss = lambda: published.loss(published.encode(video)[0], tokens)  # noqa: E731
    steps = both_steps(trained, published, batch, loss, device, [1e-4, 3e-4], 0.05, images=pixels, tokens=tokens)
    needed = 3 * (FRAME_FLOPS + flops.tokens_flops(CONFIG.train_steve.model, PIXELS, CODES))
    return Work("frames", batch * frames, needed, *steps)


def extract_slots(device, videos=4, frames=30):
    ours, published = same_weights(STEVE(CONFIG.train_steve.model, PIXELS, CODES), PublishedSTEVE(), device)
    ours.eval(), published.eval()
    _, video = images_of(device, videos, frames)
    calls = inference(lambda: list(encode_video(ours, [video])), lambda: published.encode(video))
    return Work("frames", videos * frames, FRAME_FLOPS, *calls)


def train_slotformer(device, batch=16, frames=25, compiled=False):
    ours, published = same_weights(SlotFormer(CONFIG.train_slotformer.model, SLOTS, WIDTH), PublishedSlotFormer(), device)
    clip = torch.randn(batch, frames, SLOTS, WIDTH, device=device)
    trained = task(SlotFormerTask, ours, compiled)
    steps = both_steps(trained, published, batch, lambda: published.loss(clip), device, [2e-4], slots=clip)
    return Work("clips", batch, 3 * (frames - 15) * STEP_FLOPS, *steps)


def rollout(device, videos=4):
    """All at once; the published code takes one at a time."""
    ours, published = same_weights(SlotFormer(CONFIG.train_slotformer.model, SLOTS, WIDTH), PublishedSlotFormer(), device)
    ours.eval(), published.eval()
    observed = torch.randn(videos, OBSERVED, SLOTS, WIDTH, device=device)
    calls = inference(
        lambda: ours.rollout_video(observed, VIDEO),
        lambda: [published.rollout_video(video[None], VIDEO) for video in observed],
    )
    return Work("videos", videos, (VIDEO - OBSERVED) * STEP_FLOPS, *calls)


def train_readout(device, batch=64, frames=75, compiled=False):
    ours, published = same_weights(Readout(SLOTS, WIDTH), PublishedReadout(), device)
    slots, labels = torch.randn(batch, frames, SLOTS, WIDTH, device=device), torch.randint(2, (batch,), device=device).float()
    trained = task(ReadoutTask, ours, compiled, capturable=True)
    loss = lambda: F.binary_cross_entropy_with_logits(published(slots), labels)  # noqa: E731
    steps = both_steps(trained, published, batch, loss, device, [1e-3], slots=slots, labels=labels)
    return Work("videos", batch, 3 * frames * flops.readout_flops(SLOTS, WIDTH), *steps)


def inference(*calls):
    return map(torch.inference_mode(), calls)


WORKS = train_dvae, tokenize, train_steve, extract_slots, train_slotformer, rollout, train_readout
ROWS = {work.__name__: work for work in WORKS}


def seconds(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare(work, rounds):
    """Time both and a product of matrices in turns. Returns the row."""
    a, b = torch.randn(2, 2048, 2048)
    work.ours(), work.published(), a @ b
    times = [(seconds(work.ours), seconds(work.published), seconds(lambda: a @ b)) for _ in range(rounds)]
    ours, published, product = (statistics.median(column) for column in zip(*times, strict=True))
    peak = 2 * 2048**3 / product
    return {
        "unit": work.unit, "ours": work.amount / ours, "published": work.amount / published,
        "ratio": statistics.median(slow / quick for quick, slow, _ in times),
        "gflops": peak / 1e9, "limit": peak / work.flops, "share": work.amount / ours * work.flops / peak,
    }  # fmt: skip


def grown_by(call):
    """How much memory two calls take in this process at their peak, in MiB."""

    def kib(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = kib("VmRSS")
    call(), call()
    return (kib("VmHWM") - before) / 1024


def memory(name, whose):
    """The same in a process of its own."""
    command = [sys.executable, __file__, name, "--memory", whose]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--memory", choices=("ours", "published"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.memory:
        print(grown_by(getattr(ROWS[options.rows[0]](torch.device("cpu")), options.memory)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {options.rounds}\n")
    print("| work | published | ours | ratio | limit | share of it | memory, MiB: published | ours |\n" + "|---" * 8 + "|")
    table = {}
    for name in options.rows or ROWS:
        row = compare(ROWS[name](torch.device("cpu")), options.rounds)
        row |= {f"{whose}_memory": memory(name, whose) for whose in ("published", "ours")}
        table[name] = row
        rates = f"{row['published']:.3g} {row['unit']}/s | {row['ours']:.3g} | {row['ratio']:.1f}x"
        limit = f"{row['limit']:.3g} | {row['share']:.0%}"
        print(f"| {name} | {rates} | {limit} | {row['published_memory']:.0f} | {row['ours_memory']:.0f} |", flush=True)
    if options.json:
        rows = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": options.rounds, "rows": table}
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
