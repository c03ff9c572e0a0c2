import re
import shlex
from itertools import pairwise
from pathlib import Path

from physion.config.load import load_config

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"


def test_the_recipes_of_the_published_study_can_be_set():
    words = [word for code in re.findall(r"`([^`]*--set [^`]+)`", PAGE.read_text()) for word in shlex.split(code)]
    recipes = [value for option, value in pairwise(words) if option == "--set" and not value.startswith("fetch.")]
    assert {"train-dvae.optim.batch-size=32", "train-steve.optim.batch-size=12"} < set(recipes)
    assert load_config("paper", ["dataset=simulate", "slot-model=bodies"]).slot_model == "bodies"  # needs ground truth
    for recipe in set(recipes) - {"slot-model=bodies"}:
        assert (load_config("paper", [recipe]) == load_config("paper")) == (recipe == "frames.heldout=0.05"), recipe
