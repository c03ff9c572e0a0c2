"""Every `physion` command that README, docs, presets and help show: it can be typed, and its presets and overrides can be set.

What these commands do is tested where they are; here, that nobody copies one that does not exist (any more).
"""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import click
import pytest
import typer.main

from physion.cli import app
from physion.config.load import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "physion" / "config" / "presets").glob("*.yaml")]
PAGES = sorted([*PAGES, *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
NOT_OURS = ("mine.", "other.", "my_")  # a user's own plug-in, in docs/extend.md


def tree():
    return typer.main.get_command(app)


def commands_of(text):
    """What a reader would copy: lines of code that begin with physion, or have it after torchrun, and spans of code."""
    joined = re.sub(r"\\\n\s*(?:#\s+)?", " ", text)
    lines = re.findall(r"^(?:    |#   +|)(physion [a-z]+ .*)$", joined, re.MULTILINE)
    lines += re.findall(r"^ +torchrun .*? (?:--no-python |-m )(physion(?:\.cli)? [a-z]+ .*)$", joined, re.MULTILINE)
    spans = re.findall(r"`(physion [a-z]+[^`]*)`", joined)
    return [line.replace("physion.cli ", "physion ").partition("   (")[0].strip() for line in [*lines, *spans]]


def epilogs(command, path=()):
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from epilogs(below, (*path, name))
    for text in filter(None, [command.epilog]):
        yield from ((path, example) for example in re.split(r"\s+\|\s+", re.sub(r"^Examples?:\s*", "", text)) if path)


def parse(example):
    """The parameters of the command that an example is. Raises click.UsageError when it cannot be typed."""
    words = shlex.split(example, comments=True)
    assert words[0] == "physion"
    command, context, rest = tree(), None, words[1:]
    while isinstance(command, click.Group):
        parent = click.Context(command, info_name="physion", parent=context)
        _, below, rest = command.resolve_command(parent, rest)
        command, context = below, parent
    return command.make_context(command.name, list(rest), parent=context).params


def shown():
    for page in PAGES:
        for example in commands_of(page.read_text(encoding="utf-8")):
            # Words that stand for others, or a part of a sentence.
            if not re.search(r"\.\.\.|…|<|FILE|STAGE\b|\[|\bRUN\b", example) or "train-readout.seeds=[" in example:
                yield pytest.param(example, id=f"{page.name}: {example}"[:90])
    for path, example in epilogs(tree()):
        yield pytest.param(example, id=f"help of {' '.join(path)}: {example}"[:90])


@pytest.mark.parametrize("example", list(shown()))
def test_it_can_be_typed(example):
    parameters = parse(example)
    words = shlex.split(example, comments=True)
    sets = [value for option, value in pairwise(words) if option == "--set"]
    preset = parameters.get("preset")
    if preset and not preset.endswith(".yaml") and not any(word.startswith(("plugins=", *NOT_OURS)) for word in sets):
        load_config(preset, sets)


def test_there_are_many():
    assert len(list(shown())) > 80
