"""`evaluate`: every readout on the test videos, once: metrics.json, plots and report.html."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from physion.config.schema import Evaluate
from physion.data.clips import LabelledSlots, from_unit, to_unit
from physion.data.layout import Video, left_out
from physion.data.shards import FrameShards, Shards
from physion.data.truth import TruthShards
from physion.data.video import write_mp4
from physion.job import Job
from physion.models.slots import SlotModel, masks_of
from physion.models.weights import load_model
from physion.progress import progress
from physion.report import pictures
from physion.report.html import TOKENS_STILL, ReportContext, VideoPanel, render_report
from physion.report.metrics import compare_modes, evaluate_predictions, headline, paired_p_value, paper_protocol
from physion.report.people import compare_with_people, read_people
from physion.report.plots import plot_accuracy, plot_reliability, plot_roc, plot_scenarios
from physion.report.verdicts import verdicts
from physion.stages.dynamics import measure_dynamics
from physion.stages.extract_slots import load_slot_model
from physion.stages.links import look_at_sets, slot_numbers
from physion.stages.regress import ANSWERS, FITS, read_answers
from physion.stages.train_readout import EPOCHS, predict
from physion.store.artifacts import Artifact
from physion.training.engine import HISTORY, WEIGHTS, best_device
from physion.training.precision import arithmetic

CLIP_SECONDS = 5.0
METRICS_VERSION = 1  # of the keys of metrics.json, docs/metrics.md: raise it when one is removed or changes meaning


@dataclass
class Predictions:
    """The readouts' predictions for the test videos, by feature mode; one row per readout, in the order of their seeds."""

    videos: list[Video]
    probabilities: dict[str, np.ndarray] = field(default_factory=dict)
    thresholds: dict[str, list[float]] = field(default_factory=dict)
    paper_protocol: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """The true labels, bool [videos]."""
        return np.array([bool(video.label) for video in self.videos])

    @property
    def described(self) -> tuple[list[str], list[str], np.ndarray]:
        """Name, scenario and label of each video, as metrics take them."""
        return [video.name for video in self.videos], [video.scenario for video in self.videos], self.labels

    @property
    def said(self) -> dict[str, tuple[np.ndarray, list[float]]]:
        """Probabilities and thresholds by feature mode, as metrics take them."""
        return {mode: (self.probabilities[mode], self.thresholds[mode]) for mode in self.probabilities}


def run(job: Job) -> dict[str, Any]:
    """Test, plot, write; metrics.json holds nothing that differs between two runs of the same study."""
    config: Evaluate = job.config
    predictions = _predict(job)
    metrics = _measure(config, predictions, job.inputs["dataset"])
    if config.people:
        metrics["people"] = _people(config, predictions)
    metrics["regressions"] = _regressions(config, job, predictions)
    model = load_slot_model(job.inputs) if "slot-model" in job.inputs else None
    with arithmetic(torch.float32):
        looked = look_at_sets(job, config, model)
        metrics["slots"] = {name: slot_numbers(seen, truth, config) for name, (seen, truth) in looked.items()}
        metrics["dynamics"] = measure_dynamics(job, config, *looked.pop("test"))
    dataset = job.inputs["dataset"].manifest
    panels, stills, metrics["pictures"] = _pictures(job, config, predictions, model) if config.videos else ([], {}, {})
    metrics["verdicts"] = verdicts(metrics)
    made_from = [artifact.manifest for artifact in job.inputs.values()]
    simulated = bool(dataset.metrics.get("simulated"))
    plots = _plots(metrics["modes"], predictions, simulated)
    report = render_report(
        ReportContext(
            headline=metrics["headline"],
            simulated=simulated,
            left_out=left_out(dataset.metrics),
            metrics=metrics["modes"],
            comparisons=metrics["comparisons"],
            regressions=metrics["regressions"],
            people=metrics.get("people", {}),
            slots=metrics["slots"],
            dynamics=metrics["dynamics"],
            verdicts=metrics["verdicts"],
            pictures=metrics["pictures"],
            paper_protocol=predictions.paper_protocol,
            plots=plots,
            videos=panels,
            stills=stills,
            histories=_histories(job),
            provenance=made_from,
            config_yaml=yaml.safe_dump({m.instance: m.config for m in made_from}, sort_keys=False, width=120),
        )
    )
    files = {"metrics.json": json.dumps(metrics, indent=1), "report.html": report, "predictions.csv": _csv(predictions)}
    files |= {f"{title.lower().replace(' ', '-')}.svg": svg for title, svg in plots.items()}
    local = {name: job.output.scratch / name for name in files}
    for name, path in local.items():
        path.write_text(files[name], encoding="utf-8")
    job.output.add_part("report", local)
    return {
        "headline": metrics["headline"],
        "test_videos": len(predictions.videos),
        **{f"accuracy_{mode}": facts["overall"]["accuracy"]["value"] for mode, facts in metrics["modes"].items()},
    }


