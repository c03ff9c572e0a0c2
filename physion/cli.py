"""The `physion` command."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from physion import __version__
from physion.commands import (
    AsJSON,
    CacheFolder,
    CacheLimit,
    Overrides,
    Precision,
    Preset,
    StoreURI,
    cache_options,
    chosen_store,
    copy_out,
    headline,
    stopping,
    study,
    tell_result,
    with_precision,
)
from physion.commands.launch import launch
from physion.commands.store import store_app
from physion.commands.weights import weights_app
from physion.commands.workflows import logs, status, submit
from physion.config.load import load_config, preset_text
from physion.config.schema import Config, TrainingStage
from physion.errors import ConfigError, Interrupted, PhysionError, TransientError
from physion.pipeline.graph import Node, left_to_do, select
from physion.progress import Output, byte_count, duration, say
from physion.stages import STAGES, PartsMissing, Ranks
from physion.store.artifacts import Artifact, read_manifest

app = typer.Typer(
    help="Will the red object touch the yellow one? The whole Physion study, from video to report, as resumable stages.",
    epilog="Exit codes: 0 done, 2 configuration or usage, 3 bad data, 75 try again later, 130/143 interrupted, state saved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
TERMINATION_LOG = Path("/dev/termination-log")  # there in a pod only
config_app = typer.Typer(help="Look at presets and their options.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(weights_app, name="weights")
app.add_typer(store_app, name="store")


def main() -> NoReturn:
    """Run the command line and turn expected failures into one clear line and their exit code."""
    # OpenMP threads that spin while they wait bring everything down where cores are shared or limited (benchmarks/README.md);
    # read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    argo_file = os.environ.get("ARGO_PROGRESS_FILE")
    Output.argo_file = Path(argo_file) if argo_file else None
    try:
        app()
    except PhysionError as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(Interrupted("interrupted; what is done is saved, and the same command goes on from there"))
    except Exception as error:
        if _disk_is_full(error):
            _fail(TransientError(f"no space left on the disk ({error}); free some and run the same command again"))
        raise
    sys.exit(0)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    cache: CacheFolder = Path("~/.cache/physion"),
    cache_limit: CacheLimit = None,
) -> None:
    if version:
        print(f"physion {__version__}")
        raise typer.Exit
    cache_options.folder, cache_options.limit = cache.expanduser().absolute(), cache_limit


@app.command(epilog="Example: physion run --preset tiny --store runs/tiny")
def run(
    preset: Preset,
    store: StoreURI,
    overrides: Overrides = [],  # noqa: B006
    precision: Precision = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="Copy the report to this file at the end.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Run the whole study; what is done already is reused, what was interrupted goes on."""
    from physion.pipeline.runner import Done, run_graph

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "physion run is one process; start several ranks only of a training: torchrun ... physion stage train-..."
        )
    config, graph, target = study(preset, with_precision(overrides, precision), store)
    say(f"physion {__version__}: preset {preset}, {len(graph)} stages, store {target.uri}")

    def starting(node: Node) -> None:
        if not read_manifest(target, node.stage, node.fingerprint):
            say(f"{node.name}: {STAGES[node.stage].summary if node.weights is None else f'take {node.weights.prefix}'}")

    def done(result: Done) -> None:
        took = "cached" if result.cached else f"done in {duration(result.seconds)}"
        say(f"{result.node.name}: {took}{headline(result.manifest.metrics)}")

    with stopping() as stop:
        finished = run_graph(graph, target, config, stop, starting=starting, done=done)
    last = finished[-1].manifest
    report = f"{target.uri}/artifacts/evaluate/{last.fingerprint}/report.html"
    if report_to is not None:
        copy_out(Artifact(target, last).path("report.html"), report_to)
        report = str(report_to)
    if as_json:
        print(json.dumps({"metrics": last.metrics, "report": report, "fingerprint": last.fingerprint}, indent=1))
    else:
        Console().print(f"\n{last.metrics.get('headline', '')}", highlight=False, soft_wrap=True)
        print(f"report: {report}")


