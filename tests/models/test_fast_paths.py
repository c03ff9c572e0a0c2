"""Every fast path against its plain twin, at tiny sizes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import physion.models.decoder
import physion.models.dvae
from physion.config.schema import DVAEModel, SlotFormerModel, STEVEModel
from physion.models.attention import Encoder, _Attending, attend
from physion.models.cross_entropy import CrossEntropy, LossAndGradient
from physion.models.decoder import _TokenLoss
from physion.models.dvae import DVAE, Noise, first_maximum, through_codes
from physion.models.noise import dropout, keep_mask, log_exponential, sample_noise
from physion.models.readout import Readout
from physion.models.slot_attention import SlotAttention
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE

TINY_STEVE = STEVEModel(
    slots=3, slot_size=16, slot_mlp=32, encoder_channels=8, predictor_layers=1, predictor_heads=2, predictor_ffn=32,
    predictor_lstm=24, decoder_layers=2, decoder_heads=2,
)  # fmt: skip
TINY_SLOTFORMER = SlotFormerModel(burn_in=4, stride=3, d_model=16, layers=2, heads=2, ffn=32)


class LargestTensor(TorchDispatchMode):
    """How many elements the largest tensor has that any operation inside gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = result if isinstance(result, tuple | list) else [result]
        self.elements = max([self.elements, *(value.numel() for value in given if isinstance(value, torch.Tensor))])
        return result


def tiny_steve(image_size=32):
    return STEVE(TINY_STEVE, image_size=image_size, codes=20)


def test_decoding_tokens_is_decoding_their_one_hot_codes():
    dvae = DVAE(DVAEModel(codes=20, channels=8))
    tokens = torch.randint(20, (2, 8, 8))
    torch.testing.assert_close(dvae.decode_tokens(tokens), dvae.decode(F.one_hot(tokens, 20).movedim(-1, 1).float()))


@pytest.mark.parametrize("codes", [20, 4096])
def test_tokenize_in_chunks_is_the_argmax_of_the_logits(monkeypatch, codes):
    dvae, images = DVAE(DVAEModel(codes=codes, channels=8)), torch.rand(7, 3, 32, 32) * 2 - 1
    monkeypatch.setitem(physion.models.dvae.CHUNK, "cpu", 7 * codes)
    assert torch.equal(dvae.tokenize(images), dvae.encode(images).argmax(1))


@pytest.mark.parametrize("codes", [20, 64, 4096])
def test_the_first_maximum_is_found_where_there_are_several(codes):
    values = torch.randint(40, (500, codes)).float()
    values[0] = 0
    values[1] = -torch.inf
    assert torch.equal(first_maximum(values), values.argmax(-1))


@pytest.mark.parametrize("part", [64, 700, 1 << 20])
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_through_the_codes_in_parts_is_the_gumbel_softmax_of_all(monkeypatch, part, tau):
    """In float64, so that nothing but rounding of float64 is left; the noise is float32 in both."""
    monkeypatch.setitem(physion.models.dvae.CHUNK, "cpu", part)
    monkeypatch.setattr("physion.models.noise.UNIT", part // 2)
    tensors = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4, 6, 8), (20, 8), (20,), (8, 20))
    ]
    hidden, to_logits, bias, from_codes = tensors
    direction = torch.randn(3, 4, 6, 8, dtype=torch.float64)

    def ours():
        with sample_noise([4, 5, 6]):
            noise = Noise(72, 20, hidden.device)
        return through_codes(hidden, to_logits, bias, from_codes, tau, noise), noise

    out, noise = ours()
    drawn = torch.empty(72, 20)
    for rows in noise.parts():
        noise.fill(rows, drawn[rows])
    logits = F.linear(hidden, to_logits, bias)
    plain = F.linear(((logits - drawn.view(logits.shape)) / tau).softmax(-1), from_codes)
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-12)
    grads = (torch.autograd.grad(result, tensors, direction) for result in (out, plain))
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-11, atol=1e-11)  # sums of a hundred such terms


