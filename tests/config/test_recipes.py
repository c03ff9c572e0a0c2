import re
import shlex
from pathlib import Path

from physion.config.load import load_config

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"


def test_the_recipes_of_the_published_study_can_be_set():
    recipes = [shlex.split(recipe)[0] for recipe in re.findall(r"--set ([^`]+)", PAGE.read_text())]
    assert len(recipes) >= 6
    for recipe in recipes:
        assert (load_config("paper", [recipe]) == load_config("paper")) == (recipe == "frames.heldout=0.05"), recipe
