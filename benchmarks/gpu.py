"""Ours against the published arithmetic on one GPU, at published sizes: python benchmarks/gpu.py [row ...] [--json FILE]

The rows of published.py at sizes that fill a GPU; the published extraction and rollout take one video at a time. Trainings: in
float32, with TF32, in bf16, and ours compiled; a step is the whole step: forward, backward, clipping, Adam. `MFU` counts the
published model's products against the data sheet's bf16 peak; `first` is the first call, with what is compiled in it. On a CPU
it shows that it runs: python benchmarks/gpu.py --smoke
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from published import ROWS

from physion.training.engine import EAGER_STEPS
from physion.training.precision import arithmetic
from physion.training.watching import peak_flops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# ours; published: a GPU's part of the published batch, or one video
SIZES = {
    "train_dvae": ({"batch": 64}, {"batch": 64}),
    "tokenize": ({"batch": 256}, {"batch": 150}),
    "train_steve": ({"batch": 48}, {"batch": 12}),
    "extract_slots": ({"videos": 64}, {"videos": 1, "frames": 150}),
    "train_slotformer": ({"batch": 128}, {"batch": 128}),
    "rollout": ({"videos": 64}, {"videos": 1}),
    "train_readout": ({"batch": 64}, {"batch": 64}),
}
SMOKE = {
    "train_dvae": {"batch": 1}, "tokenize": {"batch": 1}, "train_steve": {"batch": 1, "frames": 2},
    "extract_slots": {"videos": 1, "frames": 2}, "train_slotformer": {"batch": 1, "frames": 17}, "rollout": {"videos": 1},
    "train_readout": {"batch": 2},
}  # fmt: skip
BF16, TF32, FP32 = torch.bfloat16, "tf32", torch.float32


def synchronize():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(call, precision, budget):
    """Median seconds of a call, and the memory that it takes beyond what is there before, in MiB."""
    half = precision == BF16

    def once():
        with torch.autocast(DEVICE.type, precision) if half else nullcontext():
            call()
        synchronize()

    cuda = DEVICE.type == "cuda"
    with arithmetic(FP32 if precision == FP32 else BF16):
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        once()
        first = time.perf_counter() - started
        for _ in range(EAGER_STEPS if cuda else 0):  # the last one is captured
            once()
        times, stop = [], time.perf_counter() + budget
        while not times or (time.perf_counter() < stop and len(times) < 50):
            started = time.perf_counter()
            once()
            times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    return statistics.median(times), peak / 2**20, first


def variants(name):
    """Label, whose, precision and whether compiled. In the order of what a table is read by: the published float32 first."""
    training = name.startswith("train")
    yield "published, fp32", "published", FP32, False
    yield "published, tf32", "published", TF32, False
    if training:
        yield "published, bf16", "published", BF16, False
    yield "ours, fp32", "ours", FP32, False
    yield "ours, bf16" if training else "ours, tf32", "ours", BF16 if training else TF32, False
    if training and DEVICE.type == "cuda":
        yield "ours, bf16, compiled", "ours", BF16, True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measure")
    parser.add_argument("--only", help="only labels with this in them")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name_of_device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name_of_device}\n", flush=True)
    print(
        "| work | variant | rate | of published fp32 | ms a call | memory, MiB | MFU | first call, s |\n" + "|---" * 8 + "|",
        flush=True,
    )
    found = []
    for name in options.rows or ROWS:
        base = None
        for label, whose, precision, compiled in variants(name):
            if options.only and options.only not in label:
                continue
            torch.manual_seed(0)
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
            sizes = SMOKE[name] if options.smoke else SIZES[name][whose == "published"]
            try:
                work = ROWS[name](DEVICE, **sizes, **({"compiled": True} if compiled else {}))
                seconds, memory, first = timed(getattr(work, whose), precision, options.seconds)
            except (torch.OutOfMemoryError, RuntimeError, TypeError) as error:
                print(f"| {name} | {label} | {type(error).__name__}: {str(error)[:200]} |", flush=True)
                continue
            rate = work.amount / seconds
            base = base or rate
            peak = peak_flops(DEVICE)
            mfu = rate * work.flops / peak if peak else 0
            row = {
                "work": name,
                "variant": label,
                "rate": rate,
                "unit": work.unit,
                "ratio": rate / base,
                "seconds": seconds,
                "memory_mib": memory,
                "mfu": mfu,
                "first_s": first,
            }
            found.append(row)
            cells = [f"{rate:.4g} {work.unit}/s", f"{rate / base:.1f}x", f"{seconds * 1e3:.2f}", f"{memory:.0f}"]
            print(f"| {' | '.join([name, label, *cells, f'{mfu:.1%}', f'{first:.1f}'])} |", flush=True)
            del work
            if options.json:
                options.json.write_text(
                    json.dumps({"device": name_of_device, "torch": torch.__version__, "rows": found}, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
