"""Thirty of the faults that `python tests/store/side_by_side.py 1000` deals out."""

import os
import subprocess
import sys
from pathlib import Path


def test_processes_beside_each_other(tmp_path):
    """In a process of its own, which forks."""
    seed = os.environ.get("PHYSION_TEST_SEED", "20241")
    program = Path(__file__).with_name("side_by_side.py")
    ended = subprocess.run(
        [sys.executable, program, "30", seed], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    for done in ("make\n", "read\n", "pull\n", "published, whole", "fault: kill"):
        assert done in ended.stdout
