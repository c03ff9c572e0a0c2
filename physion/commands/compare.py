"""`physion compare`: two studies of a store side by side."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from physion.commands import AsJSON, StoreURI, chosen_store, print_json
from physion.errors import ConfigError
from physion.store.artifacts import Artifact

if TYPE_CHECKING:
    import numpy as np

    from physion.pipeline.studies import RecordedStudy

Report = Annotated[str, typer.Argument(help="The start of a report's fingerprint, as `physion runs` shows it.")]


@dataclass(frozen=True)
class Answers:
    """What a study's readouts say of the test videos, each of which is (name, scenario, label).

    modes: probabilities [R, N], to the 6 decimals of predictions.csv, and thresholds [R]. measured: the modes of metrics.json.
    """

    videos: list[tuple[str, str, bool]]
    modes: dict[str, tuple[np.ndarray, list[float]]]
    measured: dict[str, Any]


def compare(store: StoreURI, one: Report, other: Report, as_json: AsJSON = False) -> None:
    """Put two studies side by side: the options that differ, then accuracies and their paired difference.

    Both must have been tested on the same videos. The p-value is of a paired sign-flip test over these.
    """
    from physion.pipeline.studies import studies
    from physion.report.metrics import compare_modes, paired_p_value

    target = chosen_store(store)
    found = studies(target)
    chosen = [_chosen(found, name, target.uri) for name in (one, other)]
    answers = []
    for study in chosen:
        assert study.report is not None
        answers.append(_answers(Artifact(target, study.report)))
    if answers[0].videos != answers[1].videos:
        raise ConfigError(f"{one} and {other} were tested on other videos, so they cannot be compared video by video")
    names, scenarios, labels = (list(column) for column in zip(*answers[0].videos, strict=True))
    modes: dict[str, Any] = {}
    for mode in (mode for mode in answers[0].modes if mode in answers[1].modes):
        import numpy as np

        both = answers[0].modes[mode], answers[1].modes[mode]
        # The second minus the first: what the change has brought.
        difference = compare_modes(names, scenarios, np.array(labels), both[1], both[0])
        modes[mode] = {
            "accuracy": [each.measured[mode]["overall"]["accuracy"] for each in answers],
            "difference": difference.as_json(),
            "p": paired_p_value(names, scenarios, np.array(labels), both[1], both[0]),
        }
    options = {option: [study.options.get(option) for study in chosen] for study in chosen for option in study.options}
    differ = {option: values for option, values in options.items() if values[0] != values[1]}
    if as_json:
        print_json({"options": differ, "modes": modes})
        return
    table = Table("", *(escape(name) for name in (one, other)), "difference", "p", box=None, pad_edge=False)
    for option, values in differ.items():
        table.add_row(escape(option), *("-" if value is None else escape(str(value)) for value in values), "", "")
    for mode, row in modes.items():
        said = [*row["accuracy"], row["difference"]]
        cells = [f"{100 * s['value']:.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" for s in said]
        table.add_row(f"accuracy, {mode}", *map(escape, cells), f"{row['p']:.3f}")
    for column in table.columns:
        column.overflow = "fold"
    Console().print(table)


def _chosen(found: Sequence[RecordedStudy], name: str, where: str) -> RecordedStudy:
    named = [study for study in found if study.report and study.report.fingerprint.startswith(name)]
    if len(named) != 1:
        raise ConfigError(f"'{name}' begins {len(named)} reports of {where}: `physion runs` lists them")
    return named[0]


def _answers(report: Artifact) -> Answers:
    import numpy as np

    measured = report.json("metrics.json")["modes"]
    with report.path("predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    modes = {}
    for mode, facts in measured.items():
        seeds = facts["overall"]["per_seed"]
        scores = np.array([[float(row[f"{mode}-{number}"]) for row in rows] for number in range(len(seeds))])
        modes[mode] = scores, [seed["threshold"] for seed in seeds]
    return Answers([(row["video"], row["scenario"], row["label"] == "True") for row in rows], modes, measured)
