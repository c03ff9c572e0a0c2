"""`slot-model=bodies`: what perfect perception would give, through SlotFormer and the readouts."""

import json
import re

import numpy as np
import pytest
import torch

from physion.config.load import load_config
from physion.config.schema import PLACE
from physion.data.shards import Shards
from physion.data.truth import AGENT, PATIENT, ROOM, SPREAD, Scene, TruthShards, bodies
from physion.errors import ConfigError
from physion.models.kinds import MODELS
from physion.models.slots import red_and_yellow
from physion.pipeline.graph import build_graph
from physion.store.artifacts import Artifact
from physion.store.local import LocalStore

SET = ["--set", "slot-model=bodies"]


class Truth:
    """Three bodies in four frames."""

    def __init__(self):
        self.every = np.random.default_rng(0).normal(size=(4, 3, 13)).astype(np.float32)
        described = [{"name": name, "shape": "box", "size": [0.1 * n, 0.2, 0.3]} for n, name in enumerate("abc", 1)]
        self.scenes = {"v": Scene.model_validate({"bodies": described, "contacts": []})}

    def states(self, video):
        return self.every


def test_a_slot_for_each_body():
    truth = Truth()
    found = bodies(truth, "v", 5)
    assert (found.shape, found.dtype) == ((4, 5, 20), np.float32)
    there = found[:, :3]
    assert (found[..., 0] == [1, 1, 1, 0, 0]).all()
    np.testing.assert_allclose(there[..., 1:11] * SPREAD[3:], truth.every[..., 3:], rtol=1e-6)
    np.testing.assert_allclose(there[..., 14:17] / PLACE * ROOM, truth.every[..., :3], rtol=1e-6)
    sizes = [[0.1, 0.2, 0.3], [0.2, 0.2, 0.3], [0.3, 0.2, 0.3]]
    np.testing.assert_allclose(np.exp(there[0, :, 17:]) * ROOM, sizes, rtol=1e-6)
    named = red_and_yellow(torch.from_numpy(found[None, :, ::-1].copy()), MODELS["bodies"].places)[0]  # whatever the order
    np.testing.assert_array_equal(named, found[:, [AGENT, PATIENT]])
    assert not found[:, 3:].any()
    np.testing.assert_array_equal(bodies(truth, "v", 2), found[:, :2])  # agent and patient come first


def test_nothing_is_trained_to_find_them():
    graph = build_graph(load_config("tiny", ["slot-model=bodies"]))
    plain = build_graph(load_config("tiny"))
    gone = {"train-dvae", "tokenize", "train-steve", "regress-tokens-observed"}
    assert plain.keys() - graph.keys() == gone
    assert graph["extract-slots-test"].inputs == {"dataset": "simulate-test", "frames": "frames-test"}
    assert graph["extract-slots-test"].fingerprint != plain["extract-slots-test"].fingerprint
    assert graph["train-slotformer"].fingerprint != plain["train-slotformer"].fingerprint
    assert not {"slot-model", "dvae", "heldout"} & graph["evaluate"].inputs.keys()
    for overrides in (["dataset=fetch"], ["simulate.truth=[test]"]):
        with pytest.raises(ConfigError, match=re.escape("takes what is true of the videos, which dataset=")):
            load_config("tiny", ["slot-model=bodies", *overrides])


def test_a_study_from_them(physion, tmp_path):
    """Slots are the dataset's truth; the report is made without a slot model."""
    ended = physion("run", "-p", "smoke", "-s", tmp_path, *SET)
    assert ended.code == 0, ended.err
    store = LocalStore(tmp_path)
    graph = build_graph(load_config("smoke", ["slot-model=bodies"]), store)
    slots, truth = (
        kind(Artifact(store, graph[name].manifest(store)))
        for kind, name in ((Shards, "extract-slots-test"), (TruthShards, "simulate-test"))
    )
    for video in slots.videos:
        np.testing.assert_array_equal(slots.read(video.name, "slots"), bodies(truth, video.name, 10))
        apart = np.linalg.norm(truth.states(video.name)[:, AGENT, :3] - truth.states(video.name)[:, PATIENT, :3], axis=1)
        assert apart.min() > 0
    report = Artifact(store, graph["evaluate"].manifest(store))
    metrics = report.json("metrics.json")
    assert metrics["slots"]["test"]["kept_places"]["value"] > 0.5
    assert metrics["dynamics"]["against_copying"]["value"] is not None
    assert (metrics["pictures"]["videos"], metrics["slots"]["test"]["truth"]) == (2, False)
    assert "where each slot looks" not in report.path("report.html").read_text()
    assert json.loads(physion("plan", "-p", "smoke", "-s", tmp_path, *SET, "--json").out)
