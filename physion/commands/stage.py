"""`physion stage`: one stage of the study, or a share of one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from physion.commands import (
    AsJSON,
    Overrides,
    Precision,
    Preset,
    StoreURI,
    copy_out,
    for_trainings,
    print_json,
    result_facts,
    stopping,
    study,
    tell_result,
)
from physion.config.schema import TrainingStage
from physion.errors import ConfigError, DataError, PartsMissing
from physion.job import Ranks
from physion.models.kinds import MODELS
from physion.pipeline.graph import Node, downstream, select, select_one
from physion.progress import Output, say
from physion.stages import STAGES, Kind, Stage
from physion.store.artifacts import Artifact
from physion.store.protocol import Store


def stage(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(STAGES)}; or an instance, such as frames-test.")],
    preset: Preset,
    store: StoreURI,
    subset: Annotated[str | None, typer.Option(help="Which videos: training, readout or test.")] = None,
    model: Annotated[str | None, typer.Option(help=f"For take-weights, the model: {', '.join(MODELS)}.")] = None,
    features: Annotated[str | None, typer.Option(help="Feature mode of a readout: observed, rollout or full.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a readout.")] = None,
    on: Annotated[str | None, typer.Option(help="For regress: what to predict from, such as states-full.")] = None,
    overrides: Overrides = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Make the artifact again even if it exists.")] = False,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Make only parts I, I + N, ... (I from 0 to N - 1); the last of the N commands completes the artifact.",
        ),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Make no parts; complete the artifact from parts that other commands made.")
    ] = False,
    precision: Precision = None,
    report_to: Annotated[Path | None, typer.Option("--report", help="For evaluate: copy the report to this file.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Run one stage, or a share of one; its inputs must be in the store. torchrun starts a training on several ranks.

    Without --subset, simulate and fetch make the videos of all subsets.
    """
    graph, target = study(preset, for_trainings(preset, overrides, precision=precision), store)
    chosen = {"subset": subset, "model": model, "features": features, "seed": seed, "on": on}
    nodes = select(graph, name, chosen)
    if nodes[0].stage.makes != "dataset":
        nodes = [select_one(graph, name, chosen)]
    parts = _parts(nodes[0].stage, share, publish, force)
    if report_to is not None and nodes[0].stage.name != "evaluate":
        raise ConfigError(f"--report: stage {nodes[0].stage.name} makes no report, evaluate does")
    told: list[dict[str, Any] | None] = []
    errors: list[DataError] = []
    for node in nodes:
        try:
            told.append(_run(node, graph, target, parts, share, force, as_json))
        except DataError as error:  # the other subsets may have problems too; report them together
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else DataError("\n".join(dict.fromkeys(map(str, errors))))
    if as_json and told[0] is not None:
        print_json(told[0] if len(told) == 1 else told)
    if report_to is not None and (manifest := nodes[0].manifest(target)):
        copy_out(Artifact(target, manifest).path("report.html"), report_to)


def _run(
    node: Node, graph: Mapping[str, Node], target: Store, parts: slice, share: str | None, force: bool, as_json: bool
) -> dict[str, Any] | None:
    """Run one instance and report its result; as JSON data, None on all ranks but the first."""
    from physion.pipeline.runner import require_standing_ground, run_node

    before = _content(target, node) if force else None
    with stopping() as stop, _ranks(node, os.environ) as ranks:
        ranks.on_rank_0(lambda: require_standing_ground(node, graph, target))
        try:
            result = run_node(node, graph, target, stop, force=force, share=parts, ranks=ranks)
        except PartsMissing as error:
            if share is None:
                raise
            where = f"{target.uri}/{node.prefix}"
            if not as_json and not Output.relayed:
                missing = f"{len(error.missing)} of {error.total} parts are left to other commands"
                print(f"{node.name}: share {share} done; {missing}\n{where}")
            return {"artifact": where, "published": False, "missing_parts": error.missing}
    if ranks.rank > 0:
        return None
    if before is not None:
        _say_what_follows(node, graph, target, same=before == result.manifest.content)
    if not as_json and not Output.relayed:
        tell_result(result, target, as_json)
    return result_facts(result, target)


def _content(target: Store, node: Node) -> str | None:
    """The digest of an artifact's content; None if it is not published, or its manifest cannot be read (hence --force)."""
    with contextlib.suppress(DataError, ConfigError):
        if manifest := node.manifest(target):
            return manifest.content
    return None


def _say_what_follows(node: Node, graph: Mapping[str, Node], target: Store, *, same: bool) -> None:
    """After --force: whatever depends on the artifact stays if its bytes are the same, else it is made again when needed."""
    published = [other.name for other in downstream(graph, node.name) if _content(target, other)]
    if not published:
        return
    if same:
        say(f"{node.name} has the same bytes as before: everything built on it stays ({', '.join(published)})")
    else:
        say(f"{node.name} has different bytes than before: everything built on it will be made again ({', '.join(published)})")


def _parts(stage: Stage, share: str | None, publish: bool, force: bool) -> slice:
    """The parts of a stage's list that `--share` or `--publish` select."""
    if share is None and not publish:
        return slice(None)
    if stage.kind is not Kind.PARTS:
        split = ", ".join(STAGES.of_kind(Kind.PARTS))
        raise ConfigError(f"stage {stage.name} cannot be split: run it without --share and --publish (with parts: {split})")
    if publish and share is not None:
        raise ConfigError("--publish makes no parts: leave out --share")
    if force:
        raise ConfigError(
            "--force would remove what other shares made: make the whole stage again, without --share and --publish"
        )
    if share is None:
        return slice(0)
    match = re.fullmatch(r"(\d+)/(\d+)", share)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--share {share}: not of the form I/N with I from 0 to N - 1, such as 0/4")
    return slice(int(match[1]), None, int(match[2]))


@contextlib.contextmanager
def _ranks(node: Node, environment: Mapping[str, str]) -> Iterator[Ranks]:
    """The ranks that torchrun, or a PyTorchJob, started: RANK, WORLD_SIZE and, with several on a machine, LOCAL_RANK."""
    count, rank = int(environment.get("WORLD_SIZE", "1")), int(environment.get("RANK", "0"))
    if count == 1:
        yield Ranks()
        return
    if not isinstance(node.section, TrainingStage):
        raise ConfigError(
            f"stage {node.stage.name} is one process, but WORLD_SIZE is {count}; only trainings run on several ranks"
        )
    from physion.training.distributed import joined

    Output.quiet = rank > 0
    # Shared by all attempts; otherwise each attempt has its own meeting place.
    shared = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = environment["TORCHELASTIC_RESTART_COUNT"] if shared else "0"
    with joined(rank, count, int(environment.get("LOCAL_RANK", "0")), node.section.stuck_after, attempt) as ranks:
        yield ranks
