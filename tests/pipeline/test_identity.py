"""Everything that a stage reads of the configuration is in its identity; what an artifact was made from is tied by content."""

import json
import shutil
from dataclasses import replace

import pytest

from physion.config.load import load_config
from physion.config.schema import KNOB, LATER, Section
from physion.errors import ConfigError
from physion.job import Job, Stop
from physion.pipeline.graph import build_graph, downstream
from physion.pipeline.runner import all_standing, published, run_node, standing
from physion.pipeline.why import why
from physion.stages import frames, simulate
from physion.stages.bulk import run_parts
from physion.stages.registry import Stage
from physion.store.artifacts import read_manifest
from physion.store.local import LocalStore


class Recorded:
    """A section of the configuration, or a mapping of settings, that writes down which values are read."""

    def __init__(self, value, path, read):
        self._value, self._path, self._read = value, path, read

    def _seen(self, key, value):
        inside = isinstance(value, Section)
        if not inside:
            self._read.add((*self._path, key.replace("_", "-")))
        return Recorded(value, (*self._path, key.replace("_", "-")), self._read) if inside and self._opens(key) else value

    def _opens(self, key):
        return key != "model"  # models are built from their whole section, all of which is in the identity

    def __getattr__(self, key):
        return self._seen(key, getattr(self._value, key))

    def __getitem__(self, key):
        return self._seen(key, self._value[key])

    def get(self, key, default):
        if key in self:
            return self[key]
        return default

    def __contains__(self, key):
        return key in self._value

    def model_copy(self, update):
        return Recorded(self._value.model_copy(update=update), self._path, self._read)


def leaves(tree, path=()):
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
            yield (*path, key)
    else:
        yield path


def knobs(section, path=()):
    """Options that are not in the identity, those that came later and are not used included."""
    for name, field in type(section).model_fields.items():
        place = (*path, field.alias or name)
        if field.json_schema_extra == KNOB or (field.json_schema_extra == LATER and getattr(section, name) == field.default):
            yield place
        elif isinstance(getattr(section, name), Section):
            yield from knobs(getattr(section, name), place)


@pytest.fixture
def graph(preset):
    return build_graph(load_config(preset))


def test_what_a_stage_reads_is_in_its_identity(preset, graph, tmp_path, monkeypatch):
    read = {}
    load = Stage.load
    for module in (frames, simulate):  # in this process, where it can be seen
        monkeypatch.setattr(module, "run_parts", lambda job, work, compute, workers: run_parts(job, work, compute, workers=0))

    def recording(stage):
        run = load(stage)

        def recorded(job):
            seen = read.setdefault(job.instance, set())
            return run(replace(job, config=Recorded(job.config, (), seen), settings=Recorded(job.settings, (), seen)))

        return recorded

    monkeypatch.setattr(Stage, "load", recording)
    for node in graph.values():
        run_node(node, graph, LocalStore(tmp_path), Stop())
    small = ["dataset=simulate", "simulate.videos={training: 1, readout: 1, test: 1}", "simulate.image-size=32"]
    simulated = build_graph(load_config(preset, small))["simulate-test"]
    run_node(simulated, {simulated.name: simulated}, LocalStore(tmp_path), Stop())
    graph[simulated.name] = simulated
    assert read.keys() == graph.keys()
    for name, node in graph.items():
        # The seed of a readout is a parameter, which its section is given.
        allowed = set(leaves(node.identity["config"])) | set(knobs(node.section)) | {(key,) for key in node.params}
        assert read[name] <= allowed, name
    assert ("videos",) in read["evaluate"]  # it does record


def test_a_stage_that_reads_something_else_is_found(graph, monkeypatch):
    """The test above fails when it should."""
    seen = set()
    node = graph["train-readout-rollout-0"]
    assert Recorded(node.section, (), seen).frames.full == 12
    assert not seen <= set(leaves(node.identity["config"])) | set(knobs(node.section))


def test_a_job_holds_nothing_of_the_rest_of_the_study():
    assert {"config", "settings", "params", "inputs"} < set(Job.__dataclass_fields__)
    assert "study" not in Job.__dataclass_fields__


