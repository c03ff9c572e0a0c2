"""The whole mini study in this process: reuse, faster twins, and what a published artifact says of itself."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from physion.config.load import load_config
from physion.data.shards import Shards
from physion.errors import ConfigError, DataError, TransientError
from physion.job import Stop
from physion.pipeline import runner
from physion.pipeline.graph import build_graph
from physion.pipeline.runner import run_node
from physion.store.artifacts import Artifact, ArtifactWriter, InputRecord, read_manifest, sha256_of
from physion.store.local import LocalStore


@pytest.fixture
def graph(preset):
    return build_graph(load_config(preset))


def test_a_second_run_is_all_cached(preset, finished, physion):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    ended = physion("run", "-p", preset, "-s", finished)
    assert (ended.code, ended.err.count(": cached")) == (0, 30)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_every_file_is_what_its_manifest_says(graph, finished):
    store = LocalStore(finished)
    for node in graph.values():
        manifest = read_manifest(store, node.stage.name, node.fingerprint)
        folder = finished / "artifacts" / node.stage.name / node.fingerprint
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        del files["manifest.json"]
        assert {record.name: record.sha256 for record in manifest.files} == {n: sha256_of(p) for n, p in files.items()}
        assert (manifest.instance, manifest.stage, manifest.fingerprint) == (node.name, node.stage.name, node.fingerprint)
        assert manifest.identity == node.identity
        for role, source in node.inputs.items():
            made = read_manifest(store, graph[source].stage.name, graph[source].fingerprint)
            assert manifest.inputs[role] == InputRecord(instance=source, fingerprint=made.fingerprint, content=made.content)
    assert not list((finished / ".staging").iterdir())


def test_bulk_stages_keep_every_video_with_its_label_and_split(graph, finished):
    index = {
        name: json.loads((finished / "artifacts" / node.stage.name / node.fingerprint / "index.json").read_bytes())["videos"]
        for name, node in graph.items()
        if node.stage.name in ("frames", "tokenize", "extract-slots", "rollout")
    }
    for subset in ("training", "readout", "test"):
        facts = [{k: v for k, v in video.items() if k != "shard"} for video in index[f"frames-{subset}"]]
        for name in (f"extract-slots-{subset}", f"rollout-{subset}"):
            if name in index:
                assert [{k: v for k, v in video.items() if k != "shard"} for video in index[name]] == facts
    assert sum(video["heldout"] for video in index["frames-readout"]) == 2
    assert not any(video["heldout"] for video in index["frames-test"])


def test_observed_slots_stay_and_the_rest_is_predicted(graph, finished):
    store = LocalStore(finished)
    slots, rollouts = (
        Shards(Artifact(store, read_manifest(store, node.stage.name, node.fingerprint)))
        for node in (graph["extract-slots-test"], graph["rollout-test"])
    )
    for video in slots.videos:
        true, predicted = slots.read(video.name, "slots"), rollouts.read(video.name, "slots")
        np.testing.assert_array_equal(true[:4], predicted[:4])
        assert true.shape == predicted.shape == (12, 2, 8)
        assert not np.allclose(true[4:], predicted[4:])


@pytest.mark.parametrize(
    ("stage", "name"), [("tokenize", "tokenize"), ("extract-slots", "extract-slots-test"), ("evaluate", "evaluate")]
)
def test_a_stage_made_again_gives_the_same_files(graph, store, stage, name):
    node = graph[name]
    before = read_manifest(LocalStore(store), stage, node.fingerprint).files
    again = run_node(node, graph, LocalStore(store), Stop(), force=True)
    assert not again.cached
    volatile = {"report.html"}  # it shows how long the stages took
    assert [f for f in again.manifest.files if f.name not in volatile] == [f for f in before if f.name not in volatile]


def test_what_could_not_be_made_again_is_not_thrown_away(graph, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "store", ignore=shutil.ignore_patterns("tokenize"))
    store, node = LocalStore(tmp_path / "store"), graph["train-steve"]
    with pytest.raises(ConfigError, match="input tokenize"):
        run_node(node, graph, store, Stop(), force=True)
    assert read_manifest(store, "train-steve", node.fingerprint) is not None


@pytest.mark.parametrize(("moment", "mid_question"), [(1, False), (2, False), (1, True)])
def test_a_faster_runner_is_followed(graph, finished, tmp_path, monkeypatch, moment, mid_question):
    """Another runner publishes the artifact, and takes its parts away, just before this one looks at them, or while it does."""
    node, store = graph["fetch-test"], LocalStore(tmp_path)
    parts, asked = ArtifactWriter.parts, []

    def overtaken(writer):
        asked.append(moment)
        if len(asked) == moment:
            shutil.rmtree(tmp_path / "artifacts", ignore_errors=True)
            shutil.copytree(finished / "artifacts" / "fetch", tmp_path / "artifacts" / "fetch")
            if mid_question:  # what S3Store says of an object that was there, and is gone at the next look
                raise TransientError("it did not arrive whole; run the same command again")
        return parts(writer)

    monkeypatch.setattr(ArtifactWriter, "parts", overtaken)
    result = run_node(node, graph, store, Stop())
    assert len(asked) >= moment
    assert result.manifest == read_manifest(LocalStore(finished), "fetch", node.fingerprint)
    folder = Path("artifacts/fetch") / node.fingerprint
    left, original = ({path.relative_to(root) for path in (root / folder).rglob("*.*")} for root in (tmp_path, finished))
    assert left == original


def test_what_another_runner_publishes_between_two_looks_stays(graph, finished, tmp_path, monkeypatch):
    node, theirs, looked = graph["fetch-test"], Path("artifacts/fetch"), []

    def look(store, stage, fingerprint):
        manifest = read_manifest(store, stage, fingerprint)
        if fingerprint == node.fingerprint and not looked.append(manifest) and len(looked) == 1:
            shutil.copytree(finished / theirs, tmp_path / theirs)
        return manifest

    monkeypatch.setattr(runner, "read_manifest", look)
    assert runner.standing_or_erased(node, graph, LocalStore(tmp_path)) is None
    assert looked[0] is None
    assert read_manifest(LocalStore(tmp_path), "fetch", node.fingerprint)


def test_bad_data_is_bad_data_when_nobody_was_faster(graph, tmp_path):
    (tmp_path / "empty").mkdir()
    node = graph["fetch-test"]
    node = replace(node, section=node.section.model_copy(update={"root": str(tmp_path / "empty")}))
    with pytest.raises(DataError, match="holds no test videos"):
        run_node(node, graph, LocalStore(tmp_path / "store"), Stop())
