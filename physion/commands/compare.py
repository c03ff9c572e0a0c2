"""`physion compare`: finished studies side by side."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from physion.commands import AsJSON, chosen_store, print_json, print_table
from physion.errors import ConfigError
from physion.pipeline.studies import RecordedStudy, studies
from physion.progress import say
from physion.store.artifacts import Artifact
from physion.store.protocol import Store

if TYPE_CHECKING:
    from physion.report.comparison import Run

Which = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN RUN...",
        help="[STORE@]REPORT: REPORT is the start of a report's fingerprint, as `physion runs` shows it, or a preset, for its "
        "newest report; STORE is its store, by default --store. STORE@ is the newest report there.",
    ),
]


def compare(
    which: Which,
    store: Annotated[str | None, typer.Option("--store", "-s", envvar="PHYSION_STORE", help="For runs that name none.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Also write an HTML page.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Put studies side by side: the options that differ, then accuracies, and how far each is from the first.

    All must have been tested on the same videos. The p-value comes from a paired sign-flip test over these videos.
    """
    if len(which) < 2:
        raise ConfigError("compare takes two runs or more; `physion runs` lists those of a store")
    from physion.report.comparison import compare_runs, render_comparison

    known: dict[str, tuple[Store, list[RecordedStudy]]] = {}
    runs = [_run(name, store, known) for name in which]
    for name, run in zip(which, runs, strict=True):
        if run.videos != runs[0].videos:
            raise ConfigError(
                f"{which[0]} and {name} were tested on different videos, so they cannot be compared video by video"
            )
    found = compare_runs(runs)
    if page is not None:
        try:
            page.write_text(render_comparison(found, runs), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{page}: cannot be written ({error.strerror})") from error
    if as_json:
        print_json(found)
        return
    table = Table("", *(escape(run.facts["name"]) for run in runs), box=None, pad_edge=False)
    for option, values in found["options"].items():
        table.add_row(escape(option), *("-" if value is None else escape(str(value)) for value in values))
    for mode, row in found["modes"].items():
        cells = [_percent(each["accuracy"]) for each in row["overall"]]
        table.add_row(f"accuracy, {mode}", *map(escape, cells))
        apart = [f"{_percent(d)}, p {p:.3f}" if d else "-" for d, p in zip(row["difference"], row["p"], strict=True)]
        table.add_row("  against the first", *map(escape, apart))
    print_table(table)
    if page is not None:
        say(f"page: {page.absolute().as_uri()}")


def _percent(entry: dict[str, float]) -> str:
    return f"{100 * entry['value']:.1f} % [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def _run(name: str, default: str | None, known: dict[str, tuple[Store, list[RecordedStudy]]]) -> Run:
    place, at, report = name.rpartition("@")
    where = place if at else default
    if where is None:
        raise ConfigError(f"which store is '{name}' in? Write STORE@{name}, or add --store")
    if where not in known:
        store = chosen_store(where)
        known[where] = store, studies(store)
    store, recorded = known[where]
    done = [study for study in recorded if study.report]  # newest first
    of_preset = [study for study in done if report in ("", study.preset)][:1]
    named = of_preset or [study for study in done if study.report and study.report.fingerprint.startswith(report)]
    if len(named) != 1:
        raise ConfigError(f"'{report}' matches {len(named)} reports in {store.uri}: `physion runs` lists them")
    return _read(store, named[0], name)


def _read(store: Store, study: RecordedStudy, name: str) -> Run:
    import numpy as np

    from physion.report.comparison import Run

    assert study.report is not None
    report = Artifact(store, study.report)
    metrics = report.json("metrics.json")
    with report.path("predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    said = {}
    for mode, facts in metrics["modes"].items():
        seeds = facts["overall"]["per_seed"]
        scores = np.array([[float(row[f"{mode}-{number}"]) for row in rows] for number in range(len(seeds))])
        said[mode] = scores, [seed["threshold"] for seed in seeds]
    facts = {"name": name, "preset": study.preset, "fingerprint": study.report.fingerprint, "store": store.uri}
    videos = [(row["video"], row["scenario"], row["label"] == "True") for row in rows]
    return Run(facts | {"created": study.report.created}, study.options, videos, said, metrics)
