"""Two runs of one training: the newer one's checkpoints are its own."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TinyTask, checkpoints, make_job, settings, steps_of, train

from physion.errors import Preempted, TransientError
from physion.job import Stop
from physion.training.checkpoints import Checkpoints
from physion.training.engine import fit


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"))


def owners(root):
    return sorted(path.name for path in Path(root).glob("artifacts/train-dvae/*/owners/*"))


def tokens(root):
    return {path.name.split("-")[0] for path in checkpoints(root)}


def overtaken_at(root, step, then):
    """Train, while another run of the same training takes over, and stops, in the middle of this one's step."""

    def overtake():
        stop = Stop()
        with pytest.raises(Preempted):
            fit(TinyTask(stop_at(stop, 13)), settings(), make_job(root, stop))
        then()

    return TinyTask(beside(step, overtake))


def stop_at(stop, step):
    return lambda now: setattr(stop, "signal", "SIGTERM" if now == step else None)


def beside(step, happening):
    """What `happening` does at a step leaves the training's random numbers alone, as if it were in another process."""

    def at_step(now):
        if now == step:
            with torch.random.fork_rng():
                happening()

    return at_step


def test_a_zombie_neither_writes_nor_deletes_what_the_newer_run_has(tmp_path, undisturbed, capsys):
    seen = []
    task = overtaken_at(tmp_path, 10, lambda: seen.append(checkpoints(tmp_path)))
    job = make_job(tmp_path)
    rows = fit(task, settings(), job)
    assert rows == undisturbed[0]  # it trains on, and would give the same
    assert checkpoints(tmp_path) == seen[0]
    assert tokens(tmp_path) <= {"000001", "000002"}
    assert steps_of(tmp_path)[-1] == 14
    assert capsys.readouterr().err.count("another run of this training has taken over") == 1
    assert train(tmp_path) == undisturbed
    assert "resumes at step 14" in capsys.readouterr().err


def test_a_zombie_leaves_nothing_in_a_published_artifact(tmp_path, undisturbed):
    def publish():
        job = make_job(tmp_path)
        assert train(tmp_path) == undisturbed
        for part in ("checkpoints", "owners", "live", "parts"):  # as publishing does
            for key in job.output.store.list(f"{job.output.prefix}/{part}"):
                job.output.store.delete(key)

    fit(TinyTask(beside(10, publish)), settings(), make_job(tmp_path))
    assert checkpoints(tmp_path) == []
    assert owners(tmp_path) == []


def test_every_run_takes_the_next_token(tmp_path):
    for number in (1, 2, 3):
        with pytest.raises(Preempted):
            train(tmp_path, stop=Stop("SIGTERM"))
        assert owners(tmp_path) == [f"{n:06d}.json" for n in range(1, number + 1)]
    (facts,) = (json.loads(path.read_text()) for path in tmp_path.glob("artifacts/*/*/owners/000003.json"))
    assert facts.keys() == {"host", "pid"}


def test_two_that_start_at_once_have_different_tokens(tmp_path, monkeypatch):
    """Both see the same owners; the conditional write decides."""
    first, second = (Checkpoints(make_job(tmp_path).output) for _ in range(2))
    monkeypatch.setattr(Checkpoints, "_newest_owner", lambda self: 0)
    first.take_over()
    second.take_over()
    monkeypatch.undo()
    assert owners(tmp_path) == ["000001.json", "000002.json"]
    assert (first.owned(), second.owned()) == (False, True)


def test_a_store_that_fails_in_the_background_is_told_at_the_next_save(tmp_path, monkeypatch, undisturbed):
    job = make_job(tmp_path)
    store = type(job.output.store)
    upload = store.upload

    def failing(self, key, path):
        if "/checkpoints/" in key and "-00000008-" in key:
            raise TransientError("store: does not answer")
        return upload(self, key, path)

    monkeypatch.setattr(store, "upload", failing)
    with pytest.raises(TransientError, match="does not answer"):
        train(tmp_path)
    assert steps_of(tmp_path) == [4, 5]
    monkeypatch.undo()
    assert train(tmp_path) == undisturbed


def test_on_sigterm_the_state_is_safe_before_it_ends(tmp_path, monkeypatch):
    """Also when the one before is still on its way."""
    slow = Checkpoints._save

    def save(self, *arguments):
        time.sleep(0.2)
        slow(self, *arguments)

    monkeypatch.setattr(Checkpoints, "_save", save)
    stop = Stop()
    with pytest.raises(Preempted):
        train(tmp_path, task=TinyTask(stop_at(stop, 5)), stop=stop)
    assert steps_of(tmp_path)[-1] == 6


def test_the_best_weights_are_published_where_they_are_not_the_last(tmp_path):
    after_15_steps = {}

    class Worsens(TinyTask):
        def heldout_loss(self, batch):
            return super().heldout_loss(batch) + bool(after_15_steps)

        def loss(self, batch, step):
            if self.model.training and step == 15:
                after_15_steps.update({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
            return super().loss(batch, step)

    task = Worsens()
    rows, _ = train(tmp_path, task=task)
    assert min(rows[1:], key=lambda row: row["heldout_loss"])["step"] == 15
    (path,) = tmp_path.glob("artifacts/*/*/best.safetensors")
    torch.testing.assert_close(load_file(path), after_15_steps, rtol=0, atol=0)
