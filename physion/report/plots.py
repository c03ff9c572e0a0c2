"""Plots as SVG text, the same bytes for the same numbers.

Colors are CSS variables with a mid-tone fallback, and text stays text: inside the report a plot follows the page's light or
dark scheme and font, and as a separate file it is readable on either background.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from physion.report.metrics import Interval
from physion.report.published import HUMAN_ACCURACY, HUMAN_BY_SCENARIO

# CSS variable -> fallback. matplotlib draws with the fallback; `_svg` puts the variable in its place.
INK, FAINT = "#7d7c79", "#a3a29e"
MODE_COLORS = ("#3b82c4", "#d9712f", "#2f9e78", "#a86fc9")
CSS_VARIABLES = {"plot-ink": INK, "plot-faint": FAINT} | {f"mode-{i}": c for i, c in enumerate(MODE_COLORS)}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "physion",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.formatter.useoffset": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.borderaxespad": 0,
    "legend.handlelength": 1.4,
    "path.simplify_threshold": 0.2,
}
_styled = matplotlib.rc_context(_STYLE)
_MAX_POINTS = 400  # per curve in the page; longer ones are averaged in equal bins


@_styled
def plot_accuracy(metrics: Mapping[str, Mapping[str, Any]], simulated: bool, of: str = "") -> str:
    """Accuracy of each mode, or of each of several runs, with its interval, compared with chance and people.

    `metrics` holds the result of `evaluate_predictions` by mode, or by run for the mode `of`. On `simulated` videos the human
    mark is labeled as measured on other videos.
    """
    figure, axes = _figure(9.4, 1.25 + 0.42 * len(metrics))
    intervals = [_interval(values["overall"]["accuracy"]) for values in metrics.values()]
    for row, interval in enumerate(intervals):
        color = MODE_COLORS[row % len(MODE_COLORS)]
        axes.plot([100 * interval.low, 100 * interval.high], [row, row], color=color, linewidth=2.2, solid_capstyle="round")
        axes.plot(100 * interval.value, row, "o", color=color, markersize=8)
        axes.annotate(interval.percent(), (1.01, row), xycoords=axes.get_yaxis_transform(), va="center")
    chance = 100 * next(iter(metrics.values()))["chance"]
    references = sorted(
        [(chance, (0, (4, 3)), f"chance {chance:.1f}"), (HUMAN_ACCURACY, (0, (1, 2)), f"{_people(simulated)} {HUMAN_ACCURACY}")]
    )
    for (x, dashes, text), side in zip(references, ("right", "left"), strict=True):  # labels point away from each other
        axes.axvline(x, color=FAINT, linewidth=1.1, linestyle=dashes, zorder=0)
        axes.annotate(
            text,
            (x, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4 if side == "right" else -4, 4),
            textcoords="offset points",
            ha=side,
        )
    ends = [100 * end for interval in intervals for end in (interval.low, interval.high)]
    axes.set_xlim(*_percent_limits([*ends, chance, HUMAN_ACCURACY]))
    axes.set_ylim(len(metrics) - 0.4, -0.6)
    axes.set_yticks(range(len(metrics)), labels=list(metrics))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy on the test videos, %")
    what = f"Accuracy of each run, {of}," if of else "Accuracy of each feature mode"
    return _svg(figure, f"accuracy-{of}" if of else "accuracy", f"{what} with its interval, against chance and humans")


@_styled
def plot_scenarios(metrics: Mapping[str, Mapping[str, Any]], simulated: bool) -> str:
    """Accuracy by scenario, grouped by mode, with each scenario's majority rate and the human accuracy on it."""
    figure, axes = _figure(9.4, 3.6)
    scenarios = sorted({scenario for values in metrics.values() for scenario in values["per_scenario"]})
    places = {scenario: x for x, scenario in enumerate(scenarios)}
    marks = []
    for row, (mode, values) in enumerate(metrics.items()):
        color = MODE_COLORS[row % len(MODE_COLORS)]
        found = {scenario: _interval(entry["accuracy"]) for scenario, entry in values["per_scenario"].items()}
        x = [places[scenario] + 0.17 * (row - (len(metrics) - 1) / 2) for scenario in found]
        axes.vlines(
            x,
            [100 * interval.low for interval in found.values()],
            [100 * interval.high for interval in found.values()],
            colors=color,
            linewidth=1.8,
        )
        axes.plot(x, [100 * interval.value for interval in found.values()], "o", color=color, markersize=6, label=mode)
        marks += [100 * end for interval in found.values() for end in (interval.low, interval.high)]
    chances = {
        scenario: 100 * entry["chance"] for values in metrics.values() for scenario, entry in values["per_scenario"].items()
    }
    humans = {scenario: HUMAN_BY_SCENARIO[scenario.lower()] for scenario in scenarios if scenario.lower() in HUMAN_BY_SCENARIO}
    for heights, dashes, text in ((chances, (0, ()), "always the commoner answer"), (humans, (0, (1, 1)), _people(simulated))):
        if heights:
            x = [places[scenario] for scenario in heights]
            axes.hlines(
                list(heights.values()),
                [at - 0.36 for at in x],
                [at + 0.36 for at in x],
                colors=FAINT,
                linewidth=1.4,
                linestyles=dashes,
                label=text,
                zorder=0,
            )
    axes.set_ylim(*_percent_limits([*marks, *chances.values(), *humans.values()]))
    axes.set_xlim(-0.6, len(scenarios) - 0.4)
    axes.set_xticks(range(len(scenarios)), labels=scenarios)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("accuracy, %")
    figure.legend(loc="outside upper left", ncols=len(metrics) + 2)
    return _svg(figure, "scenarios", "Accuracy of each feature mode by scenario, with 95 % intervals")