def test_a_training_step_of_the_dvae_never_holds_all_codes(monkeypatch):
    """No tensor of a step is as large as the codes of its batch."""
    monkeypatch.setitem(physion.models.dvae.CHUNK, "cpu", 1 << 12)
    monkeypatch.setattr("physion.models.noise.UNIT", 1 << 11)
    dvae, images = DVAE(DVAEModel(codes=512, channels=4)), torch.rand(2, 3, 64, 64)
    with LargestTensor() as step:
        dvae.loss(images, 0.5).backward()
    assert step.elements < 2 * 16 * 16 * 512 / 4


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
    plain = readout.linear2(hidden).squeeze(-1).amax(1)
    torch.testing.assert_close(readout(video), plain)
    for grad, wanted in zip(
        *(torch.autograd.grad(out.square().sum(), list(readout.parameters())) for out in (readout(video), plain)), strict=True
    ):
        torch.testing.assert_close(grad, wanted)
    with torch.no_grad():
        torch.testing.assert_close(readout(video), plain)


def test_encoder_is_that_of_torch_and_its_last_positions_alone_are_the_same():
    ours = Encoder(layers=2, width=16, heads=2, ffn=32, p=0.1).eval()
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True, norm_first=True)
    torchs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 10, 16)
    torch.testing.assert_close(ours(x), torchs(x))
    torch.testing.assert_close(ours(x, last=4), torchs(x)[:, -4:])


