"""People's answers: both kinds of table, and the numbers by their definitions."""

import csv
import json

import numpy as np
import pytest
from scipy.stats import pearsonr

from physion.errors import ConfigError, DataError
from physion.report.metrics import accuracy
from physion.report.people import compare_with_people, read_people, stimulus_of

NAMES = [f"pilot_dominoes_box-redyellow_{number:04d}_img" for number in range(30)] + [
    f"pilot_drop-redyellow_{n:04d}_img" for n in range(30)
]
SCENARIOS = ["Dominoes"] * 30 + ["Drop"] * 30
LABELS = np.array([number % 2 == 0 for number in range(60)])


def table(path, head, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(path)


@pytest.fixture
def answers(tmp_path):
    """30 answers to each stimulus, one by one and counted; and how often each was answered with yes."""
    rng = np.random.default_rng(0)
    yes = rng.random((60, 30)) < np.where(LABELS, 0.7, 0.4)[:, None]
    (tmp_path / "one-by-one").mkdir()
    for scenario in ("Dominoes", "Drop"):
        rows = [
            ["", f"g{person}", NAMES[i].replace("-redyellow", ""), "YES" if said else "NO", said == LABELS[i]]
            for i in range(60)
            if SCENARIOS[i] == scenario
            for person, said in enumerate(yes[i])
        ]
        rows.append(["", "late", NAMES[0].replace("-redyellow", ""), "", ""])
        table(
            tmp_path / "one-by-one" / f"human_responses-{scenario}.csv", ["", "gameID", "stim_ID", "response", "correct"], rows
        )
    rows = [[stimulus_of(name), (said == label).mean(), 30] for name, said, label in zip(NAMES, yes, LABELS, strict=True)]
    counted = table(tmp_path / "counted.csv", ["stim_ID", "correct", "c"], rows)
    return str(tmp_path / "one-by-one"), counted, yes.mean(axis=1)


def test_the_numbers_are_those_of_the_definitions(answers):
    one_by_one, counted, yes = answers
    rng = np.random.default_rng(1)
    scores = rng.random((2, 60))
    said = {"rollout": (scores, [0.4, 0.6])}
    (people, files), (again, _) = read_people([one_by_one]), read_people([counted])
    assert [file["answers"] for file in files] == [900, 900]
    found, too = (compare_with_people(each, NAMES, SCENARIOS, LABELS, said, 500, 0) for each in (people, again))
    right = np.where(LABELS, yes, 1 - yes)
    assert (found["stimuli"], found["videos"], found["answers"]) == (60, 60, 1800)
    for one in (found, too):
        mode = one["modes"]["rollout"]
        assert one["accuracy"]["value"] == pytest.approx(right.mean())
        assert one["per_scenario"]["Drop"]["value"] == pytest.approx(right[30:].mean())
        assert mode["accuracy"]["value"] == pytest.approx(
            np.mean([accuracy(row, LABELS, limit) for row, limit in zip(*said["rollout"], strict=True)])
        )
        assert mode["correlation"]["value"] == pytest.approx(np.mean([pearsonr(row, yes)[0] for row in scores]))
        assert mode["rmse"]["value"] == pytest.approx(np.mean([np.sqrt(np.mean((row - yes) ** 2)) for row in scores]))
        for interval in (one["accuracy"], mode["accuracy"], mode["correlation"], mode["rmse"]):
            assert interval["low"] < interval["value"] < interval["high"]


def test_an_interval_of_the_correlation_covers(answers):
    """Of 60 stimuli, where the true correlation is known; and it may be negative."""
    people, _ = read_people([answers[1]])
    yes = answers[2]
    held = 0
    for trial in range(100):
        rng = np.random.default_rng([7, trial])
        drawn = rng.integers(0, 60, 60)
        names = [f"{NAMES[i]}" for i in drawn]
        mine = {stimulus_of(f"s-redyellow_{n}_img"): people[stimulus_of(name)] for n, name in enumerate(names)}
        scores = (1 - yes)[drawn][None] * 0.5 + 0.25 + rng.uniform(-0.1, 0.1, (1, 60))
        found = compare_with_people(
            mine, [f"s-redyellow_{n}_img" for n in range(60)], ["a"] * 60, LABELS[drawn], {"full": (scores, [0.5])}, 300, trial
        )
        entry = found["modes"]["full"]["correlation"]
        noise = 0.2**2 / 12
        true = -0.5 * yes.std() / np.sqrt(0.25 * yes.var() + noise)
        held += entry["low"] <= true <= entry["high"]
    assert 85 <= held <= 100


def test_only_what_both_saw_counts(answers):
    people, _ = read_people([answers[1]])
    few = {stimulus: each for stimulus, each in people.items() if "drop" in stimulus}
    scores = np.linspace(0, 1, 60)[None]
    found = compare_with_people(few, NAMES, SCENARIOS, LABELS, {"full": (scores, [0.5])}, 100, 0)
    assert (found["stimuli"], list(found["per_scenario"])) == (30, ["Drop"])
    assert found["modes"]["full"]["accuracy"]["value"] == pytest.approx(accuracy(scores[0, 30:], LABELS[30:]))
    constant = compare_with_people(few, NAMES, SCENARIOS, LABELS, {"full": (np.full((1, 60), 0.3), [0.5])}, 100, 0)
    assert constant["modes"]["full"]["correlation"]["value"] is None
    with pytest.raises(DataError, match="none of its 1 stimuli is a test video of this study, such as pilot_dominoes"):
        compare_with_people({"other": people["pilot_drop_0000"]}, NAMES, SCENARIOS, LABELS, {}, 100, 0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["stim_ID", "correct"], ["a", "maybe"]], "line 2: needs stim_ID, correct"),
        ([["stim_ID", "correct"], ["a", "1.5"]], "line 2: needs"),
        ([["stim_ID", "correct", "c"], ["a", "0.5", "0"]], "line 2: needs"),
        ([["stim_ID", "correct", "c"], ["a", "0.5", "nan"]], "line 2: needs"),
        ([["stimulus", "correct"], ["a", "True"]], "line 2: needs"),
        ([["stim_ID", "correct"], ["", "True"]], "line 2: needs"),
    ],
)
def test_tables_that_are_none(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        read_people([table(tmp_path / "a.csv", rows[0], rows[1:])])


def test_files_that_are_none(tmp_path):
    for source in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ConfigError, match="there is no such CSV file, or no folder that holds any"):
            read_people([str(source)])
    (tmp_path / "a.csv").write_bytes(b"stim_ID,correct\n\xff\xfe,True\n")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_people([str(tmp_path)])


