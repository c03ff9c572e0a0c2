"""The report: one HTML file that contains everything it shows, opens from disk and loads nothing from the network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from physion.progress import byte_count, duration
from physion.report.plots import (
    MODE_COLORS,
    loss_curve,
    plot_binding,
    plot_distances,
    plot_errors,
    plot_likeness,
    plot_losses,
    plot_norms,
)
from physion.report.published import HUMAN_BY_SCENARIO, PUBLISHED, SOURCE
from physion.store.artifacts import Manifest

UNKNOWN = "\N{EN DASH}"
MODES = {
    "observed": "slots of the first 1.5 s only",
    "rollout": "slots of the first 1.5 s, then those that SlotFormer predicts from them",
    "full": "slots of the whole video as it happened, which shows what the readout could do with perfect prediction",
}
SOURCES = {
    "label-prior": "nothing: always the commoner answer",
    "scenario": "which scenario it is",
    "first-frame": "pixels of the first frame",
    "observed-frames": "pixels of the observed frames",
    "tokens-observed": "observed frames as drawn from the dVAE's tokens",
    "states-observed": "true states of agent and patient, observed frames",
    "states-rollout": "true states, to the rollout's last frame",
    "states-full": "true states of the whole video",
    "picture-observed": "true places in the picture, without depth, observed frames",
    "picture-rollout": "true places in the picture, to the rollout's last frame",
    "picture-full": "true places in the picture, whole video",
    "slots-observed": "slots of the observed frames",
    "slots-rollout": "observed slots, then predicted ones",
    "slots-full": "true slots of the whole video",
    "places-observed": "where these slots say red and yellow are, observed frames",
    "places-rollout": "where the rollout says that they are",
    "places-full": "where true slots say that they are, whole video",
}
SETS = {"test": "test videos", "heldout": "training's held-out videos"}
SLOT_MEASURES = {
    "ari": "foreground ARI, whole video",
    "ari_frames": "foreground ARI, frame by frame",
    "miou": "mIoU, whole video",
    "miou_frames": "mIoU, frame by frame",
    "own_agent": "frames in which the agent has a slot of its own",
    "own_patient": "frames in which the patient has one",
    "kept_object": "slots of a body whose nearest slot in the next frame also belongs to it",
    "kept_index": "slots of a body whose index still belongs to it in the next frame",
    "kept_places": "slots whose nearest slot in the next frame has the same index",
}
ROLLED = {
    "rollout": "rollout, as given",
    "copied": "last observed frame, as given",
    "rollout_ordered": "rollout, order of slots restored",
    "copied_ordered": "last observed frame, likewise",
}
READ = {"rollout": "the rollout", "copied": "its slot of the last observed frame", "true": "true slots", "mean": "nothing"}
DRAWN = {"reconstructed": "from the dVAE's tokens", "slots": "from true slots", "rollouts": "from the rollout"}
LINKS = {
    "states": "accuracy from the true states of agent and patient in the whole video",
    "explained": "share of the pixels' variance that the tokens preserve",
    "place_agent": "R² of the agent's place in the picture, read from its slot",
    "place_patient": "R² of the patient's place in the picture, read from its slot",
    "kept_places": "slots that keep their index from frame to frame",
    "against_copying": "error of the rollout, divided by that of copying the last observed frame",
    "answers_observed": "accuracy of the readout, from the observed frames",
    "answers_rollout": "accuracy of the readout, from the rollout",
    "answers_full": "accuracy of the readout, from the whole video",
}
# Link -> section, or the picture TOKENS_STILL.
SHOWN_IN = {"video": "videos", "tokens": "tokens", "slots": "slots", "dynamics": "dynamics", "answer": "results"}
TOKENS_STILL = "Test frames (top) and their reconstructions (bottom)"
FEW_VIDEOS = 30  # in a scenario; below, a bootstrap interval is rough, and a point if all are right or wrong


@dataclass(frozen=True)
class VideoPanel:
    """One test video: the label, each mode's prediction (mean over readout seeds), and clips as (caption, H.264 MP4)."""

    name: str
    scenario: str
    label: bool
    probability: Mapping[str, float]
    clips: Sequence[tuple[str, bytes]]
    predicted: Mapping[str, bool] = field(default_factory=dict)  # by mode; if given, it is marked right or wrong


