"""`physion run`: the whole study on this machine."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from physion import __version__
from physion.commands import (
    AsJSON,
    Overrides,
    Precision,
    Preset,
    StoreURI,
    Sweep,
    cache_options,
    copy_out,
    for_trainings,
    headline,
    load_study,
    print_json,
    stopping,
)
from physion.config.load import variants
from physion.errors import ConfigError
from physion.machine import device_name, this_machine
from physion.pipeline.graph import Node
from physion.progress import byte_count, duration, say
from physion.store.artifacts import Artifact
from physion.store.pretrained import reference_of


def run(
    preset: Preset,
    store: StoreURI,
    overrides: Overrides = [],  # noqa: B006
    precision: Precision = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes per training; like --set train-....ranks.")] = None,
    sweep: Sweep = [],  # noqa: B006
    report_to: Annotated[Path | None, typer.Option("--report", help="Copy the report to this file at the end.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Run the whole study; finished stages are reused, interrupted ones resume.

    With --sweep, run variants of it, one after another: what they share is made once.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "physion run is one process, which starts the ranks of its trainings itself (--ranks); torchrun starts those of "
            "physion stage train-..."
        )
    overrides = for_trainings(preset, overrides, precision=precision, ranks=ranks)
    if not sweep:
        result = _run(preset, store, overrides, report_to, as_json)
        if as_json:
            print_json(result)
        return
    if report_to is not None:
        raise ConfigError("--report: a sweep makes several reports; copy one with `physion store get`")
    chosen = variants(sweep)
    for variant in chosen:
        load_study(preset, [*overrides, *variant], store)  # a mistake in the last shows before the first begins
    results = []
    for number, variant in enumerate(chosen, 1):
        say(f"variant {number} of {len(chosen)}: {' '.join(variant)}")
        results.append({"overrides": variant} | _run(preset, store, [*overrides, *variant], None, as_json))
    if as_json:
        print_json(results)
    else:
        print(f"\nphysion runs -s {store} lists the variants; physion compare puts them side by side")


def _run(preset: str, store: str, overrides: list[str], report_to: Path | None, quiet: bool) -> dict[str, Any]:
    """Run one study, and print its result unless quiet. Returns the result."""
    from physion.pipeline.measured import Measured, wall_clock
    from physion.pipeline.provenance import changed_since, warning
    from physion.pipeline.runner import Done
    from physion.pipeline.schedule import Claim, Schedule

    _, graph, target = load_study(preset, overrides, store)
    machine, device = this_machine(), device_name()
    have = f"{machine.cores} cores, {len(machine.gpus)} GPUs, {byte_count(machine.memory)} of memory"
    say(f"physion {__version__}: preset {preset}, {len(graph)} stages, store {target.uri}, {have}")

    finished: set[str] = set()
    changed: dict[str, list[str]] = {}

    @functools.cache
    def measured() -> Measured:
        return Measured(graph.values(), target, device)

    def left() -> str:
        """How long the rest of the run will take, judged by what its stages took here; empty if unknown."""
        nodes = [node for name, node in graph.items() if name not in finished]
        seconds = {node.name: took for node in nodes if (took := measured().seconds(node)) is not None}
        if not seconds:
            return ""
        return f"; {'about' if len(seconds) == len(nodes) else 'at least'} {duration(wall_clock(nodes, seconds, machine))} left"

    def starting(node: Node, claim: Claim) -> None:
        measured()  # what existed before; a run that finds everything done need not read it
        taken = next((f"take {reference_of(artifact)}" for artifact in node.weights.values()), None)
        together = f" ({claim.processes} processes)" if claim.processes > 1 else ""
        say(f"{node.name}: {taken or node.stage.summary}{together}")

    def done(result: Done) -> None:
        finished.add(result.node.name)
        if result.cached:
            changed[result.node.name] = changed_since(result.manifest, result.node, graph)
        else:
            measured().add(result.manifest)
        took = "cached" if result.cached else f"done in {duration(result.seconds)}"
        rest = "" if result.cached else left()
        say(f"{result.node.name}: {took}{headline(result.manifest.metrics)} [{len(finished)} of {len(graph)} stages{rest}]")

    options = ["-p", preset, "-s", store, *(word for each in overrides for word in ("--set", each))]
    cache = ["--cache", str(cache_options.folder), *(["--cache-limit", cache_options.limit] if cache_options.limit else [])]
    with (
        stopping() as stop,
        Schedule(graph, target, stop, machine, options, before=cache, starting=starting, done=done) as schedule,
    ):
        last = schedule.run()[-1].manifest
    if any(changed.values()):
        say(f"warning: {warning(changed)}")
    report = f"{target.uri}/artifacts/evaluate/{last.fingerprint}/report.html"
    if report_to is not None:
        copy_out(Artifact(target, last).path("report.html"), report_to)
        report = str(report_to)
    if not quiet:
        Console().print(f"\n{last.metrics.get('headline', '')}", highlight=False, markup=False, soft_wrap=True)
        print(f"report: {report}")
    return {"metrics": last.metrics, "report": report, "fingerprint": last.fingerprint}
