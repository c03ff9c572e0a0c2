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
from physion.models import flops
from physion.models.dvae import DVAE
from physion.models.noise import sample_noise
from physion.models.readout import Readout
from physion.models.slotformer import SlotFormer
from physion.models.slots import encode_video
from physion.models.steve import STEVE
from physion.stages.train_dvae import CACHED

CONFIG = load_config("paper")
CODES, PIXELS, SLOTS, WIDTH = CONFIG.train_dvae.model.codes, CONFIG.frames.image_size, 6, 192
FRAME_FLOPS = flops.slots_flops(CONFIG.train_steve.model, PIXELS)
STEP_FLOPS = flops.predict_flops(CONFIG.train_slotformer.model, SLOTS, WIDTH)
OBSERVED, VIDEO, TAU = 45, 150, 0.5


class Work(NamedTuple):
    """The same work, done in two ways."""

    unit: str
    amount: int  # units a call
    flops: float  # a unit, of the published models' products
    ours: Callable[[], object]
    published: Callable[[], object]


def same_weights(ours, published, device):
    published.load_state_dict(ours.state_dict())
    return ours.to(device), published.to(device)


def step(model, groups, loss, clip=None, samples=None, **adam):
    """A training step. samples: of the batch, whose noise is each one's own, as the engine has it on a CPU."""
    optimizer = torch.optim.Adam([{"params": list(params), "lr": lr} for params, lr in groups], **adam)
    model.train()

    def run():
        with sample_noise(range(samples)) if samples else nullcontext():
            value = loss()
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        return value

    return run


def both_steps(models, losses, lr, batch, device, clip=None):
    """Steps of ours and of the published model. lr: the peak rate, and that of STEVE's decoder."""

    def groups(model):
        decoder = {id(p) for p in model.trans_decoder.parameters()} if hasattr(model, "trans_decoder") else set()
        parts = [[p for p in model.parameters() if (id(p) in decoder) == inside] for inside in (False, True)]
        return [(part, rate) for part, rate in zip(parts, lr, strict=False) if part]

    samples = batch if device.type == "cpu" else None
    ours = step(models[0], groups(models[0]), losses[0], clip, samples, fused=True)
    return ours, step(models[1], groups(models[1]), losses[1], clip)


def train_dvae(device, batch=8):
    ours, published = same_weights(DVAE(CONFIG.train_dvae.model), PublishedDVAE(), device)
    images = torch.rand(batch, 3, PIXELS, PIXELS, device=device) * 2 - 1
    losses = (lambda: in_parts(lambda part: ours.loss(part, TAU), images)), (lambda: published.loss(images, TAU))
    steps = both_steps((ours, published), losses, [1e-3], batch, device)
    return Work("images", batch, 3 * flops.reconstruct_flops(CONFIG.train_dvae.model, PIXELS), *steps)


def in_parts(loss, images):
    """The mean loss of micro-batches, as the engine has them of the dVAE on a CPU; the last one's backward pass is left."""
    parts = images.split(max(1, CACHED // PIXELS**2) if images.device.type == "cpu" else len(images))
    for number, part in enumerate(parts, 1):
        with sample_noise(range(len(part))):
            value = loss(part) / len(parts)
        if number < len(parts):
            value.backward()
    return value


def tokenize(device, batch=32):
    ours, published = same_weights(DVAE(CONFIG.train_dvae.model), PublishedDVAE(), device)
    images = torch.rand(batch, 3, PIXELS, PIXELS, device=device) * 2 - 1
    needed = flops.encode_flops(CONFIG.train_dvae.model, PIXELS)
    return Work("images", batch, needed, *inference(lambda: ours.tokenize(images), lambda: published.tokenize(images)))


def train_steve(device, batch=1, frames=6):
    ours, published = same_weights(STEVE(CONFIG.train_steve.model, PIXELS, CODES), PublishedSTEVE(), device)
    video = torch.rand(batch, frames, 3, PIXELS, PIXELS, device=device) * 2 - 1
    tokens = torch.randint(CODES, (batch, frames, 1024), device=device)
    losses = (
        lambda: ours.loss(ours.encode(video).slots, tokens),
        lambda: published.loss(published.encode(video)[0], tokens),
    )
    steps = both_steps((ours, published), losses, [1e-4, 3e-4], batch, device, clip=0.05)
    needed = 3 * (FRAME_FLOPS + flops.tokens_flops(CONFIG.train_steve.model, PIXELS, CODES))
    return Work("frames", batch * frames, needed, *steps)


def extract_slots(device, videos=4, frames=30):
    ours, published = same_weights(STEVE(CONFIG.train_steve.model, PIXELS, CODES), PublishedSTEVE(), device)
    ours.eval(), published.eval()
    video = torch.rand(videos, frames, 3, PIXELS, PIXELS, device=device) * 2 - 1
    calls = inference(lambda: list(encode_video(ours, [video])), lambda: published.encode(video))
    return Work("frames", videos * frames, FRAME_FLOPS, *calls)


def train_slotformer(device, batch=16, frames=25):
    ours, published = same_weights(SlotFormer(CONFIG.train_slotformer.model, SLOTS, WIDTH), PublishedSlotFormer(), device)
    clip = torch.randn(batch, frames, SLOTS, WIDTH, device=device)
    steps = both_steps((ours, published), ((lambda: ours.loss(clip)), (lambda: published.loss(clip))), [2e-4], batch, device)
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


def train_readout(device, batch=64, frames=75):
    ours, published = same_weights(Readout(SLOTS, WIDTH), PublishedReadout(), device)
    slots, labels = torch.randn(batch, frames, SLOTS, WIDTH, device=device), torch.randint(2, (batch,), device=device).float()
    losses = [lambda model=model: F.binary_cross_entropy_with_logits(model(slots), labels) for model in (ours, published)]
    steps = both_steps((ours, published), losses, [1e-3], batch, device)
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
