"""Which weights of a readout answer, and which it keeps."""

import json
import shutil

import pytest
from torch import nn

from physion.stages.train_readout import choose_on_heldout


def test_the_best_weights_answer_where_they_are_asked_for(physion, preset, store):
    """Held-out videos are few here: overfitting shows soon."""
    found = {}
    for keep in ("last", "best"):
        options = ["optim.steps=60", "optim.lr=0.02", "heldout-every=5", f"keep={keep}"]
        change = [word for option in options for word in ("--set", f"train-readout.{option}")]
        ended = physion(
            "stage", "train-readout", "--features", "full", "--seed", "0", "-p", preset, "-s", store, "--json", *change
        )
        assert ended.code == 0, ended.err
        told = json.loads(ended.out)["result"]
        found[keep] = store / told["artifact"].split("/store/")[1], told["metrics"]
    (last, facts), (best, chosen) = found["last"], found["best"]
    assert facts["best_step"] < facts["steps"] == chosen["steps"] == 60
    assert (best / "weights.safetensors").read_bytes() == (last / "best.safetensors").read_bytes()
    assert (best / "history.json").read_bytes() == (last / "history.json").read_bytes()
    assert chosen["heldout_loss"] == facts["best_heldout_loss"] < facts["heldout_loss"]
    assert not (best / "best.safetensors").exists()


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


def test_given_weights_without_heldout_videos_keep_the_threshold_of_one_half():
    assert choose_on_heldout(nn.Identity(), [], "train-readout-full-0") == {"threshold": 0.5, "heldout_balanced_accuracy": None}
