"""`evaluate`: every readout on the test videos, once: metrics.json, plots and report.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from physion.config.schema import Evaluate
from physion.data.clips import LabelledSlots, to_unit
from physion.data.layout import Video
from physion.data.shards import FrameShards, Shards
from physion.data.video import write_mp4
from physion.models.dvae import DVAE
from physion.models.steve import STEVE, resize_masks
from physion.models.weights import load_model
from physion.progress import progress
from physion.report import pictures
from physion.report.html import Comparison, Plot, ProvenanceRow, ReportContext, Still, VideoPanel, render_report
from physion.report.metrics import compare_modes, evaluate_predictions, headline, paper_protocol
from physion.report.plots import plot_accuracy, plot_roc, plot_scenarios
from physion.stages import Job
from physion.stages.train_readout import EPOCHS, predict
from physion.store.artifacts import Artifact
from physion.training.engine import HISTORY, WEIGHTS, device
from physion.training.precision import arithmetic

CLIP_SECONDS = 5.0


def run(job: Job) -> dict[str, Any]:
    """Test, draw, write; metrics.json holds nothing that differs between two runs of the same study."""
    config: Evaluate = job.config
    sources = {"observed": "slots", "rollout": "rollouts", "full": "slots"}
    shards = {role: Shards(job.inputs[role]) for role in ("slots", "rollouts")}
    videos = shards["slots"].videos
    labels = np.array([bool(video.label) for video in videos])
    probabilities: dict[str, np.ndarray] = {}
    thresholds: dict[str, list[float]] = {}
    selected: dict[str, dict[str, Any]] = {}
    for mode, readouts in _readouts(job).items():
        frames = job.study["train-readout"]["model"][mode]
        test = LabelledSlots(shards[sources[mode]], videos, frames)
        candidates = [[WEIGHTS, *(name for name in readout.names() if name.startswith(EPOCHS))] for readout in readouts]
        models = [load_model(r.path(n), "readout") for r, names in zip(readouts, candidates, strict=True) for n in names]
        by_readout = np.split(predict(models, test), np.cumsum([len(names) for names in candidates])[:-1])
        probabilities[mode] = np.stack([p[0] for p in by_readout])
        # Readouts that were given have no epochs: each is the only candidate of its seed.
        selected[mode] = paper_protocol(np.stack([p[1:] if len(p) > 1 else p for p in by_readout]), labels)
        thresholds[mode] = [readout.manifest.metrics["threshold"] for readout in readouts]
        job.stop.check()

    names, scenarios = [video.name for video in videos], [video.scenario for video in videos]
    sampling = {"resamples": config.resamples, "seed": config.seed}
    modes = {
        mode: evaluate_predictions(names, scenarios, labels, probabilities[mode], thresholds[mode], **sampling)
        for mode in probabilities
    }
    comparisons = [
        Comparison(
            f"{mode} - observed",
            compare_modes(
                names,
                scenarios,
                labels,
                (probabilities[mode], thresholds[mode]),
                (probabilities["observed"], thresholds["observed"]),
                **sampling,
            ),
        )
        for mode in modes
        if mode != "observed" and "observed" in modes
    ]
    metrics = {
        "headline": headline(modes),
        "dataset": job.study["dataset"],
        "modes": modes,
        "comparisons": {c.name: c.difference.as_json() for c in comparisons},
        "paper_protocol": selected,
    }
    panels, stills = _pictures(job, config, videos, labels, probabilities, thresholds)
    simulated = job.study["dataset"] == "simulate"
    plots = [
        Plot("Accuracy", plot_accuracy(modes, simulated)),
        Plot("Accuracy by scenario", plot_scenarios(modes, simulated)),
    ]
    if 0 < labels.sum() < len(labels):
        plots.append(Plot("ROC curves", plot_roc(labels, probabilities)))
    report = render_report(
        ReportContext(
            title="Physion: will red touch yellow?",
            preset=job.study["preset"],
            headline=metrics["headline"],
            simulated=simulated,
            metrics=modes,
            comparisons=comparisons,
            paper_protocol=selected,
            plots=plots,
            videos=panels,
            stills=stills,
            histories={r: job.inputs[role].json(HISTORY) for r, role in _trained(job) if HISTORY in job.inputs[role].names()},
            provenance=[_provenance(artifact) for artifact in job.inputs.values()],
            config_yaml=yaml.safe_dump(job.study, sort_keys=False, width=120),
        )
    )
    files = {"metrics.json": json.dumps(metrics, indent=1), "report.html": report}
    files |= {f"{plot.title.lower().replace(' ', '-')}.svg": plot.svg for plot in plots}
    rows = [["video", "scenario", "label", *(f"{mode}-{n}" for mode, p in probabilities.items() for n in range(len(p)))]]
    for number, video in enumerate(videos):
        scores = [f"{score:.6f}" for p in probabilities.values() for score in p[:, number]]
        rows.append([video.name, video.scenario, str(bool(video.label)), *scores])
    files["predictions.csv"] = "".join(",".join(row) + "\n" for row in rows)
    local = {name: job.output.scratch / name for name in files}
    for name, path in local.items():
        path.write_text(files[name])
    job.output.add_part("report", local)
    return {
        "headline": metrics["headline"],
        "test_videos": len(videos),
        **{f"accuracy_{mode}": modes[mode]["overall"]["accuracy"]["value"] for mode in modes},
    }


def _readouts(job: Job) -> dict[str, list[Artifact]]:
    """Readouts by mode, in the order of their seeds."""
    settings = job.study["train-readout"]
    return {mode: [job.inputs[f"readout-{mode}-{seed}"] for seed in settings["seeds"]] for mode in settings["features"]}


def _trained(job: Job) -> list[tuple[str, str]]:
    """Stage names and input roles of the trainings whose curves the report shows; of the readouts, the first seed's."""
    stages = [(f"train-{role}", role) for role in ("dvae", "steve", "slotformer")]
    settings = job.study["train-readout"]
    first = settings["seeds"][0]
    return [*stages, *((f"train-readout ({m}, seed {first})", f"readout-{m}-{first}") for m in settings["features"])]


