"""Our models start as the published ones do: the mean, spread and bound of every tensor, and which tensors start equal.

Both sides pool 8 constructions, so of each tensor there are two samples of n values, and if we are right, both are of one law.
Then they differ by chance alone, and the tolerances follow: a right tensor exceeds one of them once in a million tries.
"""

import math
from statistics import NormalDist

import pytest
import torch

from physion.models.published import from_published

SEEDS = range(8, 16)  # not 0 to 7, from which our readout draws the very numbers of the published sample
CHANCE = 1e-6
STANDARD_ERRORS = NormalDist().inv_cdf(1 - CHANCE / 2)  # 4.9
ROUNDED = 5e-7  # the published numbers have six decimals


def same_mean(ours, mean, std):
    """The mean of n values is std / sqrt(n) off, and the difference of two such means sqrt(2) times that."""
    return abs(ours.mean().item() - mean) < STANDARD_ERRORS * std * math.sqrt(2 / len(ours)) + ROUNDED


def same_std(ours, std):
    """A normal's standard deviation is std / sqrt(2 n) off; the other laws here have lighter tails, and are off by less.

    Of the few values of a small tensor that says little, but those of a random one are never all the same.
    """
    ours, n = ours.std().item(), len(ours)
    return ours > 0 and abs(ours - std) < STANDARD_ERRORS * std / math.sqrt(n) + ROUNDED


def same_bound(ours, largest, std):
    """A share E / n of a law lies beyond the largest of n magnitudes, E exponential of mean 1: at most -log(CHANCE) / n.

    So largest magnitudes of a bounded law are that near to its bound: there a uniform has its mean density, and a normal cut
    at two standard deviations (the decoder's positions) 0.226 of that.
    """
    ours, n, most = ours.abs().max().item(), len(ours), -math.log(CHANCE)
    if largest < 2.5 * std:
        return abs(ours - largest) < most * largest / (0.226 * n) + ROUNDED
    beyond = [math.erfc(value / std / math.sqrt(2)) for value in (ours, largest)]  # of a normal
    return all(CHANCE < n * share < most for share in beyond)


def starts_alike(ours, mean, std, largest):
    if std == 0:
        return bool((ours == mean).all())
    return same_mean(ours, mean, std) and same_std(ours, std) and same_bound(ours, largest, std)


@pytest.mark.parametrize("name", ["dvae", "steve", "slotformer", "readout"])
def test_every_tensor_starts_as_published(goldens, name):
    pooled = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        for key, value in goldens.fresh(name).state_dict().items():
            pooled.setdefault(key, []).append(value.flatten().double())
    ours = {key: torch.cat(values) for key, values in pooled.items()}
    published = from_published(name, goldens.initial[name]["tensors"])
    assert ours.keys() == published.keys()
    assert [key for key, facts in published.items() if not starts_alike(ours[key], *facts)] == []

    equal = {}
    for key, (_, std, _) in published.items():
        if std > 0:
            equal.setdefault(ours[key].numpy().tobytes(), []).append(key)
    groups = [list(from_published(name, dict.fromkeys(group))) for group in goldens.initial[name]["start_equal"]]
    assert [group for group in equal.values() if len(group) > 1] == groups
