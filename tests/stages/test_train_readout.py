"""Which weights of a readout answer."""

import json


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
        told = json.loads(ended.out)
        found[keep] = store / told["artifact"].split("/store/")[1], told["metrics"]
    (last, facts), (best, chosen) = found["last"], found["best"]
    assert facts["best_step"] < facts["steps"] == chosen["steps"] == 60
    assert (best / "weights.safetensors").read_bytes() == (last / "best.safetensors").read_bytes()
    assert (best / "history.json").read_bytes() == (last / "history.json").read_bytes()
    assert chosen["heldout_loss"] == facts["best_heldout_loss"] < facts["heldout_loss"]
    assert not (best / "best.safetensors").exists()
