"""Which code made an artifact, and what is said when another one would make it now."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from physion.config.load import load_config
from physion.pipeline import provenance
from physion.pipeline.graph import build_graph
from physion.pipeline.provenance import program_of, this_commit
from physion.stages import STAGES
from physion.store.artifacts import Manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def graph(preset):
    return build_graph(load_config(preset))


def manifests(store):
    return {path: json.loads(path.read_text()) for path in store.glob("artifacts/*/*/manifest.json")}


def edit(store, instance, change):
    """Change what the manifest of an instance says of the code that made it."""
    for path, tree in manifests(store).items():
        if tree["instance"] == instance:
            change(tree["program"])
            path.write_text(json.dumps(tree))
            return
    raise AssertionError(instance)


def of_engine(program):
    program["source"]["physion.training.engine"] = "0" * 16
    program["commit"], program["dirty"] = "1" * 40, True


def test_every_artifact_says_which_code_made_it(finished, graph):
    for tree in manifests(finished).values():
        manifest = Manifest.model_validate(tree)
        now = program_of(graph[manifest.instance], graph)
        assert (manifest.program.source, manifest.program.packages) == (now.source, now.packages)
        assert bool(manifest.program.commit) == (ROOT / ".git").exists()
        assert STAGES[manifest.stage].module in manifest.program.source
        if manifest.stage.startswith("train-"):
            assert manifest.program.packages["torch"] == str(torch.__version__).partition("+")[0]
        assert ("av" in manifest.program.packages) == (manifest.stage in ("frames", "evaluate"))


def test_code_counts_where_it_decides_what_comes_out(graph):
    of = {name: {module.removeprefix("physion.") for module in program_of(node, graph).source} for name, node in graph.items()}
    for name, modules in of.items():
        reports = {module for module in modules if module.startswith("report.")}
        wanted = {"train-steve": {"report.binding"}, "evaluate": reports}
        threshold = {"report.metrics"} if name.startswith(("train-readout", "regress")) else set()
        assert reports <= wanted.get(name, threshold), name
        assert not any(module.startswith(("store", "config", "commands", "progress")) for module in modules)
    for name in ("train-steve", "extract-slots-test", "evaluate"):
        assert {"models.steve", "models.slot_attention", "training.engine"} <= of[name]
    assert "models.steve" not in of["train-slotformer"] | of["train-readout-full-0"] | of["train-dvae"]
    assert {"models.readout", "training.precision"} <= of["train-readout-full-0"]
    simulated = build_graph(load_config("smoke"))
    sources = program_of(simulated["simulate-test"], simulated).source
    assert {"physion.simulation.scenarios.drape", "physion.simulation.cloth", "physion.data.video"} <= sources.keys()


CODE = '''"""What it is."""

import os  # for names


class Thing:
    """A thing."""

    size: int = 1
    """Of it."""

    def name(self):
        """Its
        name."""
        # as it is
        return "# one" + os.sep
'''


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""What it is."""\n', '"""Something else.\n\nIn more words.\n"""\n', True),
        ("  # for names", "", True),
        ("        # as it is\n", "        # as it was\n\n\n", True),
        ('"""Its\n        name."""', '"""Its name."""', True),
        ('    """Of it."""\n', "", True),
        ("size: int = 1", "size: int = 2", False),
        ('"# one"', '"# two"', False),
        ("import os", "import posix as os", False),
    ],
)
def test_words_are_not_code(tmp_path, before, after, same):
    files = [tmp_path / "one.py", tmp_path / "other.py"]
    for path, text in zip(files, (CODE, CODE.replace(before, after)), strict=True):
        path.write_text(text)
    assert files[0].read_text() != files[1].read_text()
    one, other = (provenance._digest_and_imports(path, "")[0] for path in files)
    assert (one == other) == same


def test_artifacts_from_before_are_found_and_warn_of_nothing(physion, preset, store):
    for path, tree in manifests(store).items():
        del tree["program"]
        path.write_text(json.dumps(tree))
    planned = physion("plan", "-p", preset, "-s", store)
    assert (planned.code, planned.out.count("cached"), "warning" in planned.out) == (0, 30, False)
    assert physion("plan", "--why", "-p", preset, "-s", store).out == "nothing needs to be made\n"
    ran = physion("run", "-p", preset, "-s", store)
    assert (ran.code, ran.err.count(": cached"), "warning" in ran.err) == (0, 30, False)
    assert physion("runs", "-s", store).code == 0


def test_nothing_is_said_of_the_same_code(physion, preset, finished):
    assert "warning" not in physion("plan", "-p", preset, "-s", finished).out
    assert "warning" not in physion("run", "-p", preset, "-s", finished).err


def test_other_code_of_the_same_version_is_warned_of(physion, preset, store):
    edit(store, "train-steve", of_engine)
    warning = (
        "warning: train-steve: made by other code of the same version, and kept; physion.training.engine changed since "
        "(for more, plan --why; physion stage ... --force makes one again)\n"
    )
    assert warning in physion("plan", "-p", preset, "-s", store).out
    ran = physion("run", "-p", preset, "-s", store)
    assert (ran.code, ran.err.count(": cached"), warning in ran.err) == (0, 30, True)
    (row,) = (
        row for row in json.loads(physion("plan", "-p", preset, "-s", store, "--json").out)["result"] if row["changed_since"]
    )
    assert (row["name"], row["cached"], row["changed_since"]) == ("train-steve", True, ["physion.training.engine"])