@app.command(
    epilog="Examples: physion stage frames --subset test -p tiny -s runs/tiny    |    "
    "physion stage train-readout --features rollout --seed 0 -p tiny -s runs/tiny    |    "
    "physion stage simulate --shard 2/8 -p tiny -s runs/tiny"
)
def stage(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(STAGES)}; or an instance, such as frames-test.")],
    preset: Preset,
    store: StoreURI,
    subset: Annotated[str | None, typer.Option(help="Which videos: training, readout or test.")] = None,
    features: Annotated[str | None, typer.Option(help="Feature mode of a readout: observed, rollout or full.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a readout.")] = None,
    overrides: Overrides = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Make the artifact again even if it is there.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do only the parts I, I + N, ... (I from 0 to N - 1); the last of the N commands completes the artifact.",
        ),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Do no part, complete the artifact from parts that other commands did.")
    ] = False,
    precision: Precision = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="Of evaluate: copy the report to this file.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Run one stage, or a share of one; its inputs must be in the store. torchrun starts a training on several ranks."""
    from physion.pipeline.runner import run_node

    config, graph, target = study(preset, with_precision(overrides, precision), store)
    node = select(graph, name, {"subset": subset, "features": features, "seed": seed})
    where = f"{target.uri}/artifacts/{node.stage}/{node.fingerprint}"
    share = _share(node.stage, shard, publish, force)
    if report_to is not None and node.stage != "evaluate":
        raise ConfigError(f"--report: stage {node.stage} makes no report, evaluate does")
    with stopping() as stop, _ranks(node, os.environ) as ranks:
        try:
            result = run_node(node, graph, target, config, stop, force=force, share=share, ranks=ranks)
        except PartsMissing as error:
            if shard is None:
                raise
            if as_json:
                print(json.dumps({"artifact": where, "published": False, "missing_parts": error.missing}, indent=1))
            else:
                missing = f"{len(error.missing)} of {error.total} parts are left to other commands"
                print(f"{node.name}: shard {shard} done; {missing}\n{where}")
            return
    if ranks.rank > 0:
        return
    if report_to is not None:
        copy_out(Artifact(target, result.manifest).path("report.html"), report_to)
    tell_result(result, target, as_json)


app.command(epilog="Example: physion launch train-steve -p paper -s s3://physion/study --nodes 2 --gpus 8")(launch)
app.command(epilog="Example: physion submit -p paper --set train-steve.optim.lr=2e-4 --param train-steve-gpus=8 --wait")(submit)
app.command(epilog="Examples: physion status    |    physion status @latest")(status)
app.command(epilog="Examples: physion logs @latest --follow    |    physion logs physion-vqa-1a2b3c train-steve")(logs)


