"""`regress`: predictions by regressions on slots, and on inputs that need none: pixels, tokens, true states, the scenario
alone.

Everything is learned on the readout videos; from the test videos it reads only features, never a label. `evaluate` measures how
good its predictions are.

Shapes: N videos, T frames, F features, H W pixels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from physion.config.schema import LARGEST, PLACE, Regress
from physion.data.clips import from_unit, to_unit
from physion.data.layout import Video
from physion.data.shards import FrameShards, Shards
from physion.data.split import family
from physion.data.truth import AGENT, PATIENT, TruthShards
from physion.job import Job
from physion.models.regression import Answerer, Kind, concatenated, fit, pooled
from physion.models.slots import red_and_yellow
from physion.models.weights import load_model
from physion.progress import progress
from physion.training.engine import WEIGHTS
from physion.training.precision import arithmetic

ANSWERS = "answers.csv"
FITS = "fits.json"
SIDE = 32  # pixels per side, each the mean of the pixels it stands for
Features = Callable[[str], np.ndarray]  # from a video's name to [T, F]
POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pooled": pooled, "concatenated": concatenated}


@dataclass(frozen=True)
class Variant:
    """One way to predict from the same features; `scope` is `all` scenarios together, or `each` separately."""

    kind: Kind
    pooling: str
    scope: str

    @property
    def name(self) -> str:
        """Such as logistic-pooled-all."""
        return f"{self.kind}-{self.pooling}-{self.scope}"


def run(job: Job) -> dict[str, Any]:
    """Fit every variant on the readout videos, choose one by its folds, predict for the test videos."""
    config: Regress = job.config
    on = str(job.params["on"])
    dvae = load_model(job.inputs["dvae"].path(WEIGHTS), "dvae") if "dvae" in job.inputs else None
    source = _Source(on, job.settings["frames"], config.stride, job.settings.get("places", 0), dvae)
    readout, test = (source.open(job.inputs[subset]) for subset in ("readout", "test"))
    scenarios = sorted({video.scenario for video in readout[0]})
    variants = source.variants()
    features = [_stacked(videos, of, scenarios if on == "scenario" else ()) for videos, of in (readout, test)]
    fits: dict[str, Any] = {}
    columns: dict[str, np.ndarray] = {}
    with progress(job.instance, len(variants), "fits") as bar:
        for variant in variants:
            job.stop.check()
            learn, answer = (POOLINGS[variant.pooling](each) for each in features)
            columns[variant.name], fits[variant.name] = _answers(variant, learn, readout[0], answer, test[0], config.seed)
            bar.advance()
    chosen = max(variants, key=lambda variant: fits[variant.name]["cross_validated"] or 0.0).name
    files = {ANSWERS: _csv(test[0], columns), FITS: json.dumps({"chosen": chosen, "variants": fits}, indent=1)}
    local: dict[str, Path] = {name: job.output.scratch / name for name in files}
    for name, path in local.items():
        path.write_text(files[name], encoding="utf-8")
    job.output.add_part("answers", local)
    return {"chosen": chosen, "cross_validated": fits[chosen]["cross_validated"], "videos": len(readout[0])}


@dataclass(frozen=True)
class _Source:
    """The input of a regression, and how to read it: every `stride`-th of the first `frames` frames.

    places: in how many coordinates slots say their place.
    """

    on: str
    frames: int
    stride: int
    places: int
    dvae: Any = None

    def variants(self) -> list[Variant]:
        """All ways to predict from it, the simplest first."""
        if self.on in ("label-prior", "scenario"):
            return [Variant("logistic", "pooled", "all")]
        kinds: list[Kind] = ["logistic", "trees"] if self.on.startswith(("states", "picture", "places")) else ["logistic"]
        poolings = ["pooled"] if self.on == "first-frame" else list(POOLINGS)
        return [Variant(kind, pooling, scope) for kind in kinds for pooling in poolings for scope in ("all", "each")]

    def open(self, artifact: Any) -> tuple[list[Video], Features]:
        """The videos of an artifact, and a function that reads the features of one."""
        rows = slice(0, self.frames, self.stride)
        if self.on in ("label-prior", "scenario"):
            return Shards(artifact).videos, lambda video: np.empty((1, 0), np.float32)
        if self.on.startswith(("states", "picture")):
            truth, known = TruthShards(artifact), states if self.on.startswith("states") else in_picture
            return truth.videos, lambda video: known(truth, video, rows)
        if self.on.startswith(("slots", "places")):
            slots, seen = Shards(artifact), slice(0, self.frames)
            if self.places:
                return slots.videos, lambda video: places(slots.slots(video, seen), self.places)[:: self.stride]
            return slots.videos, lambda video: slots.slots(video, rows).reshape(len(range(self.frames)[rows]), -1)
        frames = FrameShards(artifact)
        return frames.videos, lambda video: pixels(frames, video, rows, self.dvae)


def pixels(frames: FrameShards, video: str, rows: slice, dvae: Any = None) -> np.ndarray:
    """Some frames of a video, or what a dVAE draws from their tokens, downscaled: float32 [T, SIDE * SIDE * 3], 0 to 1."""
    images = np.concatenate([frames.images(video, start, 1) for start in range(rows.start, rows.stop, rows.step)])
    if dvae is not None:
        with torch.inference_mode(), arithmetic(torch.float32, threads=1):
            tokens, _ = dvae.most_likely(to_unit(torch.from_numpy(images).permute(0, 3, 1, 2)))
            images = from_unit(dvae.decode_tokens(tokens).numpy())
    side = min(SIDE, images.shape[1])
    edges = np.arange(side) * images.shape[1] // side
    small = np.add.reduceat(np.add.reduceat(images.astype(np.float32), edges, 1), edges, 2)
    areas = np.diff(edges, append=images.shape[1])
    means: np.ndarray = small / (255 * np.outer(areas, areas)[..., None])
    return means.reshape(len(images), -1).astype(np.float32)


def states(truth: TruthShards, video: str, rows: slice) -> np.ndarray:
    """Agent and patient in some frames: float32 [T, 29].

    Place and velocities of each; the vector from agent to patient, its length, and the smallest so far; the size of each.
    """
    every = truth.states(video)[: rows.stop]
    agent, patient = every[:, AGENT], every[:, PATIENT]
    apart = patient[:, :3] - agent[:, :3]
    distance = np.linalg.norm(apart, axis=1, keepdims=True)
    sizes = np.tile([*truth.scenes[video].bodies[AGENT].size, *truth.scenes[video].bodies[PATIENT].size], (len(every), 1))
    moving = [np.delete(body, range(3, 7), axis=1) for body in (agent, patient)]
    columns = [*moving, apart, distance, np.minimum.accumulate(distance), sizes]
    return np.concatenate(columns, 1)[rows].astype(np.float32)


def in_picture(truth: TruthShards, video: str, rows: slice) -> np.ndarray:
    """Agent and patient as the camera sees them, without depth, in some frames: float32 [T, 12].

    Place and velocity of each in the picture; the vector from agent to patient, its length, and the smallest so far.
    """
    place_T22 = truth.picture(video)[: rows.stop, [AGENT, PATIENT], :2]
    velocity_T22, apart_T2, distance_T1 = _moving(place_T22)
    both = [each.reshape(len(each), 4) for each in (place_T22, velocity_T22)]
    return np.concatenate([*both, apart_T2, distance_T1, np.minimum.accumulate(distance_T1)], 1)[rows].astype(np.float32)


def places(slots_TSD: np.ndarray, coordinates: int) -> np.ndarray:
    """Red and yellow in all frames, as their slots say it: float32 [T, 7P + 4] for P coordinates.

    Place and velocity of each, extents; the vector between them, its length, and the widest gap of any coordinate; of both the
    smallest so far.
    """
    named_T2D = red_and_yellow(torch.from_numpy(slots_TSD)[None], coordinates)[0].numpy()
    place_T2P = named_T2D[..., -2 * coordinates : -coordinates] / PLACE
    extent_T2P = np.exp(named_T2D[..., -coordinates:].clip(max=LARGEST))
    velocity_T2P, apart_TP, distance_T1 = _moving(place_T2P)
    gap_T1 = (np.abs(apart_TP) - extent_T2P.sum(1)).max(1, keepdims=True)
    of_each = [each.reshape(len(each), -1) for each in (place_T2P, velocity_T2P, extent_T2P)]
    columns = [*of_each, apart_TP, distance_T1, gap_T1, *(np.minimum.accumulate(each) for each in (distance_T1, gap_T1))]
    return np.concatenate(columns, 1).astype(np.float32)


def _moving(place_T2P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of two things: their velocities [T, 2, P], the vector from the first to the second [T, P], and its length [T, 1]."""
    apart_TP = place_T2P[:, 1] - place_T2P[:, 0]
    return np.diff(place_T2P, axis=0, prepend=place_T2P[:1]), apart_TP, np.linalg.norm(apart_TP, axis=1, keepdims=True)