@_styled
def plot_roc(labels: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> str:
    """ROC curves: one line per readout seed, one color per mode. `labels` [N], `probabilities` [R, N] by mode.

    Raises ValueError if the labels hold only one class: there is no curve to draw.
    """
    truth = np.asarray(labels).astype(bool)
    if truth.all() or not truth.any():
        raise ValueError("a ROC curve needs videos of both classes")
    figure, axes = _unit_square(0.01)
    for row, (mode, by_seed) in enumerate(probabilities.items()):
        for index, scores in enumerate(np.asarray(by_seed)):
            axes.plot(
                *_roc_points(scores, truth),
                color=MODE_COLORS[row % len(MODE_COLORS)],
                linewidth=1.3,
                label=mode if index == 0 else None,
            )
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.legend(loc="lower right")
    return _svg(figure, "roc", "ROC curves of the readouts, one line for each readout seed")


@_styled
def plot_reliability(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Reliability curves, one per mode: in each tenth of probability, how often the answer was yes.

    `metrics` holds the result of `evaluate_predictions` by mode. A dot's area is the share of the answers that it stands for.
    """
    figure, axes = _unit_square(0.03)
    for row, (mode, values) in enumerate(metrics.items()):
        said, positive, count = np.array([[each[key] for key in ("said", "positive", "n")] for each in values["reliability"]]).T
        color = MODE_COLORS[row % len(MODE_COLORS)]
        axes.plot(said, positive, color=color, linewidth=1.3, label=mode)
        axes.scatter(said, positive, 200 * count / count.sum(), color=color, linewidths=0, zorder=2)
    axes.set_xlabel("mean probability in each tenth (area: share of answers)")
    axes.set_ylabel("share of positive videos")
    axes.legend(loc="upper left")
    return _svg(figure, "reliability", "Reliability of the readouts' probabilities, all readout seeds together")


@_styled
def plot_losses(stage: str, history: Sequence[Mapping[str, Any]]) -> str:
    """Training and held-out loss of one stage against the step.

    Reads `step`, `loss` and `heldout_loss` of each entry; either loss may be missing, None or not finite in any of them. The
    loss axis is logarithmic if the losses are positive and span more than a decade.
    """
    figure, axes = _figure(4.6, 2.7)
    train, heldout = (loss_curve(history, key) for key in ("loss", "heldout_loss"))
    for (steps, losses), label, color, marker in (
        (train, "training", MODE_COLORS[0], ""),
        (heldout, "held out", MODE_COLORS[1], "o"),
    ):
        if len(steps):
            few = marker if len(steps) <= 30 else ""
            axes.plot(_binned(steps), _binned(losses), marker=few, markersize=3.5, color=color, linewidth=1.3, label=label)
    everything = np.concatenate([train[1], heldout[1]])
    if len(everything):
        if everything.min() > 0 and everything.max() > 10 * everything.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.legend(loc="upper right")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_thousands))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    return _svg(figure, f"losses-{stage}", f"Training and held-out loss of {stage} against the step")


@_styled
def plot_binding(stage: str, history: Sequence[Mapping[str, Any]]) -> str:
    """Whether slots bind to bodies and keep their indices, on a few held-out videos, against the step."""
    figure, axes = _figure(4.6, 2.7)
    shown = {"ari_frames": "ARI by frame", "ari": "ARI by video", "kept_places": "keep their places"}
    for number, (key, label) in enumerate(shown.items()):
        steps, values = loss_curve(history, key)
        if len(steps):
            axes.plot(steps, values, marker="o" if len(steps) <= 30 else "", markersize=3.5, linewidth=1.3,
                      color=MODE_COLORS[number], label=label)  # fmt: skip
    axes.set_ylim(min(-0.05, axes.get_ylim()[0]), 1.05)
    axes.legend(loc="best")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_thousands))
    axes.set_xlabel("step")
    return _svg(figure, f"binding-{stage}", f"Foreground ARI and kept places of the slots during {stage}")


@_styled
def plot_norms(by_set: Mapping[str, Sequence[float]]) -> str:
    """The slots' mean length in each frame, by set of videos."""
    figure, axes = _figure(9.4, 2.4)
    for number, (name, lengths) in enumerate(by_set.items()):
        axes.plot(range(len(lengths)), lengths, color=MODE_COLORS[number], linewidth=1.5, label=name)
    axes.set_ylim(0, 1.1 * max(max(lengths) for lengths in by_set.values()))
    axes.set_xlabel("frame")
    axes.set_ylabel("length of a slot")
    axes.legend(loc="best")
    return _svg(figure, "norms", "Mean length of the slots in each frame")


@_styled
def plot_errors(dynamics: Mapping[str, Any]) -> str:
    """The rollout's error over time, and that of copying the last observed frame, as given and with slots in order."""
    figure, axes = _figure(9.4, 3.0)
    named = {
        "rollout": (0, (0, (1, 1)), "rollout"),
        "copied": (1, (0, (1, 1)), "last observed frame"),
        "rollout_ordered": (0, "-", "rollout, order of slots restored"),
        "copied_ordered": (1, "-", "last observed frame, likewise"),
    }
    for way, (color, dashes, label) in named.items():
        curve = dynamics["error"][way]
        _over_frames(axes, curve["frames"], curve["by_frame"], color=MODE_COLORS[color], linestyle=dashes, label=label)
    axes.axhline(1, color=FAINT, linewidth=1.1, linestyle=(0, (4, 3)), zorder=0)
    axes.axvline(dynamics["watched"] - 0.5, color=FAINT, linewidth=1.1, linestyle=(0, (1, 2)), zorder=0)
    axes.set_ylim(0, None)
    axes.set_ylabel("error by variance")
    figure.legend(loc="outside upper left", ncols=2)
    return _svg(figure, "errors", "Error of the rollout against true slots in each frame, by the variance of the slots")


@_styled
def plot_distances(places: Mapping[str, Mapping[str, Any]], watched: int) -> str:
    """How far from its place in the room a body is put over time, by body and by what it is read from."""
    figure = Figure(figsize=(9.4, 3.0), layout="constrained")
    figure.patch.set_visible(False)
    named = {"rollout": "rollout", "copied": "last observed frame", "true": "true slots", "mean": "the mean place"}
    for number, (body, spaces) in enumerate(places.items()):
        axes = figure.add_subplot(1, len(places), number + 1)
        axes.patch.set_visible(False)
        for color, (way, label) in enumerate(named.items()):
            curve = spaces["room"][way]
            shown = label if number == 0 else None
            _over_frames(axes, curve["frames"], curve["by_frame"], color=MODE_COLORS[color], label=shown)
        axes.axvline(watched - 0.5, color=FAINT, linewidth=1.1, linestyle=(0, (1, 2)), zorder=0)
        axes.set_ylim(0, None)
        axes.set_title(body, fontsize=9.5)
        axes.set_ylabel("distance, m")
    figure.legend(loc="outside upper left", ncols=len(named))
    return _svg(figure, "distances", "Distance of a body's place read from slots to its true place, in each frame")


@_styled
def plot_likeness(pictures: Mapping[str, Any]) -> str:
    """PSNR and SSIM of what is drawn, compared with the shown frames, over time."""
    figure = Figure(figsize=(9.4, 2.8), layout="constrained")
    figure.patch.set_visible(False)
    named = {"reconstructed": "tokens", "slots": "true slots", "rollouts": "rollout"}
    for number, (measure, label) in enumerate((("psnr", "PSNR, dB"), ("ssim", "SSIM"))):
        axes = figure.add_subplot(1, 2, number + 1)
        axes.patch.set_visible(False)
        for color, (what, name) in enumerate(named.items()):
            if what in pictures:
                curve = pictures[what][measure]["by_frame"]
                shown = name if number == 0 else None
                _over_frames(axes, pictures["frames"], curve, color=MODE_COLORS[color], label=shown)
        axes.set_ylabel(label)
    figure.legend(loc="outside upper left", ncols=len(named))
    return _svg(figure, "likeness", "PSNR and SSIM of what is drawn against the shown frames, over time")


def _over_frames(axes: Axes, frames: Sequence[int], values: Sequence[float | None], **style: Any) -> None:
    """A curve, with gaps where there is no value."""
    few = "o" if len(frames) <= 30 else ""
    drawn = [np.nan if value is None else value for value in values]
    axes.plot(frames, drawn, linewidth=1.5, marker=few, markersize=3.5, **style)
    axes.set_xlabel("frame")


def loss_curve(history: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a loss is given and finite, and its values there."""
    points = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
    curve = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    curve = curve[np.isfinite(curve[:, 1])]
    return curve[:, 0], curve[:, 1]


def _binned(values: np.ndarray) -> np.ndarray:
    """At most 400 points: the means of equal bins if there are more."""
    if len(values) <= _MAX_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, _MAX_POINTS)])


def _roc_points(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates from the strictest threshold to the loosest, one point per distinct score."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each group of tied scores
    true_positives = np.cumsum(labels[order])[last]
    false_positives = last + 1 - true_positives
    return (np.append(0, false_positives) / (~labels).sum(), np.append(0, true_positives) / labels.sum())


def _people(simulated: bool) -> str:
    return "humans, on the official videos" if simulated else "humans"


def _interval(entry: Mapping[str, float]) -> Interval:
    return Interval(entry["value"], entry["low"], entry["high"])


def _percent_limits(values: Sequence[float]) -> tuple[float, float]:
    """Multiples of ten around the values, so that a change of the data rarely changes the axis."""
    return max(0, 10 * np.floor((min(values) - 2) / 10)) - 2, min(100, 10 * np.ceil((max(values) + 2) / 10)) + 2


def _thousands(value: float, _position: int | None = None) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _unit_square(margin: float) -> tuple[Figure, Axes]:
    """Axes of two shares from 0 to 1, with the diagonal."""
    figure, axes = _figure(5.2, 4.4)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_aspect("equal")
    axes.set_xlim(-margin, 1 + margin)
    axes.set_ylim(-margin, 1 + margin)
    return figure, axes


def _svg(figure: Figure, name: str, description: str) -> str:
    """An <svg> element that can be placed in a page with others: no prolog, no metadata, its own ids."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the page
    prefix = re.sub(r"[^a-z0-9-]+", "-", name.lower())
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = text.replace("'DejaVu Sans'", "var(--sans, sans-serif)")
    for variable, fallback in CSS_VARIABLES.items():
        text = text.replace(fallback, f"var(--{variable}, {fallback})")
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt" width="[\d.]+pt"', "", text, count=1)
    label = html.escape(description)
    return text.replace(
        "<svg ",
        f'<svg width="{width}" height="{height}" role="img" aria-label="{label}" '
        'style="stroke-linejoin: round; stroke-linecap: butt" ',
        1,
    )