def test_an_input_made_again_with_other_bytes_makes_what_stands_on_it_stale(graph, store):
    target = LocalStore(store)
    node = graph["tokenize"]
    manifest = store / "artifacts" / "tokenize" / node.fingerprint / "manifest.json"
    assert standing(graph["train-steve"], graph, target) is not None
    damaged = json.loads(manifest.read_text())
    damaged["files"][0]["sha256"] = "0" * 64  # as if it had been made again elsewhere
    manifest.write_text(json.dumps(damaged))

    assert standing(graph["train-steve"], graph, target) is None
    assert [reason.kind for reason in why(graph["train-steve"], graph, target)] == ["content"]
    assert why(graph["train-steve"], graph, target)[0].what == "tokenize"
    with pytest.raises(
        ConfigError, match=r"input train-steve .* made from different bytes than its tokens now has: run `physion"
    ):
        run_node(graph["extract-slots-test"], graph, target, Stop(), force=True)


def test_labels_mended_at_the_source_are_noticed_by_all_that_stands_on_them(physion, pristine, preset, store, graph):
    """Also by what does not read them itself: slots, readouts, the test."""
    target, where = LocalStore(store), ["-p", preset, "-s", store]
    assert all_standing(graph, published(graph, target)) == set(graph)
    labels = pristine.labels("readout")
    original = labels.read_text()
    try:
        lines = original.splitlines()
        labels.write_text("\n".join([*lines[:-1], lines[-1].replace("False", "True")]))
        assert physion("stage", "fetch", "--subset", "readout", "--force", *where).code == 0
        stale = {node.name for node in downstream(graph, "fetch-readout")}
        assert {"train-readout-rollout-0", "rollout-readout", "evaluate"} < stale
        assert all_standing(graph, published(graph, target)) == set(graph) - stale
        planned = {row["name"] for row in json.loads(physion("plan", "--json", *where).out)["result"] if not row["cached"]}
        assert planned == stale
        why = physion("plan", "--why", *where).out.splitlines()
        assert why[why.index("frames-readout") + 1] == "  its input fetch-readout was made again, with different bytes"
        assert why[why.index("evaluate") + 1] == "  its input train-readout-observed-0 has to be made again"
        refused = physion("stage", "evaluate", *where)
        assert (refused.code, refused.out) == (2, "")
        assert (
            "evaluate depends on frames-readout, whose inputs were made again with different bytes: run `physion" in refused.err
        )
        ended = physion("run", *where)
        again = {line.partition(":")[0] for line in ended.err.splitlines() if "done in" in line}
        assert (ended.code, again) == (0, stale)
        assert all_standing(graph, published(graph, target)) == set(graph)
    finally:
        labels.write_text(original)


@pytest.mark.parametrize("written", ["{}/", "{}/.", "{}/../{name}", "/{}", "//{}"])
def test_a_path_is_what_is_there_not_how_it_is_written(pristine, preset, graph, monkeypatch, written):
    monkeypatch.chdir(pristine.root.parent)
    for path in (written.format(pristine.root, name=pristine.root.name), pristine.root.name):
        other = build_graph(load_config(preset, [f"fetch.root={path}"]))
        assert {name: node.fingerprint for name, node in other.items()} == {n: node.fingerprint for n, node in graph.items()}
    other = build_graph(load_config(preset, [f"fetch.root={pristine.root}2"]))
    assert other["fetch-test"].fingerprint != graph["fetch-test"].fingerprint


def test_what_is_stale_is_made_again_and_what_comes_out_the_same_stays(graph, store):
    """Frames of other quality give other frames; here they come back, so only what was made in between is made twice."""
    target = LocalStore(store)
    before = read_manifest(target, "train-dvae", graph["train-dvae"].fingerprint)
    again = run_node(graph["frames-training"], graph, target, Stop(), force=True)
    assert not again.cached
    assert standing(graph["train-dvae"], graph, target) == before
    assert all_standing(graph, published(graph, target)) == set(graph)


def test_work_begun_from_other_inputs_is_not_gone_on_with(graph, store):
    """A checkpoint of a training on other bytes is not resumed."""
    target, node = LocalStore(store), graph["train-slotformer"]
    folder = store / "artifacts" / "train-slotformer" / node.fingerprint

    def trained():
        run_node(node, graph, target, Stop())
        made = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        shutil.rmtree(folder)
        return made

    shutil.rmtree(folder)
    from_nothing = trained()  # by this process: the fixture's study may have used other threads
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "000001-00000004-deadbeefdeadbeef.safetensors").write_bytes(b"of another training")
    (folder / "study.json").write_text(json.dumps({"study": {}, "inputs": {"slots": "0" * 64}}))
    assert trained() == from_nothing