def _predict(job: Job) -> Predictions:
    """Every readout on the test videos; each video is read once for all readouts of a mode."""
    shards = {role: Shards(job.inputs[role]) for role in ("slots", "rollouts")}
    found = Predictions(shards["slots"].videos)
    for mode, readouts in _readouts(job).items():
        test = LabelledSlots(
            shards["rollouts" if mode == "rollout" else "slots"], found.videos, int(readouts[0].number("metrics", "frames"))
        )
        candidates = [[WEIGHTS, *(name for name in readout.names() if name.startswith(EPOCHS))] for readout in readouts]
        models = {
            f"{r.manifest.instance} ({r.store.uri}/{r.prefix}/{n})": load_model(r.path(n))
            for r, names in zip(readouts, candidates, strict=True)
            for n in names
        }
        by_readout = np.split(predict(models, test), np.cumsum([len(names) for names in candidates])[:-1])
        found.probabilities[mode] = np.stack([p[0] for p in by_readout])
        # Readouts that were given have no epochs: each is the only candidate for its seed.
        epochs = np.stack([p[1:] if len(p) > 1 else p for p in by_readout])
        found.paper_protocol[mode] = paper_protocol(epochs, found.labels)
        found.thresholds[mode] = [readout.number("metrics", "threshold") for readout in readouts]
        job.stop.check()
    return found


def _measure(config: Evaluate, found: Predictions, dataset: Artifact) -> dict[str, Any]:
    """The numbers of metrics.json."""
    videos, said = found.described, found.said
    sampling: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    contacts = _first_contacts(dataset, found.videos)
    modes = {mode: evaluate_predictions(*videos, *said[mode], **sampling, first_contacts=contacts) for mode in said}
    comparisons = {}
    for less, more in itertools.combinations(modes, 2):
        difference = compare_modes(*videos, said[more], said[less], **sampling)
        p_value = paired_p_value(*videos, said[more], said[less], config.seed)
        comparisons[f"{more} - {less}"] = difference.as_json() | {"p_value": p_value}
    return {
        "version": METRICS_VERSION,
        "headline": headline(modes),
        "dataset": dataset.manifest.stage,
        "modes": modes,
        "comparisons": comparisons,
        "paper_protocol": found.paper_protocol,
    }


def _people(config: Evaluate, found: Predictions) -> dict[str, Any]:
    """People's answers to the same stimuli."""
    people, files = read_people(config.people)
    return compare_with_people(people, *found.described, found.said, config.resamples, config.seed) | {"files": files}


