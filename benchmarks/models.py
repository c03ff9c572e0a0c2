"""The models' fast paths against plain twins, at published sizes, interleaved in one run: python benchmarks/models.py"""

import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import nn
from torch.nn import functional as F

from physion.config.schema import DVAEModel, SlotFormerModel, STEVEModel
from physion.models.dvae import DVAE
from physion.models.noise import dropout
from physion.models.readout import Readout
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE

ROUNDS = 5


def compare(name, fast, plain):
    """Print the medians of both and the median of the ratios of neighbouring runs."""
    fast(), plain()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        fast()
        middle = time.perf_counter()
        plain()
        times.append((middle - started, time.perf_counter() - middle))
    ratio = statistics.median(slow / quick for quick, slow in times)
    quick, slow = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"| {name} | {quick * 1000:.1f} | {slow * 1000:.1f} | {ratio:.1f}x |", flush=True)


@torch.no_grad()
def main():
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| what | fast, ms | plain, ms | ratio |\n|---|---|---|---|")
    dvae = DVAE(DVAEModel()).eval()
    tokens = torch.randint(4096, (8, 32, 32))
    one_hot = F.one_hot(tokens, 4096).permute(0, 3, 1, 2).float()
    compare(
        "dVAE: decode 8 images from tokens, against one-hot codes",
        lambda: dvae.decode_tokens(tokens),
        lambda: dvae.decode(one_hot),
    )

    readout = Readout(6, 192).eval()
    slots = torch.randn(64, 75, 6, 192)
    first, second = torch.triu_indices(6, 6, 1)

    def pairs():
        hidden = readout.linear1(torch.cat([slots[:, :, first], slots[:, :, second]], -1)).amax(2)
        return readout.linear2(hidden).squeeze(-1).amax(1)

    compare("readout: 64 videos, against every pair", lambda: readout(slots), pairs)

    slotformer = SlotFormer(SlotFormerModel(), 6, 192).eval()
    observed = torch.randn(4, 45, 6, 192)
    compare(
        "SlotFormer: 4 videos to frame 75, the offsets in one batch, against one by one",
        lambda: slotformer.rollout_video(observed, 75),
        lambda: [slotformer.predict(observed[:, offset::3], 10) for offset in range(3)],
    )

    steve = STEVE(STEVEModel(decoder_layers=2), 64, 512).eval()
    some = torch.randn(4, 6, 192)

    def again_and_again():
        drawn = torch.zeros(4, 1, 256, dtype=torch.long)
        for position in range(256):
            drawn[:, 0, position] = steve.logits(some[:, None], drawn)[:, 0, position].argmax(-1)

    compare(
        "STEVE: 4 frames of 256 tokens with kept keys, against a full pass a token",
        lambda: steve.generate(some),
        again_and_again,
    )

    maps = torch.rand(4, 1024, 1024)
    torch_dropout = nn.Dropout(0.1).train()
    compare("dropout of a 4 x 1024 x 1024 map, against torch's", lambda: dropout(maps, 0.1), lambda: torch_dropout(maps))


if __name__ == "__main__":
    main()