def test_why_says_what_made_what_is_kept(physion, preset, store, graph, monkeypatch):
    edit(store, "train-steve", of_engine)
    edit(store, "tokenize", lambda program: program["packages"].update(torch="1.0"))
    why = physion("plan", "--why", "-p", preset, "-s", store).out
    now = str(program_of(graph["train-steve"], graph)) or "unknown"
    assert why == (
        "tokenize is kept, but other code or packages would make it now:\n"
        f"  made at commit {now}; this is {now}\n"
        f"  torch: 1.0 -> {program_of(graph['tokenize'], graph).packages['torch']}\n"
        "train-steve is kept, but other code or packages would make it now:\n"
        f"  made at commit 111111111111 with changes; this is {now}\n"
        "  the source of physion.training.engine has changed\n"
        "nothing needs to be made\n"
    )
    assert "warning: train-steve: made" in physion("plan", "-p", preset, "-s", store).out  # of packages only --why


# ------------------------------------------------------------------------------------------------------ the commit
@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with the package in it, and `git` there."""
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    (tmp_path / "physion").mkdir()
    (tmp_path / "physion" / "code.py").write_text("x = 1\n")

    def git(*words):
        options = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    git("add", "physion")
    git("commit", "--quiet", "-m", "first")
    return git


def test_the_commit_of_a_checkout(checkout, tmp_path, monkeypatch):
    head = checkout("rev-parse", "HEAD")
    assert this_commit.__wrapped__() == (head, False)
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))  # as in a hook of another repository
    assert this_commit.__wrapped__() == (head, False)
    (tmp_path / "notes").write_text("beside the package")
    assert this_commit.__wrapped__() == (head, False)
    (tmp_path / "physion" / "new.py").write_text("")
    assert this_commit.__wrapped__() == (head, True)
    (tmp_path / "physion" / "new.py").unlink()
    (tmp_path / "physion" / "code.py").write_text("x = 2\n")
    assert this_commit.__wrapped__() == (head, True)


@pytest.mark.parametrize(("given", "commit"), [("abc123", "abc123"), ("unknown", ""), ("", ""), ("v1.0", "")])
def test_the_commit_of_an_image(tmp_path, monkeypatch, given, commit):
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    monkeypatch.setenv("PHYSION_COMMIT", given)
    assert this_commit.__wrapped__() == (commit, False)


def test_no_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert this_commit.__wrapped__() == ("", False)


# ------------------------------------------------------------------------------------------------------- plug-ins
STAGE = """
from physion.models.kinds import MODELS, ReadoutKind
from physion.models.readout import ReadoutModel
from physion.stages.registry import STAGES, Kind, Stage
{imported}
def run(job):
    \"\"\"Words.\"\"\"
    return {{"{metric}": 1}}
class Mine(ReadoutModel):
    def forward(self, slots): return slots
MODELS.register(ReadoutKind("mine", make=Mine))
STAGES.register(Stage("make", kind=Kind.PROCESS, summary="", module=__name__, makes="dataset"))
"""


def test_the_source_of_a_plug_in_is_part_of_its_identity(tmp_path, monkeypatch):
    """Of its stage, of the model that a stage of ours trains, and of what both import from beside them."""
    known = [(table, dict(table)) for table in (provenance.MODELS, STAGES)]
    found = {}
    plain = {"imported": "import beside", "metric": "one"}
    for name, made_from, other in (
        ("first", plain, "x = 1"),
        ("words", plain | {"imported": "import beside  # why"}, "x = 1  # or so"),
        ("code", plain | {"metric": "two"}, "x = 1"),
        ("beside", plain, "x = 2"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "outside.py").write_text(STAGE.format(**made_from))
        (folder / "beside.py").write_text(other)
        monkeypatch.syspath_prepend(folder)
        for module in ("outside", "beside"):
            sys.modules.pop(module, None)
        try:
            overrides = ["plugins=[outside]", "dataset=make", "train-readout.model=mine", "train-readout.seeds=[0]"]
            found[name] = build_graph(load_config("smoke", overrides))
        finally:
            for table, before in known:
                table.clear()
                table.update(before)
            for module in ("outside", "beside"):
                sys.modules.pop(module, None)
    first = found.pop("first")
    assert first["make-test"].identity["source"].keys() == {"outside", "beside"}
    assert first["train-readout-full-0"].identity["source"].keys() == {"outside", "beside"}
    assert not any("source" in node.identity for node in first.values() if node.stage.name not in ("make", "train-readout"))
    for instance in ("make-test", "train-readout-full-0"):
        same = {name: graph[instance].identity["source"] == first[instance].identity["source"] for name, graph in found.items()}
        assert same == {"words": True, "code": False, "beside": False}
    assert found["code"]["evaluate"].fingerprint != first["evaluate"].fingerprint == found["words"]["evaluate"].fingerprint


@pytest.mark.parametrize("module", ["__main__", "functools", "no_such_module"])
def test_what_has_no_source_of_its_own(module):
    """A stage made in a notebook, or by something that is no file of a plug-in."""
    stage = replace(STAGES["take-weights"], module=module)
    assert provenance.plugin_source(stage, {"model": "dvae"}, None) == {}


def test_no_stage_of_ours_has_its_source_in_its_identity(graph):
    assert not any("source" in node.identity for node in graph.values())
    assert replace(graph["tokenize"], cost=None).identity.keys() == {"stage", "version", "config", "params", "inputs"}
