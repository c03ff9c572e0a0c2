"""The readout `touch`: the red and the yellow slot, judged by how far apart they come."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from physion.models import flops
from physion.models.noise import sample_noise
from physion.models.readout import Readout, TouchReadout
from physion.models.slots import red_and_yellow
from physion.stages.regress import places

SLOTS, CONTENT, PLACES, FRAMES = 5, 4, 2, 12
SIZE = CONTENT + 3 + 2 * PLACES


def walks(videos, seed):
    """Slots that wander, one red and one yellow: float32 [B, T, S, D]; and whether those two come close, [B]."""
    rng = np.random.default_rng(seed)
    start, step = rng.normal(size=(videos, 1, SLOTS, PLACES)), 0.1 * rng.normal(size=(videos, FRAMES, SLOTS, PLACES))
    places = start + step.cumsum(1)
    order = rng.permuted(np.tile(np.arange(SLOTS), (videos, 1)), axis=1)
    slots = rng.normal(size=(videos, FRAMES, SLOTS, SIZE))
    slots[..., CONTENT : CONTENT + 3], slots[..., CONTENT + 3 : -PLACES], slots[..., -PLACES:] = 0, places, -2
    every = np.arange(videos)
    slots[every, :, order[:, 0], CONTENT : CONTENT + 3] = 2, -2, -2
    slots[every, :, order[:, 1], CONTENT : CONTENT + 3] = 2, 2, -2
    apart = np.linalg.norm(places[every, :, order[:, 0]] - places[every, :, order[:, 1]], axis=-1).min(1)
    return torch.from_numpy(slots).float(), torch.from_numpy(apart < np.median(apart)).float()


def accuracy_after_training(readout, steps=300):
    learn, labels = walks(1000, 0)
    optimizer, rng = torch.optim.Adam(readout.parameters(), 3e-3), np.random.default_rng(1)
    readout.train()
    for step in range(steps):
        few = rng.integers(0, len(learn), 64)
        with sample_noise([step * 64 + number for number in range(64)]):
            loss = F.binary_cross_entropy_with_logits(readout(learn[few]), labels[few])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    asked, truth = walks(1000, 2)
    with torch.no_grad():
        return ((readout.eval()(asked) > 0) == (truth > 0)).float().mean().item()


def test_it_learns_whether_red_meets_yellow():
    torch.manual_seed(0)
    assert accuracy_after_training(TouchReadout(SLOTS, SIZE, PLACES)) > 0.85
    assert accuracy_after_training(Readout(SLOTS, SIZE)) < 0.7, "the published one could learn it too, so this shows nothing"


@pytest.fixture
def readout():
    torch.manual_seed(0)
    return TouchReadout(SLOTS, SIZE, PLACES).eval().requires_grad_(False)


def test_red_and_yellow_are_found_whatever_the_order_of_slots():
    slots, _ = walks(4, 3)
    named = red_and_yellow(slots, PLACES)
    assert named.shape == (4, FRAMES, 2, SIZE)
    assert (named[..., CONTENT : CONTENT + 3] == torch.tensor([[2.0, -2, -2], [2, 2, -2]])).all()
    assert torch.equal(red_and_yellow(slots[:, :, torch.randperm(SLOTS)], PLACES), named)


def test_a_color_that_flickers_does_not_change_which_slots_are_meant():
    slots, _ = walks(1, 3)
    named = red_and_yellow(slots, PLACES)
    flickering = slots.clone()
    flickering[:, 5, :, CONTENT : CONTENT + 3] = 0  # in one frame everything is gray
    found = red_and_yellow(flickering, PLACES)
    assert torch.equal(found[..., -PLACES:], named[..., -PLACES:])
    assert torch.equal(found[..., :CONTENT], named[..., :CONTENT])


def test_other_slots_say_nothing(readout):
    slots, _ = walks(4, 3)
    gray = (slots[..., CONTENT : CONTENT + 3] == 0).all(-1, keepdim=True)
    torch.testing.assert_close(readout(slots), readout(torch.where(gray, 0.0, slots)), rtol=0, atol=0)


def test_whatever_a_predicted_slot_says_is_read(readout):
    slots, _ = walks(4, 3)
    slots[..., -PLACES:] *= -200
    assert readout(slots).isfinite().all()
    assert np.isfinite(places(slots[0].numpy(), PLACES)).all()


def test_the_plan_knows_its_cost(readout):
    slots = walks(1, 3)[0].repeat(1, 20, 1, 1)
    with FlopCounterMode(display=False) as counter:
        readout(slots)
    assert flops.touch_flops(SIZE, PLACES) * 20 * FRAMES == pytest.approx(counter.get_total_flops(), rel=0.25)
    assert flops.touch_parameters(SIZE, PLACES) == pytest.approx(sum(p.numel() for p in readout.parameters()), rel=0.05)


def test_slots_that_say_no_place_are_refused(physion, preset, tmp_path):
    ended = physion("plan", "--set", "train-readout.model=touch", "-p", preset, "-s", tmp_path)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    said = "train-readout.model=touch needs slots that say their color and place, as isa and bodies give, not slot-model=steve"
    assert said in ended.err
