"""Every `physion` command that README, docs, presets and help show can be typed and its overrides set, and is run here on a
miniature study, or `NOT_RUN` says why not.
"""

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from physion.cli import app
from physion.config.load import load_config
from physion.pipeline.graph import build_graph

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "physion" / "config" / "presets").glob("*.yaml")]
PAGES = sorted([*PAGES, *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
NOT_OURS = ("mine.", "other.", "my_")  # a user's own plug-in, in docs/extend.md

CLUSTER = "a cluster: tests/cluster, tests/kubernetes"
BEFORE = "needs named weights: tests/commands/test_named_weights.py"
# What an example begins with -> why it is not run here.
NOT_RUN = {
    "physion run -p paper -s runs/paper --set fetch.root=/data/Physion --set train-dvae.weights": BEFORE,
    "physion run -p paper --set fetch.root=/data/Physion --store runs/published --precision fp16": "fp16 is for GPUs",
    "physion run --preset cpu --store runs/cpu --set slot-model=bodies": "takes simulated videos: tests/stages/test_bodies.py",
    "physion run --preset cpu --store runs/cpu --set slot-model=steve": "it sets 10,000 steps",
    "physion run --preset tiny --store runs/mine --sweep": "several runs: tests/commands/test_looking_after.py",
    "physion stage regress --on states-full": "takes the truth of simulated videos: tests/stages/test_regress.py",
    "physion stage simulate": "seconds a video: tests/end_to_end/test_smoke.py",
    "physion stage train-readout --features rollout --seed 0 -p tiny -s runs/mine --set": "after a run: tests/readme.py",
    "physion contact-sheet": "renders eight videos: tests/simulation/test_rendering.py",
    "physion launch train-steve": CLUSTER,
    "physion submit": CLUSTER,
    "physion status": CLUSTER,
    "physion logs": CLUSTER,
    "physion store serve": "serves until Ctrl-C: tests/store/test_server.py",
    "physion tensorboard": "serves until Ctrl-C: tests/commands/test_tensorboard.py",
    "physion store create": "a bucket: tests/store/test_stores.py",
    "physion weights import ": "takes checkpoints of the full size: tests/models/test_published.py",
    "physion weights pull": BEFORE,
    "physion weights push pretrained/": BEFORE,
    "physion weights export pretrained/": BEFORE,
    "physion stage fetch --force": "makes the videos of the study again: tests/stages/test_fetch.py",
}
NAMES = {
    "physion stage",
    "physion launch",
    "physion weights import",
    "physion weights remove",
}  # in sentences, without arguments


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
    if path and command.epilog:
        for example in re.split(r"\s+\|\s+", re.sub(r"^Examples?:\s*", "", command.epilog)):
            yield path, example
    for name, below in getattr(command, "commands", {}).items():  # typer's click need not be the click that one can import
        yield from epilogs(below, (*path, name))


def parse(words):
    """The parameters of the command that an example is. Raises a UsageError when it cannot be typed."""
    assert words[0] == "physion"
    command, context, rest = tree(), None, words[1:]
    while hasattr(command, "commands"):
        context = command.context_class(command, info_name="physion", parent=context)
        _, command, rest = command.resolve_command(context, rest)
    return command.make_context(command.name, list(rest), parent=context).params


def every():
    """Where each example is shown first, by example."""
    found: dict[str, str] = {}
    for page in PAGES:
        for example in commands_of(page.read_text(encoding="utf-8")):
            # Words that stand for others, or a part of a sentence.
            if not re.search(r"\.\.\.|…|<|FILE|STAGE\b|\[|\bRUN\b", example) or "train-readout.seeds=[" in example:
                found.setdefault(example, f"{page.name}: {example}"[:90])
    for path, example in epilogs(tree()):
        found.setdefault(example, f"help of {' '.join(path)}: {example}"[:90])
    return found


EXAMPLES = every()
shown = pytest.mark.parametrize("example", list(EXAMPLES), ids=list(EXAMPLES.values()))


@shown
def test_it_can_be_typed(example, monkeypatch, tmp_path):
    if example in NAMES:
        pytest.skip("a name in a sentence")
    for name, value in {"PHYSION_PRESET": "tiny", "PHYSION_STORE": "runs/mine"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slots.pkl").touch()
    words = ["tiny" if word == "PRESET" else word for word in shlex.split(example.partition(" > ")[0], comments=True)]
    parameters = parse(words)
    sets = [value for option, value in pairwise(words) if option == "--set"]
    preset = parameters.get("preset")
    if preset and not preset.endswith(".yaml") and not any(word.startswith(("plugins=", *NOT_OURS)) for word in sets):
        load_config(preset, sets)


def test_there_are_many():
    assert len(EXAMPLES) > 80
    assert sum(where.startswith("help of ") for where in EXAMPLES.values()) > 25


def why_not(example):
    spaced = re.sub(r" +", " ", example)
    return (
        "a name in a sentence"
        if example in NAMES
        else next((NOT_RUN[start] for start in NOT_RUN if spaced.startswith(start)), None)
    )


def test_what_is_not_run_is_shown_and_most_is_run():
    for start in (*NOT_RUN, *NAMES):
        assert any(re.sub(r" +", " ", example).startswith(start) for example in EXAMPLES), start
    for why in NOT_RUN.values():
        assert all((ROOT / path).exists() for path in re.findall(r"tests/[\w/.]*\w", why)), why
    assert sum(why_not(example) is None for example in EXAMPLES) > len(EXAMPLES) / 2


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory):
    """A store that the examples change, one after the other."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(finished, folder / "store")
    shutil.copytree(finished, folder / "other")
    shutil.copytree(finished, folder / "changed")
    (folder / "slots.pkl").write_bytes(b"slots")
    (folder / "out").mkdir()
    return folder


@shown
def test_it_does_what_it_is_shown_for(example, physion, study, preset, pristine, monkeypatch):
    if why := why_not(example):
        pytest.skip(why)
    for name, value in {"PHYSION_PRESET": preset, "PHYSION_STORE": str(study / "store")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(study)
    report = build_graph(load_config(preset))["evaluate"].fingerprint
    typed = shlex.split(example.partition(" > ")[0], comments=True)
    own = str(study / ("changed" if "--set" in typed else "store"))  # so that the first holds one study
    words, store = [], iter([str(study / "store"), str(study / "other")])
    for before, word in pairwise(typed):
        if before in ("-s", "--store"):
            word = own
        elif before in ("--to", "--from"):
            word = str(study / "elsewhere")
        elif before in ("-p", "--preset", "--keep"):
            word = preset
        elif re.fullmatch(r"(runs/|s3://).*|[AB]", word) and words[:2] == ["store", "diff"]:
            word = next(store)
        word = {"1a2b3c": report, "4d5e6f": report, "ARTIFACT|KEY": "evaluate", "DEST": "out", "report": "out"}.get(word, word)
        word = re.sub("^runs/[ab]@.*", f"{study / 'store'}@{report}", word)
        words.append(word.replace("FINGERPRINT", report).replace("/data/Physion", str(pristine.root)))
    ended = physion("--cache", study / "cache", *words)
    assert ended.code == 0, (words, ended.err)
