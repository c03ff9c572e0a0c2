"""A few hundred damaged and hostile inputs for every reader; `python tests/store/fuzz.py 10000` tries more."""

import pytest
from fuzz import NAMES, Readers, fuzz
from world import World


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_taken_or_refused(tmp_path, name):
    world = World(tmp_path / "world")
    root = world.place("readers")
    root.mkdir(parents=True)
    assert fuzz(Readers(root), name, 200, derandomize=True)  # and it takes some
    world.check()