def _stacked(videos: Sequence[Video], features: Features, scenarios: Sequence[str]) -> np.ndarray:
    """Float [N, T, F], with an added column for each scenario."""
    found = np.stack([features(video.name) for video in videos])
    of = np.array([[video.scenario == name for name in scenarios] for video in videos]).reshape(len(videos), 1, len(scenarios))
    return np.concatenate([found, np.repeat(of, found.shape[1], 1).astype(found.dtype)], 2)


def _answers(
    variant: Variant, learn: np.ndarray, readout: Sequence[Video], answer: np.ndarray, test: Sequence[Video], seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Probabilities for the test videos [N], and facts about the fit."""
    of_readout, of_test = (np.array([video.scenario for video in videos]) for videos in (readout, test))
    labels, families = np.array([bool(video.label) for video in readout]), np.array([family(v.name) for v in readout])
    probabilities = np.full(len(test), labels.mean())
    fitted: dict[str, Answerer] = {}
    right = videos = 0.0
    for scope in ["all"] if variant.scope == "all" else sorted(set(of_readout.tolist())):
        mine, asked = (np.full(len(of), True) if scope == "all" else of == scope for of in (of_readout, of_test))
        fitted[scope] = fit(variant.kind, learn[mine], labels[mine], families[mine].tolist(), seed)
        if asked.any():
            probabilities[asked] = fitted[scope](answer[asked])
        if (share := fitted[scope].cross_validated) is not None:
            right, videos = right + share * mine.sum(), videos + mine.sum()
    return probabilities, {
        "features": learn.shape[1],
        "cross_validated": right / videos if videos else None,
        "strength": {scope: each.strength for scope, each in fitted.items()},
    }


def read_answers(path: Path, videos: Sequence[str]) -> dict[str, np.ndarray]:
    """The probabilities of these videos by variant, float64 [N]."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row.pop("video"): row for row in csv.DictReader(file)}
    return {variant: np.array([float(rows[video][variant]) for video in videos]) for variant in next(iter(rows.values()))}


def _csv(videos: Sequence[Video], columns: dict[str, np.ndarray]) -> str:
    """answers.csv: a row for each test video, a column for each variant."""
    rows = [["video", *columns]]
    rows += [[video.name, *(f"{p[number]:.6f}" for p in columns.values())] for number, video in enumerate(videos)]
    return "".join(",".join(row) + "\n" for row in rows)
