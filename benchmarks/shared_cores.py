"""OpenMP that sleeps while it waits against OpenMP that spins, alone and beside another busy process:
python benchmarks/shared_cores.py
"""

import os
import statistics
import subprocess
import sys

STEP = """
import time, torch
from physion.config.schema import STEVEModel
from physion.models.steve import STEVE
torch.manual_seed(0)
model = STEVE(STEVEModel(slot_size=32, slot_mlp=64, encoder_channels=16, predictor_layers=1, decoder_layers=1), 64, 256).eval()
video = torch.rand(8, 30, 3, 64, 64)
with torch.inference_mode():
    model.encode(video[:, :3])
    started = time.perf_counter()
    model.encode(video)
print(240 / (time.perf_counter() - started))
"""


def rate(policy):
    out = subprocess.run(
        [sys.executable, "-c", STEP], env=os.environ | {"OMP_WAIT_POLICY": policy}, capture_output=True, check=True
    )
    return float(out.stdout)


def main():
    print("| other busy processes | passive, frames/s | active, frames/s | ratio |\n|---|---|---|---|")
    for others in (0, 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            rounds = [(rate("passive"), rate("active")) for _ in range(2)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
        passive, active = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(p / a for p, a in rounds)
        print(f"| {others} | {passive:.0f} | {active:.0f} | {ratio:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
