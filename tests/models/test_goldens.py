"""Our models give the published models' numbers: outputs within 1e-4 absolute, gradient norms within 1e-3 relative.

Two goldens are themselves further than that from the same computation in float64, so they get what their rounding takes:
the dVAE encoder's gradients (5e-3 off), where huge terms cancel, and frames of the rollout far from the observed ones
(1.2e-4 off, on values up to 40).
"""

import pytest
import torch
import torch.nn.functional as F

from physion.models import dvae
from physion.models.dvae import gumbel_tau
from physion.models.published import frozen_copies
from physion.models.slots import resize_masks


def close(ours, golden, tolerance=1e-4):
    torch.testing.assert_close(ours, golden, atol=tolerance, rtol=0)


def same_tokens(ours, golden, margin):
    """Equal wherever the published code itself was sure."""
    sure = margin > 1e-4
    assert sure.float().mean() > 0.99
    assert torch.equal(ours[sure], golden.long()[sure])


def same_gradients(model, golden, prefix="", tolerance=1e-3):
    """The norm of every parameter's gradient, relative (or 1e-7 of the largest: some are exactly zero)."""
    norms = dict(zip((str(key) for key in golden["grad_keys"]), golden["grad_norms"].tolist(), strict=True))
    ours = {prefix + key: value.grad.norm().item() for key, value in model.named_parameters()}
    assert ours.keys() == norms.keys()
    for key, norm in norms.items():
        assert ours[key] == pytest.approx(norm, rel=tolerance, abs=1e-7 * max(norms.values())), key


def test_dvae(goldens):
    golden, model = goldens.arrays("dvae_A"), goldens.model("dvae")
    images = goldens.input("dvae_A", "dvae.img")
    exponential = goldens.input("dvae_A", "dvae.exponential")
    with torch.no_grad():
        logits = model.encode(images)
        close(logits.mean((1, 2, 3)), golden["logits_mean"])
        close(logits.std((1, 2, 3)), golden["logits_std"])
        close(logits[:, :, :8, :8], golden["logits_crop"])
        tokens = model.tokenize(images)
        assert torch.equal(tokens, logits.argmax(1))
        same_tokens(tokens, golden["tokens"], golden["token_margin"])
        close(model.decode_tokens(golden["tokens"].long()), golden["recon_hard"])
        soft = ((logits - (exponential + torch.finfo(torch.float32).tiny).log()) / 0.7).softmax(1)
        close(model.decode(soft), golden["recon_soft"])
        close(model.decode_tokens(soft.argmax(1)), golden["recon_ste"])
    loss = model.loss(images, 0.7, exponential)
    close(loss, golden["recon_loss_soft"])
    loss.backward()
    same_gradients(model, golden, tolerance=1e-2)
    exact = goldens.model("dvae").double()
    exact.loss(images.double(), 0.7, exponential.double()).backward()
    for ours, wanted in zip(model.parameters(), exact.parameters(), strict=True):
        assert ours.grad.norm().item() == pytest.approx(wanted.grad.norm().item(), rel=1e-4)


def test_steve(goldens):
    golden, model = goldens.arrays("steve_A"), goldens.model("steve")
    images, tokens = goldens.input("steve_A", "steve.img"), golden["target_token_id"].long()[None]
    out = model.encode(images, with_masks=True)
    close(out.slots, golden["slots"])
    close(out.masks, golden["masks_64"])
    close(resize_masks(out.masks, 128)[:, 0], golden["masks_128_t0"])
    with torch.no_grad():
        logits = model.logits(out.slots, tokens)[0]
    close(logits[:, golden["pred_positions"]], golden["pred_logits"])
    close(torch.stack([logits.mean((1, 2)), logits.std((1, 2))]), golden["pred_logits_mean_std"])
    loss = model.loss(out.slots, tokens)
    close(loss, golden["token_recon_loss"])
    loss.backward()
    same_gradients(model, golden)


def test_steve_tokens_are_those_of_the_dvae_inside(goldens):
    golden, model = goldens.arrays("steve_A"), goldens.model("dvae")
    copy = frozen_copies("steve", goldens.published("steve"))
    model.load_state_dict({key.removeprefix("dvae."): value for key, value in copy.items()})
    tokens = model.tokenize(goldens.input("steve_A", "steve.img")[0]).flatten(1)
    same_tokens(tokens, golden["target_token_id"], golden["token_margin"])


