"""Runs tested on the same videos, side by side: numbers with paired intervals, and a page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from physion.report.html import environment
from physion.report.metrics import compare_modes, paired_p_value
from physion.report.plots import plot_accuracy


@dataclass(frozen=True)
class Run:
    """A finished study. videos: (name, scenario, label) of each test video.

    said: by mode, probabilities [R, N], to the 6 decimals of predictions.csv, and thresholds [R]. metrics: its metrics.json.
    facts: what distinguishes it from others (name, preset, fingerprint, store, created). options: all that affect results.
    """

    facts: Mapping[str, str]
    options: Mapping[str, Any]
    videos: list[tuple[str, str, bool]]
    said: Mapping[str, tuple[np.ndarray, list[float]]]
    metrics: Mapping[str, Any]


def compare_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """How runs differ, for each mode that all of them have; differences are from the first, None for the first itself."""
    names, scenarios, labels = (list(column) for column in zip(*runs[0].videos, strict=True))
    first, truth = runs[0], np.array(labels)
    modes: dict[str, Any] = {}
    for mode in (mode for mode in first.said if all(mode in run.said for run in runs)):
        measured = [run.metrics["modes"][mode] for run in runs]
        apart = [compare_modes(names, scenarios, truth, run.said[mode], first.said[mode]).as_json() for run in runs[1:]]
        modes[mode] = {
            "overall": [{key: value for key, value in each["overall"].items() if key != "per_seed"} for each in measured],
            "per_scenario": {
                scenario: [each["per_scenario"][scenario]["accuracy"] for each in measured]
                for scenario in measured[0]["per_scenario"]
            },
            "difference": [None, *apart],
            "p": [None, *(paired_p_value(names, scenarios, truth, run.said[mode], first.said[mode]) for run in runs[1:])],
        }
    options = {option: [run.options.get(option) for run in runs] for run in runs for option in run.options}
    rows = [{row["link"]: row for row in run.metrics.get("verdicts", [])} for run in runs]
    return {
        "runs": [dict(run.facts) for run in runs],
        "videos": len(names),
        "simulated": first.metrics.get("dataset") == "simulate",
        "options": {option: values for option, values in options.items() if any(value != values[0] for value in values)},
        "modes": modes,
        "links": {link: [each.get(link) for each in rows] for each in rows for link in each},
    }


def render_comparison(found: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """The page with the results of `compare_runs`: one HTML file that loads nothing from the network. All text is escaped."""
    plots = {
        mode: plot_accuracy({run.facts["name"]: run.metrics["modes"][mode] for run in runs}, found["simulated"], mode)
        for mode in found["modes"]
    }
    return environment().get_template("comparison.html.j2").render(found=found, plots=plots)
