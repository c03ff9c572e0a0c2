"""`train-slotformer.model.residual`: SlotFormer predicts how slots change."""

import pytest
import torch

from physion.config.schema import SlotFormerModel
from physion.models.slotformer import SlotFormer
from physion.stages.weights_fit import _differences

SIZES = {"burn_in": 4, "stride": 3, "d_model": 16, "layers": 2, "heads": 2, "ffn": 32, "dropout": 0.0}


def model(residual):
    torch.manual_seed(0)
    return SlotFormer(SlotFormerModel(**SIZES, residual=residual), slots=3, slot_size=8).eval()


def test_it_begins_by_copying_the_last_frame_and_learns_from_there():
    copies, clip = model(True), torch.randn(2, 9, 3, 8)
    predicted = copies.predict(clip[:, :4], 5)
    assert torch.equal(predicted, clip[:, 3:4].expand(-1, 5, -1, -1))
    loss = copies.loss(clip)
    loss.backward()
    torch.optim.SGD(copies.parameters(), 0.003).step()
    assert copies.loss(clip) < loss


def test_it_adds_what_the_published_form_would_have_predicted():
    residual, plain, window = model(True), model(False), torch.randn(2, 4, 3, 8)
    residual.load_state_dict(plain.state_dict())
    torch.testing.assert_close(residual(window), window[:, -1] + plain(window))


@pytest.mark.parametrize(("residual", "differences"), [(False, []), (True, ["residual is None, configured True"])])
def test_weights_from_before_there_was_this_option(residual, differences):
    assert _differences({"model": SIZES}, {"model": SIZES | {"residual": residual}}) == differences
