"""The plan's arithmetic against torch's own FLOP counter and the models' real parameters."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from physion.config.schema import DVAEModel, ISAModel, SlotFormerModel, STEVEModel
from physion.models import flops
from physion.models.dvae import DVAE
from physion.models.isa import ISA, taken_apart
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE

DVAE_SIZES = DVAEModel(codes=512, channels=32)
STEVE_SIZES = STEVEModel(slot_size=64, slot_mlp=128, encoder_channels=32, predictor_lstm=128, decoder_layers=2)
SLOTFORMER_SIZES = SlotFormerModel(d_model=64, layers=4, ffn=256)
SIZE = 64


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def weights(model):
    return sum(p.numel() for p in model.parameters())


def test_dvae_flops_and_parameters():
    model, image = DVAE(DVAE_SIZES), torch.zeros(1, 3, SIZE, SIZE)
    model.requires_grad_(False)
    logits = model.encode(image)
    assert flops.encode_flops(DVAE_SIZES, SIZE) == pytest.approx(counted(lambda: model.encode(image)), rel=0.02)
    assert flops.decode_flops(DVAE_SIZES, SIZE) == pytest.approx(counted(lambda: model.decode(logits)), rel=0.02)
    assert flops.dvae_parameters(DVAE_SIZES) == pytest.approx(weights(model), rel=0.05)


@pytest.mark.parametrize("options", [{}, {"encoder_stride": 4, "residual_guess": True}], ids=["paper", "cpu"])
def test_steve_flops_and_parameters(options):
    sizes = STEVE_SIZES.model_copy(update=options)
    model = STEVE(sizes, SIZE, DVAE_SIZES.codes)
    model.requires_grad_(False)
    frames = 20  # the predictor does not run for the first
    video, tokens = torch.zeros(1, frames, 3, SIZE, SIZE), torch.zeros(1, frames, (SIZE // 4) ** 2, dtype=torch.long)
    slots = model.encode(video).slots
    assert flops.slots_flops(sizes, SIZE) == pytest.approx(counted(lambda: model.encode(video)) / frames, rel=0.1)
    counted_flops = counted(lambda: model.logits(slots, tokens)) / frames
    assert flops.tokens_flops(sizes, SIZE, DVAE_SIZES.codes) == pytest.approx(counted_flops, rel=0.1)
    assert flops.steve_parameters(sizes, SIZE, DVAE_SIZES.codes) == pytest.approx(weights(model), rel=0.05)


@pytest.mark.parametrize("options", [{}, {"encoder_stride": 2, "slots": 9, "patch": 4}], ids=["default", "other"])
def test_isa_flops_and_parameters(options):
    sizes = ISAModel(**options)
    model = ISA(sizes, SIZE)
    model.requires_grad_(False)
    frames = 20  # the predictor does not run for the first
    video = torch.zeros(1, frames, 3, SIZE, SIZE)
    slots = taken_apart(model.encode(video).slots[0])
    assert flops.isa_flops(sizes, SIZE) == pytest.approx(counted(lambda: model.encode(video)) / frames, rel=0.05)
    drawn = counted(lambda: model.decoder(slots, model.patches)) / frames
    assert flops.drawing_flops(sizes, model.side**2) == pytest.approx(drawn, rel=0.02)
    assert flops.isa_parameters(sizes) == pytest.approx(weights(model), rel=0.05)


def test_slotformer_flops():
    model = SlotFormer(SLOTFORMER_SIZES, 6, 64)
    model.requires_grad_(False)
    window = torch.zeros(1, SLOTFORMER_SIZES.burn_in, 6, 64)
    # The last layer runs for the last frame only, which the estimate leaves out.
    counted_flops = counted(lambda: model(window))
    assert counted_flops <= flops.predict_flops(SLOTFORMER_SIZES, 6, 64) <= 1.4 * counted_flops
