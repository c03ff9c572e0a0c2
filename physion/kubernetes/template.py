"""Writes into workflows/template.yaml what follows from the stages: parameters, the plan's lists, the tasks of the graph.

python -m physion.kubernetes.template [--check] [--preset PRESET] [FILE]
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from physion.config.load import load_config
from physion.errors import ConfigError, PhysionError
from physion.kubernetes.tasks import Task, study_tasks
from physion.stages import Kind, last_stage

# Of an item of a list that `plan` wrote: what to make, and the overrides of the variant, if any.
ENTRY = '{{=split(item, " ")[0]}}'
VARIANT = '{{=join(split(item, " ")[1:], " ")}}'
TEMPLATES = {Kind.PARTS: "bulk", Kind.TRAINING: "training", Kind.PROCESS: "stage"}


def main() -> int:
    """Write the file, or with --check only say whether it is as it would be written."""
    parser = argparse.ArgumentParser(prog="python -m physion.kubernetes.template")
    parser.add_argument("file", nargs="?", type=Path, default=Path("workflows/template.yaml"), metavar="FILE")
    parser.add_argument("--preset", default="paper", help="its stages; those of the package's presets are the same")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when the file is not up to date")
    given = parser.parse_args()
    try:
        old = given.file.read_text(encoding="utf-8")
        new = written(old, study_tasks(load_config(given.preset)))
    except (PhysionError, OSError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.check and new != old:
        print(f"error: {given.file} is not what follows from the stages: {parser.prog} writes it", file=sys.stderr)
        return 1
    if new != old:
        given.file.write_text(new, encoding="utf-8")
    return 0


def written(text: str, tasks: Mapping[str, Task]) -> str:
    """The text with what is between its lines `# generated: PLACE` and `# end` made anew; values of parameters stay.

    Raises ConfigError when a place is missing.
    """
    stages = {task.stage.name: task.stage.kind for task in tasks.values()}
    split = [name for name, kind in stages.items() if kind is Kind.PARTS]
    trainings = [name for name, kind in stages.items() if kind is Kind.TRAINING]
    values = {each["name"]: each.get("value") for each in yaml.safe_load(text)["spec"]["arguments"]["parameters"]}
    places = {
        "parameters": "".join(map(_line, _parameters(split, trainings, values))),
        "pods": "".join(f"- --pods={name}={_parameter(f'{name}-pods')}\n" for name in split),
        "lists": "".join(_line({"name": name, "valueFrom": {"path": f"/scratch/tasks/{name}"}}) for name in tasks),
        "tasks": "".join(_lines(_task(task, tasks)) for task in tasks.values()),
    }
    for place, lines in places.items():
        pattern = re.compile(rf"^( *)# generated: {place}\n.*?^\1# end\n", re.MULTILINE | re.DOTALL)
        if not (found := pattern.search(text)):
            raise ConfigError(f"there are no lines '# generated: {place}' and '# end', between which {place} could be written")
        made = textwrap.indent(f"# generated: {place}\n{lines}# end\n", found[1])
        text = text[: found.start()] + made + text[found.end() :]
    return text


def _parameters(split: Iterable[str], trainings: Iterable[str], values: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    """Of the workflow; a new one has the value 1."""
    counts = {f"{name}-pods": f"pods that share the work of each task of {name}" for name in split}
    counts |= {f"{name}-nodes": f"workers of {name}" for name in trainings}
    for name, description in counts.items():
        yield {"name": name, "description": description, "value": values.get(name, "1")}
    for name in trainings:
        source = {"configMapKeyRef": {"name": "physion", "key": "gpus"}}
        yield {"name": f"{name}-gpus", "description": f"GPUs, and ranks, of each worker of {name}", "valueFrom": source}


def _task(task: Task, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Of the graph. It fans out over its list; with none, Argo skips it, which is as good to those that wait for it."""
    stage, kind, template = task.stage.name, task.stage.kind, TEMPLATES[task.stage.kind]
    given = {"stage": task.name, "share": ENTRY} if kind is Kind.PARTS else {"stage": ENTRY}
    if kind is Kind.TRAINING:
        given |= {"nodes": _parameter(f"{stage}-nodes"), "gpus": _parameter(f"{stage}-gpus")}
    elif task.stage.gpu:
        given |= {"gpus": _parameter("gpus")}
    if task.name == last_stage().name:
        given, template = {}, task.name
    given["variant"] = VARIANT
    return {
        "name": task.name,
        "depends": " && ".join(_nearest(task, tasks)) or "plan",
        "template": template,
        "arguments": {"parameters": [{"name": name, "value": value} for name, value in given.items()]},
        "withParam": f"{{{{tasks.plan.outputs.parameters.{task.name}}}}}",
    }


def _nearest(task: Task, tasks: Mapping[str, Task]) -> list[str]:
    """What it waits for, but for what these wait for themselves: fewer lines in Argo's picture of the graph."""
    above: dict[str, set[str]] = {}
    for each in tasks.values():
        above[each.name] = set(each.after).union(*(above[name] for name in each.after))
    return [name for name in task.after if not any(name in above[other] for other in task.after)]


def _parameter(name: str) -> str:
    return f"{{{{workflow.parameters.{name}}}}}"


def _line(item: dict[str, Any]) -> str:
    return f"- {yaml.safe_dump(item, default_flow_style=True, sort_keys=False, width=1000)}"


def _lines(item: dict[str, Any]) -> str:
    plain = not any(isinstance(value, dict) for value in item.values())
    return yaml.safe_dump([item], default_flow_style=False if plain else None, sort_keys=False, width=100)


if __name__ == "__main__":
    sys.exit(main())
