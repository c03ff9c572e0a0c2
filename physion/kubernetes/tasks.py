"""The study as tasks of a workflow, and the lists of what each has to do, over which it fans out; derived from the stages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physion.config.schema import Study
from physion.errors import ConfigError
from physion.models.kinds import MODELS, ReadoutKind, SlotModelKind
from physion.pipeline.graph import Node
from physion.stages import STAGES, Instance, Kind, Stage, instances


@dataclass(frozen=True)
class Task:
    """Some instances of one stage, made by pods that may start when the tasks `after` have ended or had nothing to do."""

    name: str
    stage: Stage
    after: tuple[str, ...]


def task_of(node: Node | Instance) -> str:
    """The task that makes the artifact of this instance: one for all values of the parameter that its stage fans out over."""
    stage = node.stage if isinstance(node, Node) else STAGES[node.stage]
    return "-".join([stage.name, *(str(value) for key, value in node.params.items() if key != stage.fans_out)])


def study_tasks(config: Study) -> dict[str, Task]:
    """Every task that a study may need, whatever its dataset, models and feature modes, and the weights that it is given."""
    stages: dict[str, Stage] = {}
    after: dict[str, set[str]] = {}
    for variant in _variants(config):
        for instance, sources in instances(variant).values():
            name = task_of(instance)
            stages[name] = STAGES[instance.stage]
            after.setdefault(name, set()).update(task_of(s) for s in sources.values() if isinstance(s, Instance))
    order = _in_order(after)
    return {name: Task(name, stages[name], tuple(sorted(after[name], key=order.index))) for name in order}


def work_lists(
    config: Study, left: Iterable[tuple[Sequence[str], Iterable[Node]]], pods: Mapping[str, int]
) -> dict[str, list[str]]:
    """By task, one entry for each pod of it; none where nothing is left to do.

    left: the overrides of each variant, and what is left of it. An entry is the pod's share (`0/4`) of a stage that has parts,
    else the instance; then, separated by spaces, the overrides of the first variant that needs it.
    """
    lists: dict[str, list[str]] = {name: [] for name in study_tasks(config)}
    listed: set[str] = set()
    for overrides, nodes in left:
        for node in nodes:
            if node.fingerprint in listed:
                continue
            listed.add(node.fingerprint)
            count = pods.get(node.stage.name, 1)
            split = node.stage.kind is Kind.PARTS
            entries = [f"{i}/{count}" for i in range(count)] if split else [node.name]
            lists[task_of(node)] += [" ".join([entry, *overrides]) for entry in entries]
    return lists


def write_work_lists(folder: Path, lists: Mapping[str, list[str]]) -> None:
    """One file for each task, a JSON list, for `withParam`.

    Raises ConfigError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task, entries in lists.items():
            (folder / task).write_text(json.dumps(entries), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error})") from error


def parse_pods(options: Iterable[str]) -> dict[str, int]:
    """`frames=4` and so on, by stage.

    Raises ConfigError.
    """
    split = STAGES.of_kind(Kind.PARTS)
    pods = {}
    for option in options:
        stage, _, count = option.partition("=")
        if stage not in split or not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"--pods {option}: not of the form STAGE=N with N of 1 or more and STAGE of {', '.join(split)}")
        pods[stage] = int(count)
    return pods


def _variants(config: Study) -> Iterator[Study]:
    """The study with every dataset, slot model and readout, and with every choice of models whose weights are given.

    A slot model whose training, or whose decoder's, the preset does not have is not one of this study's.
    """
    sections = {stage: config.section(stage) for stage in MODELS.trainings()}
    replaceable = [stage for stage, section in sections.items() if hasattr(section, "weights")]
    readouts = [kind.name for kind in MODELS.values() if isinstance(kind, ReadoutKind)]
    for slots in (kind for kind in MODELS.values() if isinstance(kind, SlotModelKind)):
        parts = [stage for name in (slots.name, *slots.decodes_with) if (stage := MODELS[name].stage)]
        if any(sections[stage] is None for stage in parts):
            continue
        choices = itertools.product((False, True), repeat=len(replaceable))
        for dataset, readout, given in itertools.product(STAGES.that_make("dataset"), readouts, choices):
            update = {STAGES[s].key: _with_weights(sections[s], g) for s, g in zip(replaceable, given, strict=True)}
            update["train_readout"] = update["train_readout"].model_copy(update={"model": readout})
            yield config.model_copy(update=update | {"dataset": dataset, "slot_model": slots.name})


def _with_weights(section: Any, given: bool) -> Any:
    """A training's section with weights given or not; a readout's has all feature modes, by which they are given."""
    fields = type(section).model_fields
    if "features" not in fields:
        return section.model_copy(update={"weights": "any" if given else None})
    modes = fields["features"].default
    return section.model_copy(update={"features": modes, "weights": dict.fromkeys(modes, "any-{seed}") if given else {}})


def _in_order(after: Mapping[str, set[str]]) -> list[str]:
    """Task names, each after those that it waits for; what needs the fewest others comes first."""
    levels: dict[str, int] = {}

    def level(name: str) -> int:
        if name not in levels:
            levels[name] = 1 + max(map(level, after[name]), default=0)
        return levels[name]

    return sorted(after, key=level)
