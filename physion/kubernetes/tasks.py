"""What the tasks of workflows/templates/study.yaml have to do, as lists that they fan out over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from physion.errors import ConfigError
from physion.pipeline.graph import Node
from physion.stages import STAGES

READOUTS = {"observed": "readouts-of-slots", "full": "readouts-of-slots", "rollout": "readouts-of-rollouts"}
"""By feature mode, the task that trains the readouts: those of true slots do not wait for the rollouter."""
TASKS = (
    "simulate",
    "fetch",
    *(f"frames-{subset}" for subset in ("training", "readout", "test")),
    "train-dvae",
    "tokenize",
    "train-steve",
    *(f"extract-slots-{subset}" for subset in ("training", "readout", "test")),
    "train-slotformer",
    *(f"rollout-{subset}" for subset in ("readout", "test")),
    *dict.fromkeys(READOUTS.values()),
)
"""Every task of the study but the plan before and the test after them."""


def task_of(node: Node) -> str:
    """The task that makes the artifact of this instance."""
    return READOUTS[str(node.params["features"])] if node.stage == "train-readout" else node.name


def work_lists(left: Iterable[Node], shards: Mapping[str, int]) -> dict[str, list[str]]:
    """By task, one entry for each pod of it; none where nothing is left to do.

    An entry is the pod's share (`0/4`) where the stage is worked on part by part, else the instance. Weights that take the
    place of a training are copied by one process.
    """
    lists: dict[str, list[str]] = {task: [] for task in TASKS}
    for node in left:
        if node.stage == "evaluate":
            continue
        count = shards.get(node.stage, 1)
        lists[task_of(node)] += [f"{i}/{count}" for i in range(count)] if STAGES[node.stage].parts else [node.name]
    return lists


def write_work_lists(folder: Path, lists: Mapping[str, list[str]]) -> None:
    """One file for each task, a JSON list, for `withParam`.

    Raises ConfigError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task, entries in lists.items():
            (folder / task).write_text(json.dumps(entries))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error})") from error


def parse_shards(options: Iterable[str]) -> dict[str, int]:
    """`frames=4` and so on, by stage.

    Raises ConfigError.
    """
    split = [stage.name for stage in STAGES.values() if stage.parts]
    shards = {}
    for option in options:
        stage, _, count = option.partition("=")
        if stage not in split or not count.isdecimal() or int(count) < 1:
            raise ConfigError(f"--shards {option}: not of the form STAGE=N with N of 1 or more and STAGE of {', '.join(split)}")
        shards[stage] = int(count)
    return shards
