"""Every fast path against its plain twin, at tiny sizes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from physion.config.schema import DVAEModel, SlotFormerModel, STEVEModel
from physion.models.attention import Encoder, attend
from physion.models.cross_entropy import CrossEntropy, LossAndGradient
from physion.models.dvae import DVAE
from physion.models.noise import dropout, keep_mask, standard_exponential
from physion.models.readout import Readout
from physion.models.slot_attention import SlotAttention
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE

TINY_STEVE = STEVEModel(
    slots=3, slot_size=16, slot_mlp=32, encoder_channels=8, predictor_layers=1, predictor_heads=2, predictor_ffn=32,
    predictor_lstm=24, decoder_layers=2, decoder_heads=2,
)  # fmt: skip
TINY_SLOTFORMER = SlotFormerModel(burn_in=4, stride=3, d_model=16, layers=2, heads=2, ffn=32)


def tiny_steve(image_size=32):
    return STEVE(TINY_STEVE, image_size=image_size, codes=20)


def test_decoding_tokens_is_decoding_their_one_hot_codes():
    dvae = DVAE(DVAEModel(codes=20, channels=8))
    tokens = torch.randint(20, (2, 8, 8))
    torch.testing.assert_close(dvae.decode_tokens(tokens), dvae.decode(F.one_hot(tokens, 20).movedim(-1, 1).float()))


def test_tokenize_in_chunks_is_the_argmax_of_the_logits(monkeypatch):
    dvae, images = DVAE(DVAEModel(codes=20, channels=8)), torch.rand(3, 3, 32, 32) * 2 - 1
    monkeypatch.setattr("physion.models.dvae.TOKENIZE_CHUNK", 7)
    assert torch.equal(dvae.tokenize(images), dvae.encode(images).argmax(1))


def test_slot_attention_without_keys_and_values():
    """As published: keys and values of every position, scores from them."""
    module, features, slots = SlotAttention(16, 32, iterations=2), torch.randn(2, 64, 16), torch.randn(2, 3, 16)
    wanted = slots
    for _ in range(2):
        scores = module.project_k(features) @ (module.project_q(wanted) * 16**-0.5).transpose(1, 2)
        masks = scores.softmax(-1)
        weights = (masks + 1e-6) / (masks + 1e-6).sum(1, keepdim=True)
        updates = weights.transpose(1, 2) @ module.project_v(features)
        wanted = module.gru(updates.flatten(0, 1), wanted.flatten(0, 1)).view_as(wanted)
        wanted = wanted + module.mlp(wanted)
    ours, our_masks = module(features, slots)
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(our_masks, masks.transpose(1, 2))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_of_a_video_with_carried_state_are_the_whole_video(chunk):
    steve, video = tiny_steve().eval(), torch.rand(2, 6, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        whole, state, parts = steve.encode(video, with_masks=True), None, []
        for images in video.split(chunk, 1):
            part = steve.encode(images, state, with_masks=True)
            state, parts = part.state, [*parts, part]
    torch.testing.assert_close(torch.cat([part.slots for part in parts], 1), whole.slots)
    torch.testing.assert_close(torch.cat([part.masks for part in parts], 1), whole.masks)
    torch.testing.assert_close(whole.masks.sum(2), torch.ones(2, 6, 16, 16))
    assert steve.encode(video).masks is None


def test_generating_with_kept_keys_is_teacher_forcing_on_what_was_generated():
    steve, slots = tiny_steve().eval(), torch.randn(3, 3, 16)
    tokens = torch.zeros(3, 64, dtype=torch.int64)
    with torch.no_grad():
        for i in range(64):
            tokens[:, i] = steve.logits(slots[:, None], tokens[:, None])[:, 0, i].argmax(-1)
    assert torch.equal(steve.generate(slots), tokens)


def test_rolling_out_all_offsets_at_once_is_one_at_a_time():
    model, observed = SlotFormer(TINY_SLOTFORMER, slots=3, slot_size=16).eval(), torch.randn(2, 14, 3, 16)
    rollout = model.rollout_video(observed, frames=25)
    wanted = [observed[:, i] for i in range(14)] + [None] * 12
    with torch.no_grad():
        for first in range(14, 17):  # the frames 3 apart that lead to each of the first three unseen ones
            predicted = model.predict(observed[:, first - 12 : first : 3], 4)
            wanted[first:26:3] = predicted.unbind(1)
    torch.testing.assert_close(rollout, torch.stack(wanted[:25], 1))
    assert torch.equal(model.rollout_video(observed, frames=9), observed[:, :9])
    with pytest.raises(ValueError, match="needs 12 observed frames, got 11"):
        model.rollout_video(observed[:, :11])


@pytest.mark.parametrize("slots", [2, 3, 6])
def test_readout_without_pairs_is_the_maximum_over_pairs(slots):
    readout, video = Readout(slots, 16), torch.randn(4, 5, slots, 16)
    pairs = [torch.cat([video[:, :, i], video[:, :, j]], -1) for i, j in itertools.combinations(range(slots), 2)]
    hidden = readout.linear1(torch.stack(pairs, 2)).amax(2)
    torch.testing.assert_close(readout(video), readout.linear2(hidden).squeeze(-1).amax(1))


def test_encoder_is_that_of_torch_and_its_last_positions_alone_are_the_same():
    ours = Encoder(layers=2, width=16, heads=2, ffn=32, p=0.1).eval()
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True, norm_first=True)
    torchs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 10, 16)
    torch.testing.assert_close(ours(x), torchs(x))
    torch.testing.assert_close(ours(x, last=4), torchs(x)[:, -4:])


@pytest.mark.parametrize(("causal", "queries", "keys"), [(True, 300, 300), (False, 20, 6)])
def test_attention_in_blocks_with_dropout(causal, queries, keys, monkeypatch):
    """The map in blocks, each dropping out its own; the plain twin takes the same mask as a whole."""
    q, k, v = torch.randn(2, 2, queries, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    q.requires_grad_()
    kept = torch.rand(4, queries, keys) > 0.3
    starts = itertools.count(0, 128)

    def block_of_kept(shape, p):
        start = next(starts)
        return kept[:, start : start + shape[1], : shape[2]]

    monkeypatch.setattr("physion.models.attention.keep_mask", block_of_kept)
    ours = attend(q, k, v, p=0.3, causal=causal)
    scores = q @ k.transpose(2, 3) / math.sqrt(8)
    if causal:
        scores = scores.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(1), -torch.inf)
    plain = ((scores.softmax(-1) * kept.view(2, 2, queries, keys) / 0.7) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), q)[0] for out in (ours, plain)))
    torch.testing.assert_close(attend(q, k, v, causal=causal), ((scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))


def test_noise_has_its_distribution_and_repeats_from_the_seed():
    kept = keep_mask(torch.Size([1001, 999]), 0.1).float()
    assert kept.mean().item() == pytest.approx(0.9, abs=0.002)
    assert kept[:, ::2].mean().item() == pytest.approx(0.9, abs=0.003)
    assert set(dropout(torch.ones(1000), 0.2).unique().tolist()) == {0.0, 1.25}
    exponential = standard_exponential(torch.Size([1001, 999]), torch.device("cpu"))
    assert exponential.min() > 0
    assert exponential.mean().item() == pytest.approx(1, abs=0.005)
    assert exponential.std().item() == pytest.approx(1, abs=0.01)
    assert (exponential > 1).float().mean().item() == pytest.approx(math.exp(-1), abs=0.003)
    torch.manual_seed(3)
    first = keep_mask(torch.Size([7]), 0.5), standard_exponential(torch.Size([5]), torch.device("cpu"))
    torch.manual_seed(3)
    again = keep_mask(torch.Size([7]), 0.5), standard_exponential(torch.Size([5]), torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_step_of_every_model_at_64_pixels(autocast):
    dvae, steve = DVAE(DVAEModel(codes=20, channels=8)), tiny_steve(64)
    slotformer, readout = SlotFormer(TINY_SLOTFORMER, 3, 16), Readout(3, 16)
    video = torch.rand(1, 3, 3, 64, 64) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens = dvae.tokenize(video[0]).flatten(1)[None]
        out = steve.encode(video, with_masks=True)
        losses = [
            dvae.loss(video[0], 0.5), steve.loss(out.slots, tokens), slotformer.loss(torch.randn(2, 6, 3, 16)),
            readout(torch.randn(2, 5, 3, 16)).float().mean(),
        ]  # fmt: skip
    assert out.slots.dtype == torch.float32
    assert out.masks.shape == (1, 3, 3, 32, 32)
    for model, loss in zip((dvae, steve, slotformer, readout), losses, strict=True):
        loss.backward()
        assert torch.isfinite(loss)
        assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def test_cross_entropy_in_chunks_is_that_of_all_logits(monkeypatch):
    monkeypatch.setattr("physion.models.cross_entropy.CHUNK", 7)
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (20,))
    losses = CrossEntropy().chunked(hidden, weight, targets), F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(*losses)
    ours, plain = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in losses)
    torch.testing.assert_close(ours, plain)
    compiled = torch.compile(LossAndGradient(), backend="aot_eager", fullgraph=True)
    logits = torch.randn(20, 30).bfloat16()
    loss, gradient = compiled(logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), targets, reduction="sum"))
    torch.testing.assert_close(gradient, LossAndGradient()(logits, targets)[1])
    assert gradient.dtype == torch.bfloat16
