"""The attentive readout: two slots found by what they are, judged by how far apart they come."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from physion.models import flops
from physion.models.noise import sample_noise
from physion.models.readout import AttentiveReadout, Readout

SLOTS, SIZE, FRAMES = 5, 8, 12


def walks(videos, seed):
    """Slots that wander, one marked as red and one as yellow: float32 [B, T, S, D]; and whether those two come close, [B]."""
    rng = np.random.default_rng(seed)
    start, step = rng.normal(size=(videos, 1, SLOTS, 2)), 0.1 * rng.normal(size=(videos, FRAMES, SLOTS, 2))
    places = start + step.cumsum(1)
    order = rng.permuted(np.tile(np.arange(SLOTS), (videos, 1)), axis=1)
    slots = rng.normal(size=(videos, FRAMES, SLOTS, SIZE))
    slots[..., :2], slots[..., 2:4] = places, 0
    every = np.arange(videos)
    slots[every, :, order[:, 0], 2] = slots[every, :, order[:, 1], 3] = 1
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


def test_it_learns_whether_two_marked_things_meet():
    torch.manual_seed(0)
    assert accuracy_after_training(AttentiveReadout(SLOTS, SIZE)) > 0.85
    assert accuracy_after_training(Readout(SLOTS, SIZE)) < 0.7, "the published one could learn it too, so this shows nothing"


@pytest.fixture
def readout():
    torch.manual_seed(0)
    return AttentiveReadout(SLOTS, SIZE).eval().requires_grad_(False)


def test_the_order_of_slots_says_nothing(readout):
    slots, _ = walks(4, 3)
    torch.testing.assert_close(readout(slots[:, :, torch.randperm(SLOTS)]), readout(slots))


def test_it_looks_at_the_same_two_slots_in_every_frame(readout):
    """The order of frames says nothing either, as its answers are maxima and means; slots that swap places do."""
    slots, _ = walks(4, 3)
    torch.testing.assert_close(readout(slots.flip(1)), readout(slots))
    swapped = slots.clone()
    swapped[:, FRAMES // 2 :] = slots[:, FRAMES // 2 :].flip(2)
    assert (readout(swapped) - readout(slots)).abs().max() > 1e-4


def test_the_plan_knows_its_cost(readout):
    slots, _ = walks(1, 3)
    with FlopCounterMode(display=False) as counter:
        readout(slots)
    assert flops.attentive_flops(SLOTS, SIZE) * FRAMES == pytest.approx(counter.get_total_flops(), rel=0.25)
    assert flops.attentive_parameters(SIZE) == pytest.approx(sum(p.numel() for p in readout.parameters()), rel=0.05)


def test_a_study_with_it(physion, preset, store):
    command = ["--set", "train-readout.model=attentive", "-p", preset, "-s", store]
    ended = physion("stage", "train-readout", "--features", "rollout", "--seed", "0", *command)
    assert ended.code == 0, ended.err
    assert "heldout loss" in ended.out
