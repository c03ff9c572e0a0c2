"""What `--json` prints is what docs/json.md says."""

import json
import re
from pathlib import Path

import pytest
import typer

from physion.cli import app
from physion.config.load import load_config
from physion.pipeline.graph import build_graph
from physion.store.artifacts import ArtifactWriter
from physion.store.local import LocalStore

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text()


def outside_of_brackets(text):
    while text != (text := re.sub(r"\([^()]*\)", "", text)):
        pass
    return text


# Row -> the keys of its objects; those of objects below stand in brackets.
ROWS = {
    name: set(re.findall(r"`(\w+)`", outside_of_brackets(keys)))
    for names, keys in re.findall(r"^\| (`.+?) \| .+? \| (.+) \|$", PAGE, re.MULTILINE)
    for name in re.findall(r"`(.+?)`", names)
}
ROWS["run --sweep"] |= ROWS["run"]
ROWS["store gc"] |= ROWS["store ls"] - {"files"}


def commands(group, before=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        elif any("--json" in parameter.opts for parameter in command.params):
            yield " ".join((*before, name))


def test_every_command_is_on_the_page():
    assert set(commands(typer.main.get_command(app))) == {re.sub(" (--|[A-Z]).*", "", row) for row in ROWS}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("plan", ["plan", "PRESET"]),
        ("plan --sweep", ["plan", "PRESET", "--sweep", "evaluate.resamples=200,100"]),
        ("plan --why", ["plan", "evaluate", "--why", "PRESET", "--set", "evaluate.resamples=9"]),
        ("run", ["run", "PRESET"]),
        ("run --sweep", ["run", "PRESET", "--sweep", "evaluate.resamples=200"]),
        ("stage", ["stage", "tokenize", "PRESET"]),
        ("stage --share", ["stage", "frames", "--subset=test", "--share=0/2", "PRESET", "--set", "frames.videos-per-shard=2"]),
        ("runs", ["runs"]),
        ("compare", ["compare", "REPORT", "REPORT"]),
        ("doctor", ["doctor"]),
        ("store ls", ["store", "ls", "--files"]),
        ("store verify", ["store", "verify"]),
        ("store diff", ["store", "diff", "STORE", "STORE"]),
        ("store gc", ["store", "gc", "--days", "0"]),
    ],
)
def test_the_keys_are_those_on_the_page(physion, preset, store, tmp_path, row, words):
    ArtifactWriter(LocalStore(store), "tokenize", "0" * 20).begin({}, {})  # work that nobody goes on with
    given = {
        "PRESET": [f"--preset={preset}"],
        "REPORT": [build_graph(load_config(preset))["evaluate"].fingerprint],
        "STORE": [str(store)],
    }
    where = [] if "STORE" in words else ["-s", store]
    ended = physion("--cache", tmp_path, *(each for word in words for each in given.get(word, [word])), *where, "--json")
    tree = json.loads(ended.out)
    assert (ended.code, tree.keys(), tree["version"]) == (0, {"version", "result"}, 1)
    objects = tree["result"]["evaluate"] if row == "plan --why" else tree["result"]
    objects = objects if isinstance(objects, list) else [objects]
    assert {key for each in objects for key in each} == ROWS[row] - {"upload"}  # which folders have none of
