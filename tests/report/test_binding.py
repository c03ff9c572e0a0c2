"""Binding of slots to bodies, against scikit-learn and plain definitions."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from physion.report.binding import (
    adjusted_rand,
    best_slots,
    followed,
    mean_overlap,
    means,
    measure_slots,
    overlap_ratios,
    overlaps,
)

BODIES, SLOTS = 3, 4


def regions(seed=0, frames=5, side=12, noise=0.3):
    """Bodies and slots that mostly agree, [T, H, W] each."""
    rng = np.random.default_rng(seed)
    bodies = rng.integers(0, 1 + BODIES, (frames, side // 3, side // 3)).repeat(3, 1).repeat(3, 2).astype(np.uint8)
    slots = np.where(rng.random(bodies.shape) < noise, rng.integers(0, SLOTS, bodies.shape), bodies % SLOTS)
    return bodies, slots


def test_overlaps_count_pixels():
    bodies, slots = regions()
    found = overlaps(bodies, slots, BODIES, SLOTS)
    for t, body, slot in np.ndindex(found.shape):
        assert found[t, body, slot] == ((bodies[t] == body) & (slots[t] == slot)).sum()


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_foreground_ari_is_scikit_learn_s(noise):
    bodies, slots = regions(noise=noise)
    found = overlaps(bodies, slots, BODIES, SLOTS)
    there = bodies > 0
    by_frame = [adjusted_rand_score(b[f], s[f]) for b, s, f in zip(bodies, slots, there, strict=True)]
    np.testing.assert_allclose(adjusted_rand(found[:, 1:]), by_frame, atol=1e-12)
    measured = measure_slots(np.zeros((5, SLOTS, 2)), found)
    assert measured["ari"] == pytest.approx(adjusted_rand_score(bodies[there], slots[there]), abs=1e-12)
    assert measured["ari_frames"] == pytest.approx(np.mean(by_frame), abs=1e-12)


@pytest.mark.parametrize("counts", [[[5, 0], [0, 0]], [[3, 4], [0, 0]], [[1, 0], [0, 0]], [[1, 0], [0, 1]]])
def test_ari_where_there_is_little_to_part(counts):
    bodies, slots = (np.repeat(index.ravel(), np.ravel(counts)) for index in np.indices((2, 2)))
    assert adjusted_rand(np.array(counts)) == pytest.approx(adjusted_rand_score(bodies, slots))


def test_miou_is_the_plain_one():
    bodies, slots = regions()
    ratios = [
        [((bodies == b) & (slots == s)).sum() / ((bodies == b) | (slots == s)).sum() for s in range(SLOTS)]
        for b in range(1, 1 + BODIES)
    ]
    found = overlaps(bodies, slots, BODIES, SLOTS)
    np.testing.assert_allclose(overlap_ratios(found.sum(0)), ratios)
    best = max(np.mean([ratios[b][s] for b, s in enumerate(chosen)]) for chosen in permutations(range(SLOTS), BODIES))
    assert mean_overlap(np.array(ratios)) == pytest.approx(best)
    assert measure_slots(np.zeros((5, SLOTS, 2)), found)["miou"] == pytest.approx(best)


def test_more_bodies_than_slots_and_bodies_that_never_show():
    assert mean_overlap(np.eye(4)[:, :2]) == 0.5
    bodies, slots = regions(noise=0)
    with_another = overlaps(bodies, slots, BODIES + 1, SLOTS)  # hidden all the time
    assert measure_slots(np.zeros((5, SLOTS, 2)), with_another)["miou"] == 1
    nothing = overlaps(np.zeros_like(bodies), slots, BODIES, SLOTS)
    assert set(measure_slots(np.zeros((5, SLOTS, 2)), nothing)) == {"norm_first", "norm_last", "kept_places"}


def test_a_slot_of_its_own():
    """A body of 100 pixels: most of it in one slot, of which it is a good part, or not."""

    def own(in_slot, of_slot):
        floor = [10_000, of_slot - in_slot]
        _, found, seen = best_slots(np.array([[floor, [100 - in_slot, in_slot]]]))
        assert seen.all()
        return bool(found)

    assert own(100, 100)
    assert own(50, 200)
    assert not own(49, 100)
    assert not own(60, 300)


def moving(permutation, frames=20, seed=0):
    """Slots of bodies that move slowly, permuted from frame to frame; and overlaps: body b in slot b at first."""
    rng = np.random.default_rng(seed)
    contents = 10 * rng.normal(size=(SLOTS, 6)) + 0.1 * rng.normal(size=(frames, SLOTS, 6)).cumsum(0)
    overlap = np.zeros((frames, 1 + BODIES, SLOTS), int)
    overlap[0, 1:, 1:] = 50 * np.eye(BODIES, dtype=int)
    overlap[0, 0, 0] = 1000
    slots, order = contents.copy(), np.arange(SLOTS)
    for t in range(1, frames):
        order = order[permutation]
        slots[t] = contents[t, order]
        overlap[t] = overlap[0][:, order]
    return slots, overlap


def test_slots_that_stay_and_slots_that_change_places():
    stay = measure_slots(*moving([0, 1, 2, 3]))
    assert [stay[name] for name in ("kept_places", "kept_index", "kept_object", "ari", "miou", "own_agent")] == [1] * 6
    change = measure_slots(*moving([1, 0, 3, 2]))
    assert [change[name] for name in ("kept_places", "kept_index")] == [0, 0]
    assert [change[name] for name in ("kept_object", "ari_frames", "miou_frames", "own_agent")] == [1] * 4
    assert change["ari"] < 0.5
    assert change["miou"] < 0.5


def test_shuffled_slots_keep_nothing():
    slots, overlap = moving([0, 1, 2, 3])
    rng = np.random.default_rng(1)
    for t in range(1, len(slots)):
        order = rng.permutation(SLOTS)
        slots[t], overlap[t] = slots[t, order], overlap[t][:, rng.permutation(SLOTS)]
    found = measure_slots(slots, overlap)
    assert found["kept_object"] < 0.6
    assert found["kept_places"] < 0.6


def test_followed_is_the_nearest():
    slots = np.random.default_rng(0).normal(size=(6, SLOTS, 3)).astype(np.float32)
    plain = [[np.argmin([np.linalg.norm(slot - other) for other in after]) for slot in before]
             for before, after in pairwise(slots)]  # fmt: skip
    np.testing.assert_array_equal(followed(slots), plain)


def test_means_are_over_those_that_are_defined():
    assert means([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}
