"""Monitoring of a running training: JSON lines and TensorBoard events, with pictures.

What was gathered since the last checkpoint is stored with the next one, as a segment below `live/` in the artifact, so a run
that was killed resumes at its checkpoint without gaps or duplicates. When the training ends, the segments become
`metrics.jsonl`, one events file and the last picture.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from physion.report.pictures import png
from physion.store.artifacts import ArtifactWriter

SEGMENT = re.compile(r"\d{8,18}-(?P<last>\d{8,18})\.(jsonl|tfevents|png)")
METRICS, EVENTS, PICTURE = "metrics.jsonl", "events.tfevents", "picture.png"
# Dense peak FLOP/s in bf16 or fp16, from the vendor's data sheets; keyed by part of the device's name; the first match counts.
PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12,
    "A100": 312e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


class Watch:
    """Gathers what rank 0 observes of a training."""

    def __init__(self, output: ArtifactWriter, start: int) -> None:
        self._output = output
        self._first = start  # first step of the current segment
        self._rows: list[dict[str, float]] = []
        self._pictures: list[tuple[int, np.ndarray]] = []
        self._waited = 0.0
        self._lap, self._lap_step = time.monotonic(), start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def restart_clock(self, step: int) -> None:
        """Exclude from the rates what happened since the last row: held-out measurements, checkpoints."""
        self._lap, self._lap_step, self._waited = time.monotonic(), step, 0.0

    def log(self, step: int, batch: int, flops: float | None, device: torch.device, **values: float) -> None:
        """Add a row for the steps since the last one: `values` and the rates. flops: per step, on one device."""
        seconds, steps = time.monotonic() - self._lap, step - self._lap_step
        row = {"step": step, "time": round(time.time(), 3), **values}
        row |= {"samples_per_s": batch * steps / seconds, "data_wait": self._waited / seconds, "memory_gb": memory_gb(device)}
        if flops is not None and (peak := peak_flops(device)):
            row["mfu"] = flops * steps / seconds / peak
        self._rows.append(row)
        self.restart_clock(step)

    def measured(self, step: int, values: dict[str, float], picture: np.ndarray | None) -> None:
        """Add measurements on held-out clips, and a picture, uint8 [H, W, 3]."""
        self._rows.append({"step": step, "time": round(time.time(), 3), **values})
        if picture is not None:
            self._pictures.append((step, picture))

    def take(self, step: int) -> Segment:
        """End the segment with this step."""
        segment = Segment(self._first, step, self._rows, self._pictures)
        self._first, self._rows, self._pictures = step, [], []
        return segment

    def publish(self, last: Segment) -> None:
        """Join the segments into files of the artifact."""
        store, scratch = self._output.store, self._output.scratch
        last.store(self._output)
        files = {name: scratch / name for name in (METRICS, EVENTS, PICTURE)}
        for key in store.list(f"{self._output.prefix}/live"):
            data = store.read(key)
            if data is None:  # another run has just published
                continue
            if not SEGMENT.fullmatch(Path(key).name):
                continue
            path = files[{".jsonl": METRICS, ".tfevents": EVENTS, ".png": PICTURE}[Path(key).suffix]]
            with path.open("wb" if path.name == PICTURE else "ab") as file:
                file.write(data)
        self._output.add_part("watching", {name: path for name, path in files.items() if path.exists()})


class Segment:
    """What was gathered between two steps."""

    def __init__(self, first: int, last: int, rows: list[dict[str, float]], pictures: list[tuple[int, np.ndarray]]) -> None:
        self._name = f"{first:08d}-{last:08d}"
        self._rows, self._pictures = rows, pictures

    def store(self, output: ArtifactWriter) -> None:
        """Store the segment."""
        if not self._rows:
            return
        live = f"{output.prefix}/live"
        output.store.write(f"{live}/{self._name}.jsonl", "".join(json.dumps(row) + "\n" for row in self._rows).encode())
        output.store.write(f"{live}/{self._name}.tfevents", self._events(output.scratch / "events"))
        if self._pictures:
            output.store.write(f"{live}/{self._name}.png", png(self._pictures[-1][1]))

    def _events(self, folder: Path) -> bytes:
        from torch.utils.tensorboard import SummaryWriter  # takes more than a second

        with SummaryWriter(str(folder)) as writer:
            for row in self._rows:
                for name, value in row.items():
                    if name not in ("step", "time"):
                        writer.add_scalar(name, value, int(row["step"]), row["time"])
            for step, picture in self._pictures:
                writer.add_image("heldout", picture, step, dataformats="HWC")
        data = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
        shutil.rmtree(folder)
        return data


def forget_after(output: ArtifactWriter, step: int) -> None:
    """Remove the segments of a run that got further than its last checkpoint, from which another run resumes."""
    for key in output.store.list(f"{output.prefix}/live"):
        if (name := SEGMENT.fullmatch(Path(key).name)) and int(name["last"]) > step:
            output.store.delete(key)


def memory_gb(device: torch.device) -> float:
    """Peak memory in use, GB: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of the device in bf16 or fp16; None if unknown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)
