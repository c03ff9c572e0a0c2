"""On a CPU a training that was stopped or killed and went on equals one that was not, bit for bit."""

import signal

import boto3
import pytest
import tiny_training
from ranks import Ranks
from tiny_training import STEPS, TinyTask, checkpoints, make_job, settings, steps_of, train, train_until

from physion.errors import Interrupted, Preempted
from physion.job import Stop
from physion.store.s3 import S3Store
from physion.training.checkpoints import read_state
from physion.training.engine import fit


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"))


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
    for step, saved in ((2, False), (21, True)):
        assert Ranks(1, train_until, str(tmp_path), step, log=tmp_path / "log").wait() == [-signal.SIGKILL]
        assert bool(steps_of(tmp_path)) == saved
    assert train(tmp_path) == undisturbed


def test_the_time_of_earlier_runs_counts(tmp_path):
    """What `physion plan` believes a training takes is the sum over its runs."""
    with pytest.raises(Preempted):
        stop_after(tmp_path, 9)
    before = read_state(checkpoints(tmp_path)[-1]).seconds
    assert before > 0
    job, task = make_job(tmp_path), TinyTask()
    began = job.output.seconds
    fit(task, settings(), job)
    assert job.output.earlier == before
    assert job.output.seconds > before + began


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
    assert f"{newest.name} is damaged; using the one before it" in said
    assert "resumes at step 8" in said


@pytest.mark.parametrize("damage", ["under its checksum", "by another tool"])
def test_a_damaged_checkpoint_in_a_bucket_gives_way_to_the_one_before(tmp_path, undisturbed, s3, capsys, damage):
    """The object is wrong whatever its metadata say: they are those of what was stored, or there are none."""
    store = S3Store("tests", damage.replace(" ", "-"), scratch=tmp_path / "scratch")
    with pytest.raises(Preempted):
        stop_after(store, 9)
    client = boto3.client("s3")
    newest = [key for key in store.list("artifacts") if "/checkpoints/" in key][-1]
    where = {"Bucket": "tests", "Key": f"{store.prefix}/{newest}"}
    stored = client.get_object(**where)
    data = bytearray(stored["Body"].read())
    data[len(data) // 2] ^= 1
    client.put_object(**where, Body=bytes(data), Metadata=stored["Metadata"] if damage == "under its checksum" else {})
    assert train(store) == undisturbed
    said = capsys.readouterr().err
    assert f"{newest.rpartition('/')[2]} is damaged; using the one before it" in said
    assert "resumes at step 8" in said
    assert newest not in store.list("artifacts")


def test_with_every_checkpoint_damaged_it_starts_over(tmp_path, undisturbed):
    with pytest.raises(Preempted):
        stop_after(tmp_path, 9)
    for path in checkpoints(tmp_path):
        path.write_bytes(b"")
    assert train(tmp_path) == undisturbed


def test_how_often_it_saves_and_loads_changes_nothing(tmp_path, undisturbed):
    assert train(tmp_path, checkpoint_every=1, loader_workers=1) == undisturbed


def test_the_newest_two_checkpoints_and_the_best_are_kept(tmp_path):
    with pytest.raises(Preempted):
        stop_after(tmp_path, 18)
    assert steps_of(tmp_path) == [15, 16, 19]
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
