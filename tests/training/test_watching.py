import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import STEPS, TinyTask, train

from physion import progress
from physion.errors import Preempted
from physion.job import Stop

RATES = {"samples_per_s", "data_wait", "memory_gb"}


class Watched(TinyTask):
    def watched(self, step):
        return {"tau": 1 / (1 + step)}

    def picture(self, batch):
        assert not self.model.training
        return np.full((8, 6, 3), len(batch["x"]), np.uint8)


def rows_of(root):
    (path,) = root.glob("artifacts/*/*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_of_every_look(tmp_path):
    history, _ = train(tmp_path, task=Watched())
    rows = rows_of(tmp_path)
    measured = [row for row in rows if "heldout_loss" in row]
    trained = [row for row in rows if "heldout_loss" not in row]
    assert [(row["step"], row["heldout_loss"]) for row in measured] == [(row["step"], row["heldout_loss"]) for row in history]
    assert trained[-1]["step"] == STEPS
    assert all(row.keys() == {"step", "time", "loss", "grad_norm", "lr", "tau"} | RATES for row in trained)
    assert all(0 <= row["data_wait"] <= 1 and row["samples_per_s"] > 0 for row in trained)
    assert trained[-1]["tau"] == 1 / STEPS


def test_what_a_task_measures_is_in_history_and_rows_and_changes_no_weight(tmp_path):
    class Measured(Watched):
        def measures(self):
            assert not self.model.training
            return {"kept": 0.25 * len(self.train)}

    history, weights = train(tmp_path / "measured", task=Measured())
    assert [row["kept"] for row in history] == [9.25] * 6
    assert [row["kept"] for row in rows_of(tmp_path / "measured") if "heldout_loss" in row] == [9.25] * 6
    without, same = train(tmp_path / "plain", task=Watched())
    assert weights == same
    assert [{key: value for key, value in row.items() if key != "kept"} for row in history] == without


def test_events_and_pictures_for_tensorboard(tmp_path):
    train(tmp_path, task=Watched())
    (path,) = tmp_path.glob("artifacts/*/*/events.tfevents")
    events = EventAccumulator(str(path), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "grad_norm", "lr", "tau", "heldout_loss"} | RATES
    losses = [(event.step, event.value) for event in events.Scalars("heldout_loss")]
    assert losses == [(row["step"], pytest.approx(row["heldout_loss"])) for row in rows_of(tmp_path) if "heldout_loss" in row]
    assert [event.step for event in events.Images("heldout")] == [0, 5, 10, 15, 20, STEPS]
    assert (events.Images("heldout")[0].height, events.Images("heldout")[0].width) == (8, 6)
    assert next(tmp_path.glob("artifacts/*/*/picture.png")).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("end", [RuntimeError, Preempted])
def test_an_interrupted_run_goes_on_without_gaps_or_doubles(tmp_path, end):
    stop = Stop()

    def at_step(now):
        if now == 18:
            stop.signal = "SIGTERM"
            if end is RuntimeError:
                raise RuntimeError

    with pytest.raises(end):
        train(tmp_path, task=Watched(at_step), stop=stop)
    assert list(tmp_path.glob("artifacts/*/*/live/*.tfevents"))  # can be watched meanwhile
    train(tmp_path, task=Watched())
    train(tmp_path / "undisturbed", task=Watched())
    steps, undisturbed = (
        [(row["step"], "heldout_loss" in row) for row in rows_of(root)] for root in (tmp_path, tmp_path / "undisturbed")
    )
    assert sorted(set(steps) - {(19, False)}) == sorted(undisturbed)
    assert len(set(steps)) == len(steps)


def test_argo_reads_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(progress.Output, "argo_file", tmp_path / "progress")
    seen = set()
    train(tmp_path, task=TinyTask(lambda step: seen.add((tmp_path / "progress").read_text())))
    assert f"0/{STEPS}" in seen
    assert (tmp_path / "progress").read_text() == f"{STEPS}/{STEPS}"
    assert not list(tmp_path.glob("progress.part"))