@dataclass(frozen=True)
class ReportContext:
    """Everything the page shows, in the order of each mapping; empty sections are left out."""

    headline: str
    simulated: bool  # PhysionSim's videos, which are not comparable with published numbers
    metrics: Mapping[str, Mapping[str, Any]]  # by mode, from `evaluate_predictions`
    left_out: str = ""  # how many test videos are missing from these, and why
    comparisons: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by name: `compare_modes`, and `p_value`
    regressions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by what they predict from (`evaluate`)
    people: Mapping[str, Any] = field(default_factory=dict)  # from `compare_with_people`; empty without their answers
    slots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by set of videos (`evaluate`)
    dynamics: Mapping[str, Any] = field(default_factory=dict)  # `physion.stages.dynamics.dynamics_numbers`
    pictures: Mapping[str, Any] = field(default_factory=dict)  # by what is drawn: `physion.report.pictures.likeness`
    verdicts: Sequence[Mapping[str, Any]] = ()  # `physion.report.verdicts.verdicts`
    paper_protocol: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by mode, from `paper_protocol`
    plots: Mapping[str, str] = field(default_factory=dict)  # SVG of `physion.report.plots` by title, inserted as it is
    videos: Sequence[VideoPanel] = ()
    stills: Mapping[str, bytes] = field(default_factory=dict)  # PNG by caption
    histories: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # by stage, for `plot_losses`
    provenance: Sequence[Manifest] = ()  # of the artifacts behind the numbers
    config_yaml: str = ""


def environment() -> jinja2.Environment:
    """The templates of this folder, with their number formats."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": lambda fraction: "n/a" if fraction is None else f"{100 * fraction:.1f}",
        "points": lambda fraction: f"{100 * fraction:+.1f}".replace("-", "\N{MINUS SIGN}"),
        "data_uri": _data_uri,
        "duration": duration,
        "size": byte_count,
        "loss": lambda loss: UNKNOWN if loss is None else f"{loss:.4g}",
    }
    return made


def render_report(context: ReportContext) -> str:
    """The whole page as text, the same bytes for the same context. All text is escaped."""
    if not context.metrics:
        raise ValueError("a report needs the metrics of at least one feature mode")
    modes = list(context.metrics)
    scenarios = sorted({name for values in context.metrics.values() for name in values["per_scenario"]})
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=context,
            first=context.metrics[modes[0]],
            scenarios=scenarios,
            scenario_facts={
                name: entry for values in context.metrics.values() for name, entry in values["per_scenario"].items()
            },
            few_videos=FEW_VIDEOS,
            sources=SOURCES,
            sets=SETS,
            slot_measures=SLOT_MEASURES,
            links=LINKS,
            shown_in=_shown_in(context),
            tokens_still=TOKENS_STILL,
            rolled=ROLLED,
            read=READ,
            drawn=DRAWN,
            dynamics_plots=_dynamics(context.dynamics),
            likeness=plot_likeness(context.pictures) if DRAWN.keys() & context.pictures.keys() else "",
            norms=plot_norms({SETS[name]: found["norm"] for name, found in context.slots.items()}) if context.slots else "",
            mode_meanings={mode: MODES[mode] for mode in modes if mode in MODES},
            columns=["observed", "rollout", *(mode for mode in modes if mode not in ("observed", "rollout"))],
            mode_number={mode: row % len(MODE_COLORS) for row, mode in enumerate(modes)},
            humans={name: HUMAN_BY_SCENARIO.get(name.lower()) for name in scenarios},
            published=PUBLISHED,
            published_source=SOURCE,
            training=[_training(stage, history) for stage, history in context.histories.items()],
        )
    )


def _shown_in(context: ReportContext) -> dict[str, str]:
    """The place on this page that has a link's pictures and further numbers."""
    drawn = DRAWN.keys() & context.pictures.keys()
    there = {
        "videos": context.videos,
        "tokens": TOKENS_STILL in context.stills,
        "slots": context.stills or context.slots,
        "dynamics": context.dynamics or drawn,
    }
    return {link: section for link, section in SHOWN_IN.items() if there.get(section, True)}


def _dynamics(measured: Mapping[str, Any]) -> dict[str, str]:
    """SVG by title, showing how far rollouts are from the truth."""
    plots = {"How far rollouts are from the true slots": plot_errors(measured)} if measured else {}
    if "places" in measured:
        plots["How far off a body's predicted place is"] = plot_distances(measured["places"], measured["watched"])
    return plots


def _training(stage: str, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The plot of one stage's losses and the few numbers beside it."""
    losses, heldout = (loss_curve(history, key)[1] for key in ("loss", "heldout_loss"))
    return {
        "stage": stage,
        "svg": plot_losses(stage, history),
        "binding": plot_binding(stage, history) if any("kept_places" in entry for entry in history) else None,
        "steps": max((int(entry["step"]) for entry in history), default=0),
        "loss": float(losses[-1]) if len(losses) else None,
        "heldout": float(heldout[-1]) if len(heldout) else None,
        "heldout_best": float(heldout.min()) if len(heldout) else None,
    }


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