def test_in_a_study(physion, preset, store, undocumented, tmp_path):
    """On the page, in metrics.json, and under another fingerprint than without people."""
    (without,) = store.glob("artifacts/evaluate/*")
    rows = list(csv.DictReader((without / "predictions.csv").open()))
    people = table(
        tmp_path / "people.csv", ["stim_ID", "correct", "c"], [[stimulus_of(row["video"]), 0.75, 8] for row in rows[1:]]
    )
    options = ["-p", preset, "-s", store, "--set", f"evaluate.people=[{people}]"]
    ended = physion("stage", "evaluate", *options)
    assert ended.code == 0, ended.err
    (artifact,) = set(store.glob("artifacts/evaluate/*")) - {without}
    metrics = json.loads((artifact / "metrics.json").read_text())
    found = metrics["people"]
    assert (found["stimuli"], found["videos"], found["answers"]) == (len(rows) - 1, len(rows), 8 * (len(rows) - 1))
    assert found["files"][0]["file"] == "people.csv"
    missing, not_there = undocumented(metrics)
    assert (missing, [row for row in not_there if row.startswith("people")]) == ([], [])
    page = (artifact / "report.html").read_text()
    assert "<h3>Comparison with people</h3>" in page
    assert "<h3>Comparison with people</h3>" not in (without / "report.html").read_text()
    for source, code, said in (
        (tmp_path / "none.csv", 2, "there is no such CSV file"),
        (without / "predictions.csv", 3, "needs stim_ID"),
    ):
        ended = physion("stage", "evaluate", *options, "--set", f"evaluate.people=[{source}]")
        assert (ended.code, said in ended.err) == (code, True)
    assert len(list(store.glob("artifacts/evaluate/*/manifest.json"))) == 2
