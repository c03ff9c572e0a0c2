import json
import math
from pathlib import Path

import pytest
import torch
from tiny_training import STEPS, Points, TinyTask, steps_of, train

from physion.config.load import load_config
from physion.config.schema import Optim
from physion.errors import DataError
from physion.training.engine import NonFiniteLoss, learning_rate

SCHEDULES = Path(__file__).parents[1] / "models" / "goldens" / "schedules.json"


def published(model):
    """The published learning rates of a run of 1,000 steps, one list a parameter group."""
    rates = json.loads(SCHEDULES.read_text())[model]["all_lrs"][:1000]
    return list(zip(*rates, strict=True))


def paper(section):
    config = getattr(load_config("paper"), section)
    return config, config.optim.model_copy(update={"steps": 1000})


@pytest.mark.parametrize("section", ["train_dvae", "train_slotformer"])
def test_learning_rates_are_the_published_ones(section):
    config, optim = paper(section)
    (rates,) = published(section.removeprefix("train_"))
    assert [learning_rate(step, config.optim.lr, optim) for step in range(1000)] == pytest.approx(rates, rel=1e-9, abs=0)


def test_steves_two_learning_rates_are_the_published_ones():
    config, optim = paper("train_steve")
    for peak, rates in zip((optim.lr, config.decoder_lr), published("steve"), strict=True):
        assert [learning_rate(step, peak, optim) for step in range(1000)] == pytest.approx(rates, rel=1e-9, abs=1e-20)


def test_the_readouts_learning_rates_are_the_published_ones_but_for_step_zero():
    _, optim = paper("train_readout")
    (rates,) = published("readout")
    assert [learning_rate(step, optim.lr, optim) for step in range(1, 1000)] == pytest.approx(rates[1:], rel=1e-9, abs=0)
    # The published schedule spends one step at the lowest rate before it begins; that quirk is left out.
    assert (rates[0], learning_rate(0, optim.lr, optim)) == (1e-5, 1e-3)


def test_a_single_step_has_a_learning_rate():
    assert learning_rate(0, 1e-3, Optim(lr=1e-3, batch_size=1, steps=1)) == pytest.approx(1e-5)


def test_history_holds_means_between_measures(tmp_path):
    rows, _ = train(tmp_path)
    assert [row["step"] for row in rows] == [0, 5, 10, 15, 20, STEPS]
    assert set(rows[0]) == {"step", "lr", "heldout_loss"}
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(0 < row["loss"] < 2 and row["grad_norm"] > 0 for row in rows[1:])


def test_a_task_without_groups_trains_everything(tmp_path):
    class Plain(TinyTask):
        groups = TinyTask.__mro__[1].groups

    task = Plain()
    before = [p.clone() for p in task.model.parameters()]
    train(tmp_path, task=task)
    assert all(not torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))


def test_a_loss_that_is_no_number_stops_with_step_and_checkpoint(tmp_path):
    class Breaks(TinyTask):
        def loss(self, batch, step):
            loss = super().loss(batch, step)
            return loss * math.nan if self.model.training and step == 9 else loss

    with pytest.raises(NonFiniteLoss) as caught:
        train(tmp_path, task=Breaks())
    text = str(caught.value)
    assert "the loss is nan at step 9; last good checkpoint: step 8 in file://" in text
    assert "train-dvae's optim.lr" in text
    assert caught.value.exit_code == 3
    assert steps_of(tmp_path) == [5, 8]  # after 5 steps the held-out loss was best
    assert not list(tmp_path.glob("artifacts/*/*/weights.safetensors"))


def test_the_step_is_right_when_losses_are_looked_at_late(tmp_path):
    class Breaks(TinyTask):
        def loss(self, batch, step):
            return super().loss(batch, step) * (math.inf if self.model.training and step >= 7 else 1)

    with pytest.raises(NonFiniteLoss, match=r"the loss is inf at step 7; last good checkpoint: none yet"):
        train(tmp_path, task=Breaks(), checkpoint_every=1000, heldout_every=1000)


def test_a_learning_rate_far_too_high_is_told(tmp_path):
    with pytest.raises(NonFiniteLoss, match="last good checkpoint"):
        train(tmp_path, optim={"lr": 1e38, "clip": None})


def test_weights_that_broke_in_the_last_step_are_not_published(tmp_path):
    class Breaks(TinyTask):
        def loss(self, batch, step):
            loss = super().loss(batch, step)
            if self.model.training and step == STEPS - 1:
                with torch.no_grad():
                    self.model.head.bias.fill_(math.nan)
            return loss

    with pytest.raises(NonFiniteLoss, match=rf"the held-out loss is nan at step {STEPS}; last good checkpoint: step 20"):
        train(tmp_path, task=Breaks())


@pytest.mark.parametrize(
    ("part", "said"), [("heldout", "no video is held out; raise frames.heldout"), ("train", "no video is left to train on")]
)
def test_a_part_without_videos(tmp_path, part, said):
    task = TinyTask()
    setattr(task, part, Points(0, 0))
    with pytest.raises(DataError, match=said):
        train(tmp_path, task=task)
