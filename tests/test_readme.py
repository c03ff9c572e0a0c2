"""Each command of README is run by tests/readme.py, or it says what is run instead and why."""

import shutil
import subprocess

import pytest
from readme import INSTEAD, LEFT_OUT, NO_COMMANDS, ROOT, blocks, commands, script

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = {"make", ".", "physion", "python3", "pip"}  # that a reader of README has


def test_every_line_is_run_or_says_why_not():
    for line, run in commands(TEXT):
        assert line in LEFT_OUT or line in INSTEAD or (run == line and line.split()[0] in PROGRAMS), line


def test_nothing_is_left_out_that_is_not_there():
    lines = {line for line, _ in commands(TEXT)}
    assert {*INSTEAD, *LEFT_OUT} <= lines
    assert not INSTEAD.keys() & LEFT_OUT.keys()
    for start in NO_COMMANDS:
        assert sum(block[0].startswith(start) for block in blocks(TEXT)) == 1


def test_the_script_is_one_that_bash_understands(tmp_path):
    made = script(TEXT, "tiny")
    assert subprocess.run(["bash", "-n"], input=made, text=True, capture_output=True).stderr == ""
    assert script(TEXT, "smoke").count("smoke") > TEXT.count("smoke")


@pytest.mark.parametrize("last", ["true", "false", "false && true"])
def test_it_stops_at_the_first_command_that_fails(tmp_path, last):
    page = f"# A page\n\n    touch first\n    {last}    # a comment\n\nWords.\n\n    touch second\n"
    ended = subprocess.run([shutil.which("bash"), "-c", script(page, "tiny")], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode == 0) == (tmp_path / "second").exists() == (last == "true")
    assert (tmp_path / "first").exists()