def test_slotformer(goldens):
    golden, model = goldens.arrays("slotformer_A"), goldens.model("slotformer")
    clip = goldens.input("slotformer_A", "slotformer.slots")
    assert torch.equal(clip, golden["slots_in"])
    close(model.positions, golden["enc_t_pe"][0], 1e-6)
    with torch.no_grad():
        close(model.predict(clip[:, :15], 10), golden["pred_slots"])
    loss = model.loss(clip)
    close(loss, golden["slot_recon_loss"])
    loss.backward()
    same_gradients(model, golden, "rollouter.")


def test_rollout(goldens):
    golden, model = goldens.arrays("rollout_A"), goldens.model("slotformer")
    observed = goldens.input("rollout_A", "rollout.slots")[None, :45]
    rollout = model.rollout_video(observed, frames=150)
    assert torch.equal(rollout[:, :45], observed)
    close(rollout[0, :75], golden["slots_out"][:75])  # all that the readout sees
    close(rollout[0], golden["slots_out"], 1e-5 * golden["slots_out"].abs().max().item())


def test_readout(goldens):
    golden, model = goldens.arrays("readout_A"), goldens.model("readout")
    logits, labels = model(goldens.input("readout_A", "readout.slots")), golden["labels"].float()
    close(logits, golden["logits"])
    loss = F.binary_cross_entropy_with_logits(logits, labels)
    close(loss, golden["vqa_loss"])
    for key, value in zip(golden["eval_keys"], golden["eval_values"].tolist(), strict=True):
        if key.startswith("acc_"):
            judged = logits.sigmoid() > float(key.removeprefix("acc_"))
            assert (judged == labels.bool()).float().mean().item() == pytest.approx(value, abs=1e-6)
    loss.backward()
    same_gradients(model, golden)


@torch.inference_mode()
def test_bulk_inference(goldens, monkeypatch):
    """As `tokenize` and `extract-slots` call the models: several videos, chunks with their state carried, no masks."""
    golden, model = goldens.arrays("steve_A"), goldens.model("steve")
    images = goldens.input("steve_A", "steve.img").expand(2, -1, -1, -1, -1)
    for sizes in ([4], [1, 3], [2, 1, 1]):
        state, slots = None, []
        for chunk in images.split(sizes, 1):
            out = model.encode(chunk, state, with_masks=False)
            state = out.state
            slots.append(out.slots)
        close(torch.cat(slots, 1), golden["slots"].expand(2, -1, -1, -1))
    golden, model = goldens.arrays("dvae_A"), goldens.model("dvae")
    monkeypatch.setitem(dvae.CHUNK, "cpu", 300 * 4096)
    same_tokens(model.tokenize(goldens.input("dvae_A", "dvae.img")), golden["tokens"], golden["token_margin"])


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_mixed_precision(goldens, precision):
    """What training computes on a GPU, here by CPU autocast.

    A product in half precision is off by up to half its epsilon, relatively. Errors of independent roundings add up like their
    root mean square, and the longest chain here (ten predictions through eight layers each) comes to four of them: eight are
    allowed, relative to the golden's spread. A loss averages over thousands of errors of either sign: one.
    """
    rounding = torch.finfo(precision).eps / 2

    def near(ours, golden):
        assert (ours.float() - golden).square().mean().sqrt() < 8 * rounding * golden.std()

    with torch.autocast("cpu", precision):
        golden, model = goldens.arrays("dvae_A"), goldens.model("dvae")
        near(model.encode(goldens.input("dvae_A", "dvae.img"))[:, :, :8, :8], golden["logits_crop"])
        near(model.decode_tokens(golden["tokens"].long()), golden["recon_hard"])
        golden, model = goldens.arrays("steve_A"), goldens.model("steve")
        slots = model.encode(goldens.input("steve_A", "steve.img")).slots
        near(slots, golden["slots"])
        loss = model.loss(slots, golden["target_token_id"].long()[None])
        assert loss.item() == pytest.approx(golden["token_recon_loss"].item(), rel=rounding)
        golden, model = goldens.arrays("slotformer_A"), goldens.model("slotformer")
        clip = goldens.input("slotformer_A", "slotformer.slots")
        near(model.predict(clip[:, :15], 10), golden["pred_slots"])
        assert model.loss(clip).item() == pytest.approx(golden["slot_recon_loss"].item(), rel=rounding)
        golden, model = goldens.arrays("readout_A"), goldens.model("readout")
        logits = model(goldens.input("readout_A", "readout.slots"))
        assert (logits.float() - golden["logits"]).abs().max() < 8 * rounding * golden["logits"].abs().max()


def test_gumbel_temperature(goldens):
    schedule = goldens.schedules["gumbel_tau"]["all_tau"]
    assert [gumbel_tau(step, len(schedule)) for step in range(len(schedule))] == pytest.approx(schedule, abs=1e-12)