def _regressions(config: Evaluate, job: Job, found: Predictions) -> dict[str, Any]:
    """How good each regression's predictions are, by what they are from: every variant, and which one its folds chose."""
    names, scenarios = [video.name for video in found.videos], [video.scenario for video in found.videos]
    measured: dict[str, Any] = {}
    for artifact in job.inputs.values():
        if (on := artifact.manifest.params.get("on")) is None:
            continue
        fits = artifact.json(FITS)
        answers = read_answers(artifact.path(ANSWERS), names)
        measured[on] = {"command": f"physion stage regress --on {on}", "chosen": fits["chosen"], "variants": {}}
        for variant, fit in fits["variants"].items():
            scores = answers[variant][None]
            said = evaluate_predictions(names, scenarios, found.labels, scores, [0.5], config.resamples, config.seed)
            kept = {key: said[key] for key in ("n", "overall", "scenario_mean")}
            measured[on]["variants"][variant] = fit | kept
        job.stop.check()
    return measured


def _first_contacts(dataset: Artifact, videos: list[Video]) -> list[int | None] | None:
    """The frame of first contact of each video; None if the dataset has no ground truth."""
    truth = TruthShards.of(dataset)
    return None if truth is None else [truth.scenes[video.name].first_contact for video in videos]


def _plots(modes: Mapping[str, Any], found: Predictions, simulated: bool) -> dict[str, str]:
    """SVG by title."""
    plots = {"Accuracy": plot_accuracy(modes, simulated), "Accuracy by scenario": plot_scenarios(modes, simulated)}
    if 0 < found.labels.sum() < len(found.labels):
        plots["ROC curves"] = plot_roc(found.labels, found.probabilities)
    return plots | {"Reliability": plot_reliability(modes)}


def _csv(found: Predictions) -> str:
    """predictions.csv: a row for each test video."""
    columns = [f"{mode}-{number}" for mode, p in found.probabilities.items() for number in range(len(p))]
    rows = [["video", "scenario", "label", *columns]]
    for number, video in enumerate(found.videos):
        scores = [f"{score:.6f}" for p in found.probabilities.values() for score in p[:, number]]
        rows.append([video.name, video.scenario, str(bool(video.label)), *scores])
    return "".join(",".join(row) + "\n" for row in rows)


def _readouts(job: Job) -> dict[str, list[Artifact]]:
    """Readouts by feature mode, in the order of their seeds."""
    by_mode: dict[str, list[Artifact]] = {}
    for artifact in job.inputs.values():
        if features := artifact.manifest.params.get("features"):
            by_mode.setdefault(features, []).append(artifact)
    return by_mode


def _histories(job: Job) -> dict[str, Any]:
    """Loss curves of the trainings that the test depends on; for the readouts, those of each mode's first seed."""
    others = [artifact for artifact in job.inputs.values() if "features" not in artifact.manifest.params]
    first = [readouts[0] for readouts in _readouts(job).values()]
    return {a.manifest.instance: a.json(HISTORY) for a in [*others, *first] if HISTORY in a.names()}