def _provenance(artifact: Artifact) -> ProvenanceRow:
    manifest = artifact.manifest
    size = sum(record.size for record in manifest.files)
    return ProvenanceRow(manifest.instance, manifest.fingerprint, manifest.seconds, False, size)


@arithmetic(torch.float32)
@torch.inference_mode()
def _pictures(
    job: Job,
    config: Evaluate,
    videos: list[Video],
    labels: np.ndarray,
    probabilities: dict[str, np.ndarray],
    thresholds: dict[str, list[float]],
) -> tuple[list[VideoPanel], list[Still]]:
    """Videos with masks and decoded slots, and stills of what the dVAE and the slots keep."""
    if not config.videos:
        return [], []
    frames = FrameShards(job.inputs["frames"])
    slots, rollouts = Shards(job.inputs["slots"]), Shards(job.inputs["rollouts"])
    where = device()
    steve = load_model(job.inputs["steve"].path(WEIGHTS), "steve").to(where)
    dvae = load_model(job.inputs["dvae"].path(WEIGHTS), "dvae").to(where)
    size, total = frames.image_size, frames.video_frames
    observed = job.study["rollout"]["observed"]
    shown = np.unique(np.linspace(0, total - 1, config.shown_frames).round().astype(int))
    fps = max(1, round(len(shown) / CLIP_SECONDS))
    panels, inputs, reconstructions, slot_rows = [], [], [], []
    chosen = _spread_over_scenarios(videos, config.videos)
    with progress("pictures", len(chosen), "videos") as bar:
        for number in chosen:
            job.stop.check()
            video = videos[number]
            images = frames.images(video.name, 0, total)
            batch = to_unit(torch.from_numpy(images).permute(0, 3, 1, 2).to(where))
            state, parts = None, []
            for chunk in batch.split(30):
                out = steve.encode(chunk[None], state, with_masks=True)
                state = out.state
                assert out.masks is not None
                parts.append(resize_masks(out.masks, size)[0].cpu())
            masks = torch.cat(parts).numpy()
            decoded = [_decode(steve, dvae, source.read(video.name, "slots")[shown], where) for source in (slots, rollouts)]
            predicted = [bool(frame >= observed) for frame in shown]
            border = [False] * len(shown)
            clips = {
                "video": pictures.mark_predicted(images[shown], border),
                "slot masks": pictures.mark_predicted(pictures.overlay_masks(images[shown], masks[shown]), border),
                "true slots, decoded": pictures.mark_predicted(decoded[0], border),
                "rollout, decoded (orange: predicted)": pictures.mark_predicted(decoded[1], predicted),
            }
            mean = {mode: float(p[:, number].mean()) for mode, p in probabilities.items()}
            calls = {mode: bool(np.mean(p[:, number] > np.array(thresholds[mode])) > 0.5) for mode, p in probabilities.items()}
            panels.append(
                VideoPanel(
                    video.name,
                    video.scenario,
                    bool(labels[number]),
                    mean,
                    [(caption, _mp4(job.output.scratch, clip, fps)) for caption, clip in clips.items()],
                    calls,
                )
            )
            middle = min(observed, total - 1)
            inputs.append(images[middle])
            tokens = dvae.tokenize(batch[middle : middle + 1])
            reconstructions.append(pictures.from_unit(dvae.decode_tokens(tokens).cpu().numpy())[0])
            slot_rows.append(np.stack([images[middle], *pictures.show_slots(images[middle], masks[middle])]))
            bar.advance()
    stills = [
        Still(
            "dVAE: test frames (top) and their reconstructions from tokens (bottom)",
            pictures.png(pictures.grid([np.stack(inputs), np.stack(reconstructions)])),
        ),
        Still(
            "STEVE: test frames (left) and where each slot looks",
            pictures.png(pictures.grid(slot_rows)),
        ),
    ]
    return panels, stills


def _decode(steve: STEVE, dvae: DVAE, slots_TSD: np.ndarray, where: torch.device) -> np.ndarray:
    """Slots -> most likely tokens, one after another -> image: uint8 [T, H, W, 3]."""
    tokens = steve.generate(torch.from_numpy(slots_TSD).to(where))
    side = int(tokens.shape[1] ** 0.5)
    images = dvae.decode_tokens(tokens.view(-1, side, side))
    return pictures.from_unit(images.cpu().numpy())


def _mp4(scratch: Path, frames_THW3: np.ndarray, fps: int) -> bytes:
    path = scratch / "clip.mp4"
    write_mp4(path, pictures.enlarge(frames_THW3, 128), fps=fps)
    data = path.read_bytes()
    path.unlink()
    return data


def _spread_over_scenarios(videos: list[Video], count: int) -> list[int]:
    """Numbers of `count` videos, taking one of each scenario in turn."""
    by_scenario: dict[str, list[int]] = {}
    for number, video in enumerate(videos):
        by_scenario.setdefault(video.scenario, []).append(number)
    turns = max(len(numbers) for numbers in by_scenario.values())
    ordered = [numbers[turn] for turn in range(turns) for numbers in by_scenario.values() if turn < len(numbers)]
    return sorted(ordered[:count])
