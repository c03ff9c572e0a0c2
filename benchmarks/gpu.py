"""Throughput and MFU of the four trainings on one GPU, by precision: python benchmarks/gpu.py [preset] [precision ...]

Published sizes and batches on random data, through the engine itself, so with its checkpoints, looks and transfers. On a CPU it
only shows that it runs: python benchmarks/gpu.py smoke fp32
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from physion.config.load import load_config
from physion.job import Job
from physion.models.dvae import DVAE
from physion.models.flops import decode_flops, encode_flops, predict_flops, slots_flops, tokens_flops
from physion.models.readout import Readout
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE
from physion.stages.train_dvae import DVAETask
from physion.stages.train_readout import ReadoutTask
from physion.stages.train_slotformer import SlotFormerTask
from physion.stages.train_steve import STEVETask
from physion.store.artifacts import ArtifactWriter
from physion.store.local import LocalStore
from physion.training.engine import LOOK_EVERY, Task, fit

STEPS = 3 * LOOK_EVERY  # the last row of metrics is of the last LOOK_EVERY


class RandomClips:
    """Any number of clips, all of the same random data."""

    def __init__(self, **clip):
        self.clip = clip

    def __len__(self):
        return 10_000

    def __getitem__(self, clips):
        return {name: tensor.expand(len(clips), *tensor.shape).contiguous() for name, tensor in self.clip.items()}


def task(kind, model, sample_flops, config=None, **clip) -> Task:
    """A stage's task on random data."""
    made = kind.__new__(kind)
    made.model, made.sample_flops, made.config = model, sample_flops, config
    made.train = made.heldout = RandomClips(**clip)
    return made


def tasks(config):
    """Section name and task of each training."""
    size, dvae, steve, former = config.frames.image_size, config.train_dvae, config.train_steve, config.train_slotformer
    frames = torch.randint(256, (steve.clip_frames, 3, size, size), dtype=torch.uint8)
    tokens = torch.randint(dvae.model.codes, (steve.clip_frames, (size // 4) ** 2))
    slots, width = steve.model.slots, steve.model.slot_size
    flops = 3 * (encode_flops(dvae.model, size) + decode_flops(dvae.model, size))
    yield "train_dvae", task(DVAETask, DVAE(dvae.model), flops, dvae, images=frames[:1])
    flops = 3 * steve.clip_frames * (slots_flops(steve.model, size) + tokens_flops(steve.model, size, dvae.model.codes))
    model = STEVE(steve.model, size, dvae.model.codes)
    yield "train_steve", task(STEVETask, model, flops, steve, images=frames, tokens=tokens)
    clip = torch.randn(former.model.burn_in + former.rollout_frames, slots, width)
    flops = 3 * former.rollout_frames * predict_flops(former.model, slots, width)
    yield "train_slotformer", task(SlotFormerTask, SlotFormer(former.model, slots, width), flops, slots=clip)
    video = torch.randn(config.train_readout.model.rollout, slots, width)
    yield "train_readout", task(ReadoutTask, Readout(slots, width), None, slots=video, labels=torch.tensor(1.0))


def main():
    preset, precisions = sys.argv[1] if len(sys.argv) > 1 else "paper", sys.argv[2:] or ["bf16", "fp16", "fp32"]
    config = load_config(preset)
    print(
        f"torch {torch.__version__}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}, preset {preset}\n"
    )
    print("| training | batch | precision | compiled | samples/s | MFU | memory, GB |\n|---|---|---|---|---|---|---|")
    for compiled in (False, True) if torch.cuda.is_available() else (False,):
        for precision in precisions:
            for name, trained in tasks(config):
                section = getattr(config, name)
                optim = section.optim.model_copy(update={"steps": STEPS})
                changes = {"optim": optim, "precision": precision, "heldout_batches": 1, "compile": compiled}
                with tempfile.TemporaryDirectory() as folder:
                    output = ArtifactWriter(LocalStore(Path(folder)), name, "f")
                    if torch.cuda.is_available():
                        torch.cuda.reset_peak_memory_stats()
                    fit(trained, section.model_copy(update=changes), Job(name, None, {}, output))
                    rows = map(json.loads, (output.store.read(f"{output.prefix}/metrics.jsonl") or b"").splitlines())
                    row = [row for row in rows if "samples_per_s" in row][-1]
                mfu = f"{row['mfu']:.1%}" if "mfu" in row else "-"
                print(
                    f"| {name} | {optim.batch_size} | {precision} | {'yes' if compiled else 'no'} | {row['samples_per_s']:.0f} "
                    f"| {mfu} | {row['memory_gb']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
