"""The verdicts find the link that is broken, in studies put together here."""

import numpy as np
import pytest
import sklearn.linear_model  # noqa: F401 - only the threads of what is loaded can be limited
from threadpoolctl import threadpool_limits

from physion.config.schema import Evaluate
from physion.data.layout import Video
from physion.models.regression import fit
from physion.report.metrics import evaluate_predictions
from physion.report.pictures import likeness
from physion.report.verdicts import verdicts
from physion.stages.dynamics import Rolled, dynamics_numbers
from physion.stages.links import Seen, slot_numbers
from physion.stages.regress import Variant, _answers

VIDEOS, FRAMES, SLOTS, SIZE = 240, 30, 4, 8  # the first half for readouts, the second for the test
OBSERVED, WATCHED = 10, 20
CONFIG = Evaluate(resamples=200)
LOGISTIC = Variant("logistic", "pooled", "all")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other over a few numbers take most of the time on a busy machine."""
    with threadpool_limits(1):
        yield


class Truth:
    """Two bodies that cross the room on lines of their own; they touch where the agent ends up to the right of the patient."""

    def __init__(self):
        start, way = np.random.default_rng(0).normal(size=(2, VIDEOS, 1, 2, 3))
        self.places = start + np.linspace(0, 1.5, FRAMES).reshape(1, -1, 1, 1) * way
        self.touch = self.places[:, -1, 0, 0] > self.places[:, -1, 1, 0]

    def states(self, video):
        return self.places[int(video)]

    def picture(self, video):
        return self.places[int(video)] / 4 + 0.5


def drawn(noise):
    """Eight videos and what is drawn of them."""
    rng = np.random.default_rng(3)
    shown = rng.integers(0, 256, (8, 3, 16, 16, 3), np.uint8)
    return [(one, np.clip(one + noise * rng.normal(size=one.shape), 0, 255).astype(np.uint8)) for one in shown]


def study(shuffled=None, copied=False, random_labels=False, told=True, touch=None, noise=20):
    """metrics.json of a study in which all links hold but those that are broken on purpose. shuffled: the slots' `videos`, that
    is, each video has another's, or their `order` in each frame.
    """
    rng, truth = np.random.default_rng(1), Truth()
    labels = truth.touch if touch is None else touch
    videos = [Video(str(number), "", ("Collide", "Drop")[number % 2], bool(labels[number])) for number in range(VIDEOS)]
    slots = 0.1 * rng.normal(size=(VIDEOS, FRAMES, SLOTS, SIZE)) + 4 * np.eye(SLOTS, SIZE)
    slots[:, :, 1:3, 4:7] += truth.places
    if shuffled == "videos":
        slots = rng.permutation(slots)
    if shuffled == "order":
        order = rng.permuted(np.broadcast_to(np.arange(SLOTS), slots.shape[:3]), axis=2)
        slots = np.take_along_axis(slots, order[..., None], 2)
    rollouts = slots + 0.1 * rng.normal(size=slots.shape)
    if copied:
        rollouts[:] = slots[:, OBSERVED - 1 : OBSERVED]
    rollouts[:, :OBSERVED] = slots[:, :OBSERVED]
    overlap = np.zeros((FRAMES, 3, SLOTS), int)
    overlap[:, 0], overlap[:, 1, 1], overlap[:, 2, 2] = 1000, 2000, 2000
    half = VIDEOS // 2
    seen = [Seen(videos[n], slots[n], overlap if told else None) for n in range(half, VIDEOS)]
    rolled = [Rolled.of(each, rollouts[int(each.video.name)], OBSERVED) for each in seen]
    known = truth if told else None

    names, scenarios = [v.name for v in videos[half:]], [v.scenario for v in videos[half:]]

    def measured(probabilities):
        return evaluate_predictions(names, scenarios, labels[half:], probabilities[None], [0.5], resamples=200)

    def regression(features):
        probabilities, facts = _answers(LOGISTIC, features[:half], videos[:half], features[half:], videos[half:], 0)
        return {"chosen": LOGISTIC.name, "variants": {LOGISTIC.name: facts | measured(probabilities)}}

    of_slots = rollouts[:, :WATCHED:5].mean(1).reshape(VIDEOS, -1)
    learned_from = rng.permutation(labels[:half]) if random_labels else labels[:half]
    readout = fit("logistic", of_slots[:half], learned_from, [v.name for v in videos[:half]])
    states = truth.places.mean(1).reshape(VIDEOS, -1)
    on = {"slots-rollout": of_slots} | ({"states-full": states, "states-rollout": states} if told else {})
    return {
        "modes": {"rollout": measured(readout(of_slots[half:]))},
        "regressions": {name: regression(features) for name, features in on.items()},
        "slots": {"test": slot_numbers(seen, known, CONFIG)},
        "dynamics": dynamics_numbers(rolled, known, OBSERVED, WATCHED, CONFIG),
        "pictures": {"videos": 8, "frames": [0, 1, 2], "reconstructed": likeness(drawn(noise), 200, 0)},
    }


def states(rows):
    return {row["link"]: row["state"] for row in rows}


def said(rows, link):
    return next(row["verdict"] for row in rows if row["link"] == link)


def test_nothing_is_broken():
    rows = verdicts(study())
    assert [row["link"] for row in rows] == ["video", "tokens", "slots", "dynamics", "answer"]
    assert set(states(rows).values()) <= {"above chance", "weakest"}
    for row in rows:
        assert row["number"]["low"] <= row["number"]["value"] <= row["number"]["high"]
        assert min(row["chance"], row["ceiling"]) <= row["number"]["value"] <= 1


def test_shuffled_slots_are_found():
    rows = verdicts(study(shuffled="videos"))
    assert states(rows) == {
        "video": "above chance",
        "tokens": "above chance",
        "slots": "at chance",
        "dynamics": "above chance",
        "answer": "at chance",
    }
    assert "the slots do not see it" in said(rows, "slots")
    assert "what the answer needs is lost before" in said(rows, "answer")


def test_dynamics_that_copy_the_last_frame_are_found():
    rows = verdicts(study(copied=True))
    assert {link for link, state in states(rows).items() if state == "at chance"} == {"dynamics"}
    assert "no nearer to the slots that came than a copy" in said(rows, "dynamics")


def test_a_readout_of_random_labels_is_found():
    rows = verdicts(study(random_labels=True))
    assert {link for link, state in states(rows).items() if state == "at chance"} == {"answer"}
    assert "% from the same slots: the readout is to blame." in said(rows, "answer")


def test_a_readout_better_than_regressions_is_measured_against_true_states():
    metrics = study()
    regression = metrics["regressions"]["slots-rollout"]
    found = regression["variants"][regression["chosen"]]["overall"]["accuracy"]
    said = metrics["modes"]["rollout"]["overall"]["accuracy"]["value"]
    assert found["value"] == verdicts(metrics)[-1]["ceiling"] == said  # they are the same here
    found["value"] = said - 0.01
    states = metrics["regressions"]["states-rollout"]
    assert verdicts(metrics)[-1]["ceiling"] == states["variants"][states["chosen"]]["overall"]["accuracy"]["value"] > said


def test_labels_that_have_nothing_to_do_with_the_videos_are_found():
    rows = verdicts(study(touch=np.random.default_rng(5).random(VIDEOS) < 0.5))
    assert {link for link, state in states(rows).items() if state == "at chance"} == {"video", "answer"}


def test_tokens_that_hold_no_picture_are_found():
    rows = verdicts(study(noise=400))
    assert {link for link, state in states(rows).items() if state == "at chance"} == {"tokens"}


def test_the_weakest_of_those_that_hold_is_named():
    rows = verdicts(study(noise=60))
    assert states(rows) == dict.fromkeys(("video", "slots", "dynamics", "answer"), "above chance") | {"tokens": "weakest"}
    assert "% of the way from chance to its ceiling" in said(rows, "tokens")
    # While a link is at chance, no other is called the weakest.
    assert states(verdicts(study(noise=60, random_labels=True)))["tokens"] == "above chance"


def test_without_truth_slots_can_only_be_seen_to_change_places():
    rows = verdicts(study(told=False))
    assert states(rows)["video"] == "not measured"
    assert "No truth is known" in said(rows, "video")
    assert states(rows)["slots"] == "above chance"
    assert rows[2]["chance"] == 1 / SLOTS
    assert states(verdicts(study(told=False, shuffled="order")))["slots"] == "at chance"


@pytest.mark.parametrize("n", [4, 7])
def test_a_few_videos_decide_nothing(n):
    metrics = study()
    metrics["slots"]["test"]["videos"] = metrics["pictures"]["videos"] = metrics["modes"]["rollout"]["n"] = n
    rows = verdicts(metrics)
    assert [link for link, state in states(rows).items() if state == "too few videos"] == ["video", "tokens", "slots", "answer"]
    assert said(rows, "slots") == f"{n} videos are too few to tell; 8 are the least."


def test_what_was_not_measured_is_said():
    metrics = study() | {"dynamics": {}, "pictures": {}}
    for nothing in (None, {"value": None, "low": None, "high": None, "n": 0}):
        metrics["slots"]["test"]["probes"]["patient"]["best"]["picture"]["r2"] = nothing
        found = states(verdicts(metrics))
        assert found["tokens"] == found["slots"] == found["dynamics"] == "not measured"
