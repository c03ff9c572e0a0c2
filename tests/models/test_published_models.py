"""The plain models that ours are timed against (benchmarks/published_models.py) give the published models' numbers, too."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from physion.models.published import from_published

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import published_models as plain

MODELS = {
    "dvae": plain.PublishedDVAE, "steve": plain.PublishedSTEVE, "slotformer": plain.PublishedSlotFormer,
    "readout": plain.PublishedReadout,
}  # fmt: skip


@pytest.fixture
def load(goldens):
    def make(name):
        model = MODELS[name]()
        model.load_state_dict(from_published(name, goldens.published(name)))
        return model.eval()

    return make


def close(ours, golden, tolerance=1e-4):
    torch.testing.assert_close(ours, golden, atol=tolerance, rtol=0)


def same_gradients(model, golden, prefix="", tolerance=1e-3):
    norms = dict(zip((str(key) for key in golden["grad_keys"]), golden["grad_norms"].tolist(), strict=True))
    for key, value in model.named_parameters():
        wanted = pytest.approx(norms[prefix + key], rel=tolerance, abs=1e-7 * max(norms.values()))
        assert value.grad.norm().item() == wanted, key


def test_dvae(goldens, load):
    golden, model, images = goldens.arrays("dvae_A"), load("dvae"), goldens.input("dvae_A", "dvae.img")
    loss = model.loss(images, 0.7, goldens.input("dvae_A", "dvae.exponential"))
    close(loss, golden["recon_loss_soft"])
    sure = golden["token_margin"] > 1e-4
    assert torch.equal(model.tokenize(images)[sure], golden["tokens"].long()[sure])
    loss.backward()
    same_gradients(model, golden, tolerance=1e-2)  # see test_goldens.py


def test_steve(goldens, load):
    golden, model = goldens.arrays("steve_A"), load("steve")
    slots, masks = model.encode(goldens.input("steve_A", "steve.img"))
    close(slots, golden["slots"])
    close(masks.unflatten(-1, (64, 64)), golden["masks_64"])
    loss = model.loss(slots, golden["target_token_id"].long()[None])
    close(loss, golden["token_recon_loss"])
    loss.backward()
    same_gradients(model, golden)


def test_slotformer(goldens, load):
    golden, model = goldens.arrays("slotformer_A"), load("slotformer")
    clip = goldens.input("slotformer_A", "slotformer.slots")
    with torch.no_grad():
        close(model.predict(clip[:, :15], 10), golden["pred_slots"])
    loss = model.loss(clip)
    close(loss, golden["slot_recon_loss"])
    loss.backward()
    same_gradients(model, golden, "rollouter.")


def test_rollout(goldens, load):
    golden = goldens.arrays("rollout_A")
    with torch.no_grad():
        rollout = load("slotformer").rollout_video(goldens.input("rollout_A", "rollout.slots")[None, :45])
    close(rollout[0, :75], golden["slots_out"][:75])
    close(rollout[0], golden["slots_out"], 1e-5 * golden["slots_out"].abs().max().item())


def test_readout(goldens, load):
    golden, model = goldens.arrays("readout_A"), load("readout")
    logits = model(goldens.input("readout_A", "readout.slots"))
    close(logits, golden["logits"])
    F.binary_cross_entropy_with_logits(logits, golden["labels"].float()).backward()
    same_gradients(model, golden)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_published_ones(goldens, name):
    ours = {key: tuple(value.shape) for key, value in MODELS[name]().state_dict().items()}
    wanted = {key: tuple(value.shape) for key, value in from_published(name, goldens.published(name)).items()}
    assert ours == wanted
