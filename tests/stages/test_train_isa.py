"""`slot-model=isa`: the study without a dVAE, tokens and STEVE."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from physion.config.load import load_config
from physion.data.shards import FrameShards, Shards
from physion.models.weights import load_model
from physion.pipeline.graph import build_graph
from physion.stages.train_isa import ISATask
from physion.store.artifacts import Artifact
from physion.store.local import LocalStore


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The store of a study with isa, and its graph."""
    store = tmp_path_factory.mktemp("isa")
    command = [sys.executable, "-m", "physion.cli", "run", "-p", "smoke", "-s", str(store), "--set", "slot-model=isa"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return LocalStore(store), build_graph(load_config("smoke", ["slot-model=isa"]), LocalStore(store))


def test_nothing_else_is_trained_to_see():
    graph, plain = (build_graph(load_config("smoke", [f"slot-model={model}"])) for model in ("isa", "steve"))
    assert plain.keys() - graph.keys() == {"train-dvae", "tokenize", "train-steve", "regress-tokens-observed"}
    assert graph.keys() - plain.keys() == {"train-isa", *(f"regress-places-{mode}" for mode in ("observed", "rollout", "full"))}
    assert graph["train-isa"].inputs == {"frames": "frames-training", "dataset": "simulate-training"}


def test_it_learns_and_says_whether_it_binds(study):
    store, graph = study
    made = Artifact(store, graph["train-isa"].manifest(store))
    rows = [json.loads(line) for line in made.path("metrics.jsonl").read_text().splitlines()]
    heldout = [row for row in rows if "heldout_loss" in row]
    assert heldout[-1]["heldout_loss"] < 0.7 * heldout[0]["heldout_loss"]
    assert {"ari", "kept_places", "norm_last"} <= heldout[-1].keys()


def test_the_report_shows_what_it_draws(study):
    store, graph = study
    report = Artifact(store, graph["evaluate"].manifest(store))
    metrics = report.json("metrics.json")
    assert metrics["slots"]["test"]["ari"]["value"] is not None
    assert metrics["pictures"]["slots"]["psnr"]["value"] > 10
    assert "where each slot looks" in report.path("report.html").read_text()


def test_published_slots_are_the_models(study):
    store, graph = study
    frames, slots = (
        kind(Artifact(store, graph[name].manifest(store)))
        for kind, name in ((FrameShards, "frames-test"), (Shards, "extract-slots-test"))
    )
    model = load_model(Artifact(store, graph["train-isa"].manifest(store)).path("weights.safetensors"), "isa")
    video = frames.videos[0].name
    images = torch.from_numpy(frames.images(video, 0, 150)).permute(0, 3, 1, 2)[None] / 127.5 - 1
    with torch.inference_mode():
        np.testing.assert_allclose(slots.read(video, "slots"), model.encode(images).slots[0].numpy(), rtol=1e-3, atol=1e-4)


def test_a_step_draws_its_own_patches_whoever_computes_it(study):
    """The choice depends on seed and step alone, so all ranks draw the same; and on both."""
    store, graph = study
    frames = FrameShards(Artifact(store, graph["frames-training"].manifest(store)))
    task = ISATask(load_config("smoke").train_isa, frames)
    chosen = []
    task.model.loss = lambda images, patches=None: chosen.append(patches)
    batch = task.train[[0]]
    for step in (3, 4, 3):
        task.loss(batch, step)
    task.heldout_loss(batch)
    first, second, again, heldout = chosen
    assert len(first) == 16 * 16 // 4
    assert first.tolist() == again.tolist() != second.tolist()
    assert heldout is None