@arithmetic(torch.float32)
@torch.inference_mode()
def _pictures(
    job: Job, config: Evaluate, found: Predictions, model: SlotModel | None
) -> tuple[list[VideoPanel], dict[str, bytes], dict[str, Any]]:
    """Videos with masks and decoded slots; stills of where the slots look and of the slot model's input; and how similar to the
    shown frames the `reconstructed` ones and the decoded `slots` and `rollouts` are.
    """
    frames = FrameShards(job.inputs["frames"])
    sources = {"true slots, decoded": "slots", "rollout, decoded (orange: predicted)": "rollouts"}
    shards = {caption: Shards(job.inputs[role]) for caption, role in sources.items()}
    device = best_device()
    total = frames.video_frames
    observed = job.inputs["rollouts"].number("identity", "config", "observed")
    shown = np.unique(np.linspace(0, total - 1, config.shown_frames).round().astype(int))
    predicted = [bool(frame >= observed) for frame in shown]
    middle = predicted.index(True) if any(predicted) else len(shown) - 1
    panels, inputs, reconstructions, slot_rows = [], [], [], []
    drawn: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    chosen = _spread_over_scenarios(found.videos, config.videos)
    with progress("pictures", len(chosen), "videos") as bar:
        for number in chosen:
            job.stop.check()
            video = found.videos[number]
            images = frames.images(video.name, 0, total)
            if model is None:
                panels.append(_panel(job, found, number, {"video": images[shown]}))
                bar.advance()
                continue
            batch = to_unit(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
            slots = torch.from_numpy(shards["true slots, decoded"].slots(video.name)).to(device)
            masks = masks_of(model, slots[None], partial(batch.unsqueeze, 0), frames.image_size)[0].numpy()
            images, batch, masks = images[shown], batch[shown], masks[shown]
            clips = {"video": images, "slot masks": pictures.overlay_masks(images, masks)}
            border = {caption: [False] * len(shown) for caption in clips}
            for caption, source in shards.items():
                decoded = model.decode(torch.from_numpy(source.slots(video.name)[shown]).to(device))
                if decoded is not None:
                    clips[caption] = from_unit(decoded.cpu().numpy())
                    drawn.setdefault(sources[caption], []).append((images, clips[caption]))
                    border[caption] = predicted if sources[caption] == "rollouts" else [False] * len(shown)
            marked = {caption: pictures.mark_predicted(clip, border[caption]) for caption, clip in clips.items()}
            panels.append(_panel(job, found, number, marked))
            rebuilt = model.reconstruct(batch)
            if rebuilt is not None:
                drawn.setdefault("reconstructed", []).append((images, from_unit(rebuilt.cpu().numpy())))
                inputs.append(images[middle])
                reconstructions.append(drawn["reconstructed"][-1][1][middle])
            slot_rows.append(np.stack([images[middle], *pictures.show_slots(images[middle], masks[middle])]))
            bar.advance()
    stills = {}
    if inputs:
        rows = pictures.grid([np.stack(inputs), np.stack(reconstructions)])
        stills[TOKENS_STILL] = pictures.png(rows)
    if slot_rows:
        stills["Slots: test frames (left) and where each slot looks"] = pictures.png(pictures.grid(slot_rows))
    likeness = {what: pictures.likeness(pairs, config.resamples, config.seed) for what, pairs in drawn.items()
                if all(one.shape == other.shape for one, other in pairs)}  # fmt: skip
    return panels, stills, {"videos": len(chosen), "frames": shown.tolist()} | likeness


def _panel(job: Job, found: Predictions, number: int, clips: Mapping[str, np.ndarray]) -> VideoPanel:
    """What the report shows for a video."""
    video = found.videos[number]
    mean = {mode: float(p[:, number].mean()) for mode, p in found.probabilities.items()}
    calls = {
        mode: bool(np.mean(p[:, number] > np.array(found.thresholds[mode])) > 0.5) for mode, p in found.probabilities.items()
    }
    fps = max(1, round(len(clips["video"]) / CLIP_SECONDS))
    encoded = [(caption, _mp4(job.output.scratch, clip, fps)) for caption, clip in clips.items()]
    return VideoPanel(video.name, video.scenario, bool(video.label), mean, encoded, calls)


def _mp4(scratch: Path, frames_THW3: np.ndarray, fps: int) -> bytes:
    path = scratch / "clip.mp4"
    write_mp4(path, pictures.enlarge(frames_THW3, 128), fps=fps)
    data = path.read_bytes()
    path.unlink()
    return data


def _spread_over_scenarios(videos: list[Video], count: int) -> list[int]:
    """Indices of `count` videos, taking one from each scenario in turn."""
    by_scenario: dict[str, list[int]] = {}
    for number, video in enumerate(videos):
        by_scenario.setdefault(video.scenario, []).append(number)
    turns = max(len(numbers) for numbers in by_scenario.values())
    ordered = [numbers[turn] for turn in range(turns) for numbers in by_scenario.values() if turn < len(numbers)]
    return sorted(ordered[:count])