@pytest.mark.parametrize("part", [1000, 1 << 19])
@pytest.mark.parametrize(("causal", "queries", "keys"), [(True, 300, 300), (False, 20, 6)])
def test_attention_in_blocks_with_dropout(causal, queries, keys, part, monkeypatch):
    """In float64: only rounding differs from whole maps with the same dropout."""
    monkeypatch.setattr("physion.models.attention.PART", part)
    monkeypatch.setattr("physion.models.noise.UNIT", part // 2)
    q, k, v = (torch.randn(4, 2, length, 8, dtype=torch.float64, requires_grad=True) for length in (queries, keys, keys))
    direction = torch.randn(4, queries, 16, dtype=torch.float64)
    with sample_noise([3, 4]):
        ours = attend(q, k, v, p=0.3, causal=causal)
    kept = torch.zeros(8, queries, keys, dtype=torch.float64)
    with sample_noise([3, 4]):
        attending = _Attending(q.detach().flatten(0, 1), k.detach().flatten(0, 1), 0.3, causal)
    for x, rows, columns, _, part_kept in attending.blocks():
        kept[x, rows, columns] = part_kept
    scores = q @ k.transpose(2, 3) / math.sqrt(8)
    if causal:
        scores = scores.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(1), -torch.inf)
    plain = ((scores.softmax(-1) * kept.view(4, 2, queries, keys) / 0.7) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    for grad, wanted in zip(*(torch.autograd.grad(out, (q, k, v), direction) for out in (ours, plain)), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(attend(q, k, v, causal=causal), ((scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("relu", [False, True])
def test_dropout_drops_the_same_in_the_backward_pass(relu):
    x = torch.randn(6, 1000, dtype=torch.float64, requires_grad=True)
    with sample_noise([1, 2, 3]):
        out = dropout(x.clone(), 0.2, relu)
    plain = F.relu(x) if relu else x
    kept = (out != 0).double() / 0.8
    assert kept.mean().item() == pytest.approx(0.5 if relu else 1, abs=0.05)
    torch.testing.assert_close(out, plain * kept)
    direction = torch.randn_like(x)
    torch.testing.assert_close(*(torch.autograd.grad(result, x, direction)[0] for result in (out, plain * kept)))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_of_tokens_is_the_cross_entropy_of_their_logits(monkeypatch, balanced):
    monkeypatch.setitem(physion.models.decoder.CHUNK, "cpu", 100)
    steve, slots, tokens = tiny_steve().double(), torch.randn(3, 3, 16).double().requires_grad_(), torch.randint(20, (3, 64))
    steve.eval()
    logits = steve.logits(slots[:, None], tokens[:, None])[:, 0]
    worth = torch.rand(20, dtype=torch.float64) * 3 if balanced else None
    each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), worth, reduction="none")
    losses = steve.trans_decoder.loss(slots, tokens, worth), each.mean()
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    wanted = [slots, *steve.trans_decoder.parameters()]
    for grad, plain in zip(*(torch.autograd.grad(loss * 3, wanted) for loss in losses), strict=True):
        torch.testing.assert_close(grad, plain, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(steve.trans_decoder.loss(slots, tokens, worth), losses[1])


def test_an_unlikely_token_has_a_finite_loss():
    hidden, weight = torch.tensor([[300.0]]), torch.tensor([[1.0], [-1.0]])
    assert _TokenLoss.apply(hidden, weight, torch.tensor([1]), None).item() == 600


def test_noise_has_its_distribution_and_repeats_from_the_seed():
    kept = keep_mask(torch.empty(1001, 999), 0.1)
    assert kept.mean().item() == pytest.approx(0.9, abs=0.002)
    assert kept[:, ::2].mean().item() == pytest.approx(0.9, abs=0.003)
    assert set(dropout(torch.ones(1000), 0.2).unique().tolist()) == {0.0, 1.25}
    exponential = log_exponential(torch.empty(1001, 999), [(1, 2)]).exp()
    assert exponential.min() > 0
    assert exponential.mean().item() == pytest.approx(1, abs=0.005)
    assert exponential.std().item() == pytest.approx(1, abs=0.01)
    assert (exponential > 1).float().mean().item() == pytest.approx(math.exp(-1), abs=0.003)
    assert exponential.sort().values[..., 0].mean().item() == pytest.approx(1 / 999, rel=0.2)  # the least of 999
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append((keep_mask(torch.empty(7), 0.5), dropout(torch.ones(50), 0.5)))
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_noise_of_a_sample_is_its_own(threads):
    """Whatever the batch, the parts it comes in and the threads that draw it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seeds, drawn = [5, 6, 7, 8], []
        for samples, part in ((seeds, 1 << 20), (seeds, 1 << 17), (seeds[2:], 1 << 18)):
            with sample_noise(samples):
                noise = Noise(256 * len(samples), 512, torch.device("cpu"))
                mask = keep_mask(torch.empty(len(samples), 50_000), 0.1)
            noise.part = part // 512
            drawn.append(
                (torch.cat([noise.fill(rows, torch.empty(rows.stop - rows.start, 512)) for rows in noise.parts()]), mask)
            )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][0][512:], drawn[2][0])
    assert torch.equal(drawn[0][1][2:], drawn[2][1])
    assert len(drawn[0][0].unique()) > 300_000  # nothing twice but by chance


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


@pytest.mark.parametrize("balanced", [False, True])
def test_cross_entropy_in_chunks_is_that_of_all_logits(monkeypatch, balanced):
    monkeypatch.setattr("physion.models.cross_entropy.CHUNK", 7)
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (20,))
    worth = torch.rand(30) * 3 if balanced else None
    plainly = F.cross_entropy(hidden @ weight.T, targets, worth, reduction="sum") / 20
    losses = CrossEntropy()(hidden, weight, targets, worth), plainly
    torch.testing.assert_close(*losses)
    ours, plain = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in losses)
    torch.testing.assert_close(ours, plain)
    compiled = torch.compile(LossAndGradient(), backend="aot_eager", fullgraph=True)
    logits = torch.randn(20, 30).bfloat16()
    loss, gradient = compiled(logits, targets, worth)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), targets, worth, reduction="sum"))
    torch.testing.assert_close(gradient, LossAndGradient()(logits, targets, worth)[1])
    assert gradient.dtype == torch.bfloat16