# Why a stage is to be made.


def reasons(preset, store, stage, *overrides):
    graph = build_graph(load_config(preset, overrides))
    return why(graph[stage], graph, LocalStore(store))


def test_nothing_is_to_be_said_of_what_is_made(preset, finished, graph):
    assert all(why(node, graph, LocalStore(finished)) == [] for node in graph.values())


def test_an_option(preset, finished):
    (reason,) = reasons(preset, finished, "train-steve", "train-steve.optim.lr=2e-4")
    assert (reason.kind, reason.what, reason.old, reason.new) == ("option", "train-steve.optim.lr", 1e-3, 2e-4)


def test_a_root_cause_far_up(preset, finished):
    """Through rollout, slots, STEVE and tokens to the one option that was changed."""
    (reason,) = reasons(preset, finished, "train-readout-rollout-0", "train-dvae.optim.lr=5e-4")
    roots = []

    def collect(found):
        if not found.because:
            roots.append(found)
        for inner in found.because:
            collect(inner)

    collect(reason)
    assert {(r.kind, r.what, r.old, r.new) for r in roots} == {("option", "train-dvae.optim.lr", 1e-3, 5e-4)}
    lines = list(reason.lines(set()))
    assert lines[0] == "its input rollout-readout differs:"
    assert [line.strip() for line in lines].count("train-dvae.optim.lr: 0.001 -> 0.0005") == 1


def test_the_nearest_of_several(preset, store):
    """Compared with what differs least, not with what was made last."""
    graph = build_graph(load_config(preset, ["rollout.videos-per-shard=2", "rollout.observed=5"]))
    run_node(graph["rollout-test"], graph, LocalStore(store), Stop())
    (reason,) = reasons(preset, store, "rollout-test", "rollout.videos-per-shard=7")
    assert (reason.what, reason.old, reason.new) == ("rollout.videos-per-shard", 3, 7)
    (reason,) = reasons(preset, store, "rollout-test", "rollout.videos-per-shard=1", "rollout.observed=5")
    assert (reason.what, reason.old, reason.new) == ("rollout.videos-per-shard", 2, 1)


def test_a_newer_version_and_another_engine(preset, finished, monkeypatch):
    from physion.stages import STAGES

    tokenize = STAGES["tokenize"]
    monkeypatch.setitem(STAGES, "tokenize", replace(tokenize, version=9))
    (reason,) = reasons(preset, finished, "tokenize")
    assert (reason.kind, reason.what, reason.new) == ("version", "tokenize", 9)
    monkeypatch.setitem(STAGES, "tokenize", replace(tokenize, facts=lambda: {"engine": "other 1"}))
    (reason,) = reasons(preset, finished, "tokenize")
    assert (reason.kind, reason.what, reason.old, reason.new) == ("fact", "engine", None, "other 1")


def test_nothing_to_compare_with(preset, finished, tmp_path):
    assert [r.kind for r in reasons(preset, tmp_path, "train-dvae")] == ["new"]
    assert [r.kind for r in reasons(preset, finished, "train-readout-rollout-7", "train-readout.seeds=[7]")] == ["new"]


def test_what_was_said_is_not_said_again(physion, preset, finished):
    """Each stage with its own reasons; one cause stands there once."""
    ended = physion("plan", "--why", "-p", preset, "-s", finished, "--set", "train-dvae.optim.lr=5e-4")
    assert ended.out.count("train-dvae.optim.lr: 0.001 -> 0.0005") == 1
    assert "train-steve\n  its input train-dvae differs, as above\n" in ended.out


def test_plan_says_why(physion, preset, finished):
    ended = physion("plan", "train-steve", "--why", "-p", preset, "-s", finished, "--set", "train-steve.optim.lr=2e-4")
    assert (ended.code, ended.out) == (0, "train-steve\n  train-steve.optim.lr: 0.001 -> 0.0002\n")
    ended = physion("plan", "--why", "--json", "-p", preset, "-s", finished, "--set", "evaluate.resamples=9")
    found = json.loads(ended.out)["result"]
    assert [(r["kind"], r["what"], r["old"], r["new"]) for r in found["evaluate"]] == [("option", "evaluate.resamples", 200, 9)]
    assert list(found) == ["evaluate"]
    assert physion("plan", "--why", "-p", preset, "-s", finished).out == "nothing needs to be made\n"
