"""ISA, slots with a color, a place and an extent: what they say, and how they draw."""

import pytest
import torch

from physion.config.schema import ISAModel
from physion.models.isa import ISA, PLACE, Slots, taken_apart
from physion.models.slots import masks_of, see_video

SIZE, SLOTS = 32, 4
MODEL = ISAModel(
    slots=SLOTS, slot_size=16, slot_mlp=16, encoder_channels=8, predictor_heads=2, predictor_ffn=32, decoder_width=16
)


@pytest.fixture
def isa():
    torch.manual_seed(0)
    model = ISA(MODEL, SIZE)
    torch.nn.init.normal_(model.step.weight, std=0.1)  # a fresh one predicts that nothing changes
    return model.eval().requires_grad_(False)


@pytest.fixture
def video():
    return torch.rand(2, 7, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def one_slot(place, extent=0.3, color=(0.0, 0.0, 0.0)):
    content = torch.randn(1, 1, 9, generator=torch.Generator().manual_seed(2))
    color, place, extent = (torch.tensor([[value]]) for value in (color, place, (extent, extent)))
    return Slots(content, color, place, extent)


def test_chunk_by_chunk_is_the_video_at_once(isa, video):
    whole = isa.encode(video, with_masks=True)
    first = isa.encode(video[:, :3], with_masks=True)
    rest = isa.encode(video[:, 3:], first.state, with_masks=True)
    torch.testing.assert_close(torch.cat([first.slots, rest.slots], 1), whole.slots)
    torch.testing.assert_close(torch.cat([first.masks, rest.masks], 1), whole.masks)
    assert whole.masks.shape == (2, 7, SLOTS, 16, 16)
    torch.testing.assert_close(whole.masks.sum(2), torch.ones(2, 7, 16, 16))


def test_a_slot_says_the_color_and_the_place_of_what_it_wins(isa):
    frame = torch.full((1, 1, 3, SIZE, SIZE), -1.0)
    frame[:, :, 0, :, : SIZE // 2] = 1.0  # red on the left, black on the right
    found = taken_apart(isa.encode(frame).slots[:, 0])
    leftness, redness = -found.place[0, :, 1], found.color[0, :, 0]
    assert leftness.argsort().tolist() == redness.argsort().tolist()
    torch.testing.assert_close(found.color[..., 1:], torch.full((1, SLOTS, 2), -1.0))


def test_slots_taken_apart_and_joined(isa, video):
    slots = isa.encode(video).slots[0]
    torch.testing.assert_close(taken_apart(slots).joined(), slots)
    wild = taken_apart(slots * 100)  # as a rollout might predict
    assert wild.place.abs().max() <= 1.5
    assert wild.color.abs().max() <= 1
    assert 0.03 < wild.extent.min() <= wild.extent.max() <= 1


def test_a_moved_slot_draws_the_same_elsewhere(isa):
    move = torch.tensor([0.25, -0.5])
    here = isa.decoder(one_slot((0.0, 0.25)), isa.patches)
    there = isa.decoder(one_slot((0.25, -0.25)), isa.patches + move)
    torch.testing.assert_close(there.colors, here.colors)
    torch.testing.assert_close(there.claims, here.claims)


def test_a_slot_draws_in_its_color(isa):
    plain = isa.decoder(one_slot((0.0, 0.0)), isa.patches).colors
    red = isa.decoder(one_slot((0.0, 0.0), color=(0.9, -0.5, -0.5)), isa.patches).colors
    torch.testing.assert_close(red - plain, torch.tensor([0.9, -0.5, -0.5])[:, None].expand_as(plain))


def test_the_loss_is_the_error_of_the_picture(isa, video):
    drawn = isa.decode(isa.encode(video).slots.flatten(0, 1))
    assert drawn.shape == (14, 3, SIZE, SIZE)
    assert drawn.abs().max() < 1, "clamped, so not what the loss sees"
    torch.testing.assert_close(isa.loss(video), (drawn - video.flatten(0, 1)).square().mean())


def test_parts_of_the_picture_have_the_loss_of_the_whole_on_average(isa, video):
    order = torch.randperm(isa.side**2, generator=torch.Generator().manual_seed(3))
    parts = [isa.loss(video, chosen) for chosen in order.split(64)]
    torch.testing.assert_close(torch.stack(parts).mean(), isa.loss(video))


def test_gradients_reach_every_parameter(video):
    torch.manual_seed(0)
    model = ISA(MODEL, SIZE)
    model.loss(video).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.nn.init.normal_(model.step.weight, std=0.1)
    model.zero_grad()
    model.loss(video).backward()
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


def test_places_count_four_times():
    assert one_slot((0.5, -0.5)).joined()[0, 0, -4:-2].tolist() == [0.5 * PLACE, -0.5 * PLACE]


def test_where_slots_look_follows_from_them_alone(isa, video):
    seen = isa.encode(video, with_masks=True)
    torch.testing.assert_close(isa.masks(seen.slots), seen.masks)
    size = 2 * seen.masks.shape[-1]
    torch.testing.assert_close(
        masks_of(isa, seen.slots, lambda: pytest.fail("slots alone tell"), size), see_video(isa, video, size)[1]
    )


def test_a_model_whose_slots_alone_do_not_tell_sees_the_video_again(isa, video, monkeypatch):
    size, slots = 32, torch.full((2, 7, SLOTS, 16), torch.nan)
    seen = see_video(isa, video, size)[1]
    monkeypatch.setattr(isa, "masks", lambda slots: None if slots.isnan().any() else ISA.masks(isa, slots))
    torch.testing.assert_close(masks_of(isa, slots, lambda: video, size), seen)


def test_claims_are_those_of_the_drawing(isa):
    slots = one_slot((0.2, -0.1))
    torch.testing.assert_close(isa.decoder.claims(slots, isa.patches), isa.decoder(slots, isa.patches).claims)
