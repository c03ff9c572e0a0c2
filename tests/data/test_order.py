import pytest

from physion.data.order import StepBatches, spread


def test_the_same_batches_wherever_one_starts():
    whole = list(StepBatches(23, 4, seed=5, start=0, stop=40))
    for start in (1, 7, 39):
        assert list(StepBatches(23, 4, seed=5, start=start, stop=40)) == whole[start:]
    assert len(StepBatches(23, 4, seed=5, start=7, stop=40)) == 33


@pytest.mark.parametrize(("clips", "batch"), [(23, 4), (8, 4), (3, 8), (1, 3)])
def test_every_epoch_is_a_permutation(clips, batch):
    epochs = 4
    batches = list(StepBatches(clips, batch, seed=1, start=0, stop=clips * epochs))
    assert all(len(chosen) == batch for chosen in batches)
    flat = [clip for chosen in batches for clip in chosen]
    parts = [flat[clips * n : clips * (n + 1)] for n in range(epochs)]
    assert all(sorted(part) == list(range(clips)) for part in parts)
    if clips > 8:
        assert len({tuple(part) for part in parts}) == epochs


def test_another_seed_is_another_order():
    assert StepBatches(100, 10, 0, 0, 9).at(3) != StepBatches(100, 10, 1, 0, 9).at(3)


def test_a_sample_is_spread_over_everything():
    assert spread(10, 20) == list(range(10))
    assert spread(100, 4) == [12, 37, 62, 87]
    sample = spread(2_280_000, 1280)
    assert len(set(sample)) == 1280
    assert sample == sorted(sample)
    assert sample[-1] < 2_280_000
