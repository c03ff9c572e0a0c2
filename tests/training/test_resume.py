"""On a CPU a training that was stopped or killed and went on equals one that was not, bit for bit."""

import signal
import subprocess
import sys

import pytest
import tiny_training
from tiny_training import STEPS, TinyTask, make_job, train

from physion.errors import Interrupted, Preempted
from physion.stages import Stop


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"))


def checkpoints(root):
    return sorted(root.glob("artifacts/train-dvae/*/checkpoints/*"))


def steps_of(root):
    return [int(path.name.split("-")[0]) for path in checkpoints(root)]


def stop_after(root, step, signal_name="SIGTERM"):
    stop = Stop()

    def at_step(now):
        if now == step:
            stop.signal = signal_name

    train(root, task=TinyTask(at_step), stop=stop)


def test_training_again_gives_the_same_bytes(tmp_path, undisturbed):
    assert train(tmp_path) == undisturbed
    assert undisturbed[0][-1]["step"] == STEPS
    assert undisturbed[0][-1]["heldout_loss"] < undisturbed[0][0]["heldout_loss"]


def test_another_seed_gives_other_bytes(tmp_path, undisturbed):
    assert train(tmp_path, seed=1)[1] != undisturbed[1]


@pytest.mark.parametrize("first", [0, 2, 3, 4, 9, STEPS - 2])
def test_stopped_and_resumed_equals_undisturbed(tmp_path, undisturbed, first):
    with pytest.raises(Preempted):
        stop_after(tmp_path, first)
    assert steps_of(tmp_path)[-1] == first + 1  # the state of the very step is saved
    assert train(tmp_path) == undisturbed


def test_stopped_again_and_again(tmp_path, undisturbed):
    for step in (1, 6, 7, 15, 16):
        with pytest.raises(Interrupted):
            stop_after(tmp_path, step, "SIGINT")
    assert train(tmp_path) == undisturbed


def test_a_stop_in_the_last_step_loses_nothing(tmp_path, undisturbed):
    stop_after(tmp_path, STEPS - 1)  # nothing is left to do: it finishes
    assert (tmp_path / "artifacts/train-dvae" / tiny_training.FINGERPRINT / "weights.safetensors").read_bytes() == undisturbed[
        1
    ]


def test_killed_and_resumed_equals_undisturbed(tmp_path, undisturbed):
    for step, left in ((2, []), (21, [16, 20])):
        killed = subprocess.run([sys.executable, tiny_training.__file__, str(tmp_path), str(step)], capture_output=True)
        assert killed.returncode == -signal.SIGKILL
        assert steps_of(tmp_path) == left
    assert train(tmp_path) == undisturbed


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, undisturbed, capsys, damage):
    with pytest.raises(Preempted):
        stop_after(tmp_path, 9)
    assert steps_of(tmp_path) == [8, 10]
    newest = checkpoints(tmp_path)[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes({"flip": bytes(data), "cut": bytes(data[:-1]), "empty": b""}[damage])
    assert train(tmp_path) == undisturbed
    said = capsys.readouterr().err
    assert f"{newest.name} is damaged; taking the one before" in said
    assert "goes on from step 8" in said


def test_with_every_checkpoint_damaged_it_starts_over(tmp_path, undisturbed):
    with pytest.raises(Preempted):
        stop_after(tmp_path, 9)
    for path in checkpoints(tmp_path):
        path.write_bytes(b"")
    assert train(tmp_path) == undisturbed


def test_how_often_it_saves_and_loads_changes_nothing(tmp_path, undisturbed):
    assert train(tmp_path, checkpoint_every=1, loader_workers=1) == undisturbed


def test_two_checkpoints_are_kept(tmp_path):
    with pytest.raises(Preempted):
        stop_after(tmp_path, 18)
    assert steps_of(tmp_path) == [16, 19]
    assert [path.name for path in (tmp_path / ".staging").glob("*/*")] == [".lock"]


def test_a_checkpoint_another_runner_takes_away_is_passed_over(tmp_path, undisturbed, monkeypatch):
    with pytest.raises(Preempted):
        stop_after(tmp_path, 9)
    job = make_job(tmp_path)
    fetch = type(job.output.store).fetch

    def vanishing(store, key):
        if "00000010" in key:
            fetch(store, key).unlink(missing_ok=True)
        return fetch(store, key)

    monkeypatch.setattr(type(job.output.store), "fetch", vanishing)
    assert train(tmp_path) == undisturbed
