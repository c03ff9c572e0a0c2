"""Weights of epochs, among which the published protocol chooses: all of them, or as many as a store can bear."""

import json
import shutil

import pytest


@pytest.mark.parametrize(("steps", "every", "last"), [(6, 1, 6), (230, 3, 230)])
def test_weights_of_at_most_a_hundred_epochs_are_kept(physion, preset, store, steps, every, last):
    """A batch of four of six videos: each step is an epoch."""
    shutil.rmtree(store / "artifacts" / "train-readout")
    command = ["stage", "train-readout", "--features", "observed", "--seed", "0", "-p", preset, "-s", store]
    ended = physion(*command, "--set", f"train-readout.optim.steps={steps}")
    assert ended.code == 0, ended.err
    (manifest,) = store.glob("artifacts/train-readout/*/manifest.json")
    names = [record["name"] for record in json.loads(manifest.read_bytes())["files"]]
    epochs = sorted(int(name[7:12]) for name in names if name.startswith("epochs/"))
    assert epochs == sorted({*range(every, last + 1, every), last})
    assert len(epochs) <= 100
