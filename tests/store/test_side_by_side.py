"""A few of the faults that `python tests/store/side_by_side.py 1000 SEED` deals out, to folders and to a real S3 server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("faults", "where", "some"),
    [("30", [], ["make\n", "read\n", "pull\n", "fault: kill"]), ("12", ["s3"], [])],
    ids=["folders", "s3"],
)
def test_processes_beside_each_other(tmp_path, faults, where, some):
    """In a process of its own, which forks."""
    seed = os.environ.get("PHYSION_TEST_SEED", "20241")
    program = Path(__file__).with_name("side_by_side.py")
    command = [sys.executable, program, faults, seed, *where]
    ended = subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for done in ("published, whole", "fault: ", *some):
        assert done in ended.stdout
