"""What STEVE has that is not in the paper, off unless asked for."""

import pytest
import torch
import torch.nn.functional as F

from physion.config.schema import STEVEModel
from physion.models.steve import STEVE

SIZES = {
    "slots": 4, "slot_size": 16, "slot_mlp": 32, "encoder_channels": 8, "predictor_layers": 1, "predictor_heads": 2,
    "predictor_ffn": 32, "predictor_lstm": 24, "decoder_layers": 1, "decoder_heads": 2, "dropout": 0.0,
}  # fmt: skip


def steve(**options):
    torch.manual_seed(0)
    return STEVE(STEVEModel(**SIZES, **options), image_size=32, codes=20).eval().requires_grad_(False)


@pytest.mark.parametrize(("stride", "side"), [(2, 16), (4, 8)])
def test_the_encoder_looks_at_as_many_positions_as_its_stride_leaves(stride, side):
    model, video = steve(encoder_stride=stride), torch.rand(2, 3, 3, 32, 32) * 2 - 1
    assert model.encode(video, with_masks=True).masks.shape == (2, 3, 4, side, side)


def test_a_residual_guess_is_the_last_slots_normalised_when_the_predictor_says_nothing():
    model, video = steve(residual_guess=True), torch.rand(2, 2, 3, 32, 32) * 2 - 1
    torch.nn.init.zeros_(model.predictor.out_projector.weight)
    torch.nn.init.zeros_(model.predictor.out_projector.bias)
    state = model.encode(video[:, :1]).state
    torch.testing.assert_close(model.predictor(state).slots, F.layer_norm(state.slots, (16,)))


def test_slots_keep_their_places_by_a_residual_guess_and_not_without():
    """Slots that the last frame's were permuted into give guesses permuted alike: the predictor's own output has no places."""
    for residual in (True, False):
        model = steve(residual_guess=residual)
        # A predictor trained on clips of two frames: as good, whatever fixed permutation of slots it gives.
        state = model.encode(torch.rand(1, 1, 3, 32, 32) * 2 - 1).state._replace(slots=torch.randn(1, 4, 16) * 3)
        guess = model.predictor(state).slots
        nearest = torch.cdist(F.layer_norm(guess, (16,)), F.layer_norm(state.slots, (16,))).argmin(-1)
        assert bool((nearest == torch.arange(4)).all()) is residual


def test_a_residual_guess_does_not_grow_with_the_video():
    model = steve(residual_guess=True)
    slots = model.encode(torch.rand(1, 150, 3, 32, 32) * 2 - 1).slots.norm(dim=-1)[0].mean(-1)
    assert slots[100:].max() < 1.5 * slots[10:50].max()
    assert "norm_guess.weight" not in "".join(steve().state_dict())  # the paper's has no such parameter
