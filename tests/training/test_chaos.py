"""A handful of the hundred seeded kills a model that `python tests/training/chaos.py` deals out."""

import os

import pytest
from chaos import STAGES, Chaos

SEED = int(os.environ.get("PHYSION_TEST_SEED", "20241"))


@pytest.mark.parametrize("stage", STAGES)
def test_killed_again_and_again_it_ends_as_if_undisturbed(finished, preset, tmp_path, stage):
    chaos = Chaos(finished, preset, stage, tmp_path, SEED)
    for _ in range(20):  # the machine may be faster than when the undisturbed training was timed
        chaos.train(4)
        if chaos.happened:
            break
    print(f"seed {SEED}: {dict(chaos.happened)}")
    assert chaos.happened
