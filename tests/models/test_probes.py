"""Probes on slots that say where a body is, and on slots that do not."""

import numpy as np
import pytest

from physion.models.probes import folds, probe

VIDEOS, FRAMES, SLOTS, SIZE = 20, 10, 4, 8


def seen(says=True, constant=False):
    """Slots of which one is marked as the body's and says where it is; it has another index in every frame."""
    rng = np.random.default_rng(0)
    shape = (VIDEOS, 1) if constant else (VIDEOS, FRAMES)
    places = np.broadcast_to(rng.normal(size=(*shape, 2)), (VIDEOS, FRAMES, 2)).copy()
    slots = rng.normal(size=(VIDEOS, FRAMES, SLOTS, SIZE))
    best = rng.integers(0, SLOTS, (VIDEOS, FRAMES))
    at = (*np.ogrid[:VIDEOS, :FRAMES], best)
    if says:
        slots[(*at, slice(0, 2))] = places + 0.1 * rng.normal(size=places.shape)
        slots[(*at, 7)] += 6
    return slots, best, places, np.ones(best.shape, bool)


def r2(said, places):
    return 1 - ((said - places) ** 2).sum() / ((places - places.mean((0, 1))) ** 2).sum()


def test_what_slots_say_is_read_also_from_the_one_that_is_picked():
    slots, best, places, there = seen()
    said = probe(slots, best, places, there, [str(n) for n in range(VIDEOS)])
    assert r2(said["best"], places) > 0.97
    assert r2(said["picked"], places) > 0.95


def test_what_they_do_not_say_is_not():
    slots, best, places, there = seen(says=False)
    said = probe(slots, best, places, there, [str(n) for n in range(VIDEOS)])
    assert max(r2(each, places) for each in said.values()) < 0.05


def test_near_twins_are_not_learned_from():
    """Bodies that rest: a slot that is a video's own would give its place away, were the video, or its twin, learned from."""
    _, best, places, there = seen(constant=True)
    mine = np.random.default_rng(1).normal(size=(VIDEOS // 2, 1, 1, 30)).repeat(2, 0)
    places[1::2] = places[::2]
    slots = np.broadcast_to(mine, (VIDEOS, FRAMES, SLOTS, 30))
    apart = probe(slots, best, places, there, [str(n // 2) for n in range(VIDEOS)])["best"]
    assert r2(apart, places) < 0.3
    known = probe(slots, best, places, there, [str(n % 10) for n in range(VIDEOS)])["best"]  # twins in other folds
    assert r2(known, places) > 0.9


def test_only_where_the_body_is_seen():
    slots, best, places, there = seen()
    there[3, 2:] = False
    places[3, 2:] = np.nan  # would spoil what is learned
    said = probe(slots, best, places, there, [str(n) for n in range(VIDEOS)])
    for each in said.values():
        np.testing.assert_array_equal(np.isfinite(each).all(-1), there)


def test_a_single_family_teaches_nothing():
    slots, best, places, there = seen()
    said = probe(slots, best, places, there, ["one"] * VIDEOS)
    assert np.isnan(said["best"]).all()


@pytest.mark.parametrize("count", [1, 3, 12])
def test_families_are_shared_out(count):
    of = folds([str(n // 2) for n in range(2 * count)])
    assert (of[::2] == of[1::2]).all()
    assert len(np.unique(of)) == min(count, 5)
