"""TensorBoard, started for real, and the names of the runs that it serves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

from physion.store.artifacts import ArtifactWriter
from physion.store.local import LocalStore

PATIENCE = 600.0


def runs(store, count, *names, number=signal.SIGINT):
    """The runs that TensorBoard shows, by their names, with their tags of scalars; and how the command ended."""
    command = [sys.executable, "-m", "physion.cli", "tensorboard", *names, "-s", str(store), "--port", "0"]
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]  # as a shell in the background starts it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        (address,) = next(filter(None, (re.findall(r"http://\S+", line) for line in process.stderr)))
        found, deadline = {}, time.monotonic() + PATIENCE
        while len(found) < count:  # it looks at the files in the background
            assert time.monotonic() < deadline, found
            with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=60) as answer:
                found = json.load(answer)
            time.sleep(0.1)
        process.send_signal(number)
        process.stderr.read()
        return found, process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()


def test_runs_are_told_apart(physion, preset, store):
    other = ["--set", "train-slotformer.optim.lr=2e-4"]
    assert physion("stage", "train-slotformer", "-p", preset, "-s", store, *other).code == 0
    writer = ArtifactWriter(LocalStore(store), "train-slotformer", "abcdef" + "0" * 14)  # one at work
    writer.begin({"train-slotformer": writer.prefix.rpartition("/")[2]}, {})
    (path,) = store.glob("artifacts/train-dvae/*/events.tfevents")
    writer.store.write(f"{writer.prefix}/live/00000000-00000003.tfevents", path.read_bytes())
    found, code = runs(store, 3, "train-slotformer")
    assert code == 0
    assert sorted(re.sub("[0-9a-f]{6}$", "", name) for name in found) == [
        "train-slotformer ",
        "train-slotformer optim.lr=0.0002 ",
        "train-slotformer optim.lr=0.001 ",
    ]
    assert "train-slotformer abcdef" in found
    assert all("loss" in tags for tags in found.values())


def test_it_ends_when_it_is_told_to(finished):
    found, code = runs(finished, 9, number=signal.SIGTERM)
    assert (len(found), code) == (9, 0)


def test_a_stage_that_writes_no_events(physion, finished):
    ended = physion("tensorboard", "frames", "-s", finished)
    assert (ended.code, "has written anything yet" in ended.err) == (2, True)