@app.command(epilog="Example: physion plan --preset paper --store runs/paper")
def plan(
    preset: Preset,
    store: StoreURI,
    overrides: Overrides = [],  # noqa: B006
    tasks: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For workflows/: write there, for each task, the list of what it has to do."),
    ] = None,
    shards: Annotated[
        list[str], typer.Option(metavar="STAGE=N", help="With --tasks: how many pods share a stage. Repeatable.")
    ] = [],  # noqa: B006
    as_json: AsJSON = False,
) -> None:
    """Show every stage with its fingerprint, whether it is done, and what it will take, before anything is spent."""
    from physion.kubernetes.tasks import parse_shards, work_lists, write_work_lists
    from physion.pipeline.estimate import SUSTAINED, estimate

    config, graph, target = study(preset, overrides, store)
    cached = {node.name: read_manifest(target, node.stage, node.fingerprint) is not None for node in graph.values()}
    if tasks is not None:
        left = left_to_do(graph, lambda node: cached[node.name])
        write_work_lists(tasks, work_lists(left, parse_shards(shards)))
    costs = estimate(config, graph)
    rows: list[dict[str, Any]] = []
    for node in graph.values():
        rows.append(
            {
                "name": node.name,
                "stage": node.stage,
                "fingerprint": node.fingerprint,
                "inputs": node.inputs,
                "cached": cached[node.name],
                "weights": node.weights.prefix if node.weights else None,
                "bytes": costs[node.name].bytes,
                "flops": costs[node.name].flops,
                "accelerator_hours": costs[node.name].flops / SUSTAINED / 3600,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(
        title=f"preset {preset}, store {target.uri}", title_justify="left", caption_justify="left", box=None, pad_edge=False
    )
    for column in ("stage", "fingerprint", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("output", "FLOPs", "GPU time"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        state = "[green]cached[/]" if row["cached"] else f"take {row['weights']}" if row["weights"] else "to do"
        table.add_row(row["name"], row["fingerprint"][:12], state, *_cost_cells(row))
    todo = [row for row in rows if not row["cached"]]
    total = {key: sum(row[key] for row in todo) for key in ("bytes", "flops", "accelerator_hours")}
    table.add_row("[bold]still to do", "", f"{len(todo)} of {len(rows)}", *_cost_cells(total))
    table.caption = f"Output and FLOPs are estimates; GPU time assumes {SUSTAINED / 1e12:.0f} TFLOP/s sustained."
    Console().print(table)


@config_app.command("show", epilog="Example: physion config show --preset small --set frames.image-size=96")
def config_show(preset: Preset, overrides: Overrides = [], as_json: AsJSON = False) -> None:  # noqa: B006
    """Print a preset with every default and override filled in."""
    tree = load_config(preset, overrides).model_dump(mode="json")
    if as_json:
        print(json.dumps(tree, indent=1))
        return
    for line in preset_text(preset).splitlines():
        if not line.startswith("#"):
            break
        print(line)
    print(yaml.safe_dump(tree, sort_keys=False, width=120), end="")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a preset, for editors."""
    print(json.dumps(Config.model_json_schema(by_alias=True), indent=1))


@app.command(epilog="Example: physion doctor --store s3://bucket/physion")
def doctor(
    store: Annotated[
        str | None,
        typer.Option("--store", "-s", envvar="PHYSION_STORE", help="Store to try: file:///path or s3://bucket/prefix."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Will it work on this machine? GPU, memory, cores, disk, store and clock; exit code 2 when something will not."""
    from physion.doctor import Finding, examine

    findings: list[Finding] = []
    for finding in examine(chosen_store(store) if store else None, cache_options.folder):
        findings.append(finding)
        if not as_json:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.state]
            line = f"[{colour}]{finding.state:<4}[/]  {finding.name:<8} {escape(finding.text)}"
            Console().print(line, soft_wrap=True, highlight=False)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1))
    failed = [finding.name for finding in findings if finding.state == "fail"]
    if failed:
        raise ConfigError(f"will not work as it is: {', '.join(failed)}")


@app.command("contact-sheet", epilog="Example: physion contact-sheet sheet.png --seed 3")
def contact_sheet_command(
    path: Annotated[Path, typer.Argument(help="PNG to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels a side of a picture.", min=32, max=512)] = 128,
) -> None:
    """Draw one simulated video of each scenario as a row of pictures."""
    from physion.simulation import contact_sheet

    try:
        contact_sheet(path, seed=seed, size=size)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error
    print(path)


def _share(stage: str, shard: str | None, publish: bool, force: bool) -> slice:
    """The parts that `--shard` or `--publish` select of a stage's list."""
    if shard is None and not publish:
        return slice(None)
    if not STAGES[stage].parts:
        split = ", ".join(other.name for other in STAGES.values() if other.parts)
        raise ConfigError(f"stage {stage} cannot be split: run it without --shard and --publish (with parts: {split})")
    if publish and shard is not None:
        raise ConfigError("--publish does no part: leave out --shard")
    if force:
        raise ConfigError(
            "--force would remove what other shards did: make the whole stage again, without --shard and --publish"
        )
    if shard is None:
        return slice(0)
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--shard {shard}: not of the form I/N with I from 0 to N - 1, such as 0/4")
    return slice(int(match[1]), None, int(match[2]))


@contextlib.contextmanager
def _ranks(node: Node, environment: Mapping[str, str]) -> Iterator[Ranks]:
    """The ranks that torchrun, or a PyTorchJob, started: RANK, WORLD_SIZE and, with several on a machine, LOCAL_RANK."""
    count, rank = int(environment.get("WORLD_SIZE", "1")), int(environment.get("RANK", "0"))
    if count == 1:
        yield Ranks()
        return
    if not isinstance(node.section, TrainingStage):
        raise ConfigError(f"stage {node.stage} is one process, but WORLD_SIZE is {count}; only trainings run on several ranks")
    from physion.training.distributed import joined

    Output.quiet = rank > 0
    shared = (
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    )  # by all attempts; else each has a meeting place of its own
    attempt = environment["TORCHELASTIC_RESTART_COUNT"] if shared else "0"
    with joined(rank, count, int(environment.get("LOCAL_RANK", "0")), node.section.stuck_after, attempt) as ranks:
        yield ranks


def _cost_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    if not row["flops"]:
        return byte_count(row["bytes"]) if row["bytes"] else "-", "-", "-"
    hours = row["accelerator_hours"]
    time = "< 1 min" if hours < 1 / 60 else f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"
    return byte_count(row["bytes"]), f"{row['flops']:.0e}", time


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or f"os error {errno.ENOSPC}" in str(error):  # safetensors reports the code only in its text
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(error: PhysionError) -> NoReturn:
    if not error.quiet:
        print(f"error: {error}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # Kubernetes shows it as the reason why the pod failed, and Argo in its node
            if TERMINATION_LOG.exists():
                TERMINATION_LOG.write_text(f"{error}")
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
