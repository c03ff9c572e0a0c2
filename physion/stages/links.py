"""Measures the links of the chain before the answer, for `evaluate`, on whole videos.

Shapes: N videos, T frames, B bodies, S slots, D slot size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from physion.config.schema import Evaluate
from physion.data.clips import to_unit
from physion.data.layout import Video
from physion.data.order import spread
from physion.data.shards import FrameShards, Shards
from physion.data.split import family
from physion.data.truth import AGENT, PATIENT, TruthShards
from physion.job import Job
from physion.models.probes import probe
from physion.models.slots import SlotModel, masks_of, see_video
from physion.progress import progress
from physion.report.binding import best_slots, measure_slots, norms, overlaps_in
from physion.report.metrics import complement, over_videos
from physion.training.engine import best_device

AT_ONCE = 4  # videos that the model sees: on a CPU twice as fast as one, and more are no faster
PROBED = 5  # probes are trained and evaluated on every PROBED-th frame
BODIES = {"agent": AGENT, "patient": PATIENT}
SPACES = {"picture": slice(0, 2), "room": slice(2, 5)}  # columns of places: fractions of the picture's side, and meters


@dataclass(frozen=True)
class Seen:
    """A video as the slot model sees it: slots [T, S, D]; with ground truth, overlaps with bodies [T, 1 + B, S]."""

    video: Video
    slots: np.ndarray
    overlap: np.ndarray | None


def look_at_sets(job: Job, config: Evaluate, model: SlotModel | None) -> dict[str, tuple[list[Seen], TruthShards | None]]:
    """Some test videos, with their extracted slots, and some that were held out from the slot model's training.

    Without a model there are no masks, so the slots are not compared with the ground truth.
    """
    sets = {"test": ("frames", "dataset"), "heldout": ("heldout", "heldout-dataset")}
    found = {}
    for name, (role, known_by) in sets.items():
        if role not in job.inputs:
            continue
        frames, truth = FrameShards(job.inputs[role]), TruthShards.of(job.inputs.get(known_by) if model else None)
        videos = frames.videos if name == "test" else frames.select(heldout=True)
        chosen = [videos[number] for number in spread(len(videos), config.measured_videos)]
        slots = Shards(job.inputs["slots"]) if name == "test" else None
        found[name] = look(job, model, frames, chosen, truth, slots), truth
    return found


@torch.inference_mode()
def look(
    job: Job,
    model: SlotModel | None,
    frames: FrameShards,
    videos: Sequence[Video],
    truth: TruthShards | None,
    slots: Shards | None,
) -> list[Seen]:
    """Run the model on videos; extracted slots are used if given."""
    found, device = [], best_device()
    with progress(f"{job.instance}: slots", len(videos), "videos") as bar:
        for first in range(0, len(videos), AT_ONCE):
            job.stop.check()
            few = videos[first : first + AT_ONCE]
            arrays = None if slots is None else np.stack([slots.slots(video.name) for video in few])
            masks, clips = None, partial(_clips, frames, few, device)
            if model is not None and arrays is None:
                seen, masks = see_video(model, clips(), frames.image_size)
                arrays = seen.numpy()
            elif model is not None and truth is not None:
                masks = masks_of(model, torch.from_numpy(arrays).to(device), clips, frames.image_size)
            assert arrays is not None
            for number, video in enumerate(few):
                overlap = None
                if truth is not None and masks is not None:
                    overlap = overlaps_in(truth, video.name, masks[number].numpy())
                found.append(Seen(video, arrays[number], overlap))
            bar.advance(len(few))
    return found


def _clips(frames: FrameShards, videos: Sequence[Video], device: torch.device) -> torch.Tensor:
    """All frames of some videos, [B, T, 3, H, W]."""
    images = np.stack([frames.images(video.name, 0, frames.video_frames) for video in videos])
    return to_unit(torch.from_numpy(images).movedim(-1, 2).to(device))


def slot_numbers(seen: Sequence[Seen], truth: TruthShards | None, config: Evaluate) -> dict[str, Any]:
    """`measure_slots` and the slots' mean length in each frame, over all videos; with ground truth, the probes' results too."""
    measured = [measure_slots(each.slots, each.overlap) for each in seen]
    scenarios = [each.video.scenario for each in seen]
    found: dict[str, Any] = {"videos": len(seen), "slots": seen[0].slots.shape[1], "truth": truth is not None}
    for name in dict.fromkeys(name for one in measured for name in one):
        there = np.array([name in one for one in measured])
        values = np.array([one.get(name, 0.0) for one in measured])
        found[name] = over_videos(values, there, scenarios, config.resamples, config.seed)
    found["norm"] = np.mean([norms(each.slots) for each in seen], 0).tolist()
    if truth is not None:
        found["probes"] = {name: _probed(seen, truth, body, config) for name, body in BODIES.items()}
    return found


@dataclass(frozen=True)
class Asked:
    """A body as probes see it in every PROBED-th frame: its places [N, T, 5] in the picture and in the room.

    Also the index of the slot `best` for it among slots [N, T, S, D], by its mask, and whether it is visible, [N, T].
    """

    slots: np.ndarray
    best: np.ndarray
    there: np.ndarray
    places: np.ndarray
    families: list[str]

    @staticmethod
    def of(body: int, seen: Sequence[Seen], truth: TruthShards) -> Asked:
        """Combine the videos."""
        bound = [best_slots(each.overlap[::PROBED]) for each in seen if each.overlap is not None]
        best, there = (np.stack([each[which][:, body] for each in bound]) for which in (0, 2))
        rows = slice(0, len(seen[0].slots), PROBED)
        picture = np.stack([truth.picture(each.video.name)[rows, body, :2] for each in seen])
        room = np.stack([truth.states(each.video.name)[rows, body, :3] for each in seen])
        slots = np.stack([each.slots[::PROBED] for each in seen])
        places = np.concatenate([picture, room], -1).astype(np.float64)
        return Asked(slots, best, there, places, [family(each.video.name) for each in seen])


def _probed(seen: Sequence[Seen], truth: TruthShards, body: int, config: Evaluate) -> dict[str, Any]:
    """How well a body's place can be read from the slot that fits it best, and from one that is picked without its mask."""
    asked = Asked.of(body, seen, truth)
    said = probe(asked.slots, asked.best, asked.places, asked.there, asked.families)
    scenarios = [each.video.scenario for each in seen]
    return {
        way: {space: _fit(where[..., axes], asked.places[..., axes], scenarios, config) for space, axes in SPACES.items()}
        for way, where in said.items()
    }


def _fit(said_NTK: np.ndarray, places_NTK: np.ndarray, scenarios: Sequence[str], config: Evaluate) -> dict[str, Any]:
    """R2 (0: no better than always predicting the mean place) with its interval, and the median distance, where evaluated."""
    asked = np.isfinite(said_NTK).all(-1)
    if not asked.any():
        return {"r2": None, "median_error": None}
    wrong = np.where(asked, ((said_NTK - places_NTK) ** 2).sum(-1), 0.0)
    apart = np.where(asked, ((places_NTK - places_NTK[asked].mean(0)) ** 2).sum(-1), 0.0)
    share = over_videos(wrong.sum(1), apart.sum(1), scenarios, config.resamples, config.seed)
    return {"r2": complement(share), "median_error": float(np.median(np.sqrt(wrong[asked])))}
