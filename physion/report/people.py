"""People's answers to the same stimuli, and how similar a readout's answers are to theirs.

The Physion benchmark's public tables (Bear et al. 2021, arXiv 2106.08261) are one CSV per scenario: a row for each answer
(`stim_ID`, `response` YES or NO, `correct`), or for each stimulus (`stim_ID`, `correct` as a share, `c` answers). Shapes: N
stimuli, R readout seeds.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physion.errors import ConfigError, DataError
from physion.report.metrics import Resampling
from physion.store.checksums import sha256_of
from physion.store.keys import shown

SAID = {"YES": True, "NO": False}
RIGHT = {"TRUE": True, "FALSE": False}


@dataclass
class Answers:
    """All people's answers to one stimulus."""

    given: float = 0
    right: float = 0

    def said_yes(self, label: bool) -> float:
        """The share of people who said that red will touch yellow."""
        return self.right / self.given if label else 1 - self.right / self.given


def stimulus_of(name: str) -> str:
    """A stimulus's name in videos and people's tables: without `-redyellow`, and without `_img` and what follows."""
    return name.replace("-redyellow", "").partition("_img")[0]


def read_people(sources: Sequence[str]) -> tuple[dict[str, Answers], list[dict[str, Any]]]:
    """The answers to each stimulus in CSV files, or folders of them, and for each file its name, SHA-256 and number of answers.

    Rows without an answer are skipped. Raises ConfigError if there is no such file, DataError if one is not such a table.
    """
    found: dict[str, Answers] = {}
    files = []
    for path in _tables(sources):
        given = 0.0
        try:
            with path.open(encoding="utf-8", newline="") as lines:
                for number, row in enumerate(csv.DictReader(lines), 2):
                    stimulus, answers, right = _row(path, number, row)
                    of = found.setdefault(stimulus, Answers())
                    of.given += answers
                    of.right += right
                    given += answers
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"evaluate.people: {path}: cannot be read as CSV ({error})") from error
        files.append({"file": shown(path.name), "sha256": sha256_of(path), "answers": round(given)})
    return {stimulus: answers for stimulus, answers in found.items() if answers.given}, files


def _tables(sources: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for source in map(Path, sources):
        tables = sorted(source.glob("*.csv")) if source.is_dir() else [source]
        if not tables or not all(table.is_file() for table in tables):
            raise ConfigError(f"evaluate.people: {source}: there is no such CSV file, or no folder that holds any")
        found += tables
    return found


def _row(path: Path, number: int, row: Mapping[str, Any]) -> tuple[str, float, float]:
    """Stimulus, number of answers and of correct ones, from a row of either kind of table."""
    stimulus, correct, count = row.get("stim_ID"), str(row.get("correct") or "").strip(), row.get("c")
    try:
        if stimulus and "response" in row and (row["response"] or "").strip().upper() not in SAID:
            return stimulus_of(stimulus), 0, 0  # no answer in time
        answers = 1.0 if count is None else float(count)
        share = float(RIGHT[correct.upper()]) if correct.upper() in RIGHT else float(correct)
        if not stimulus or not 0 <= share <= 1 or not 0 < answers < 1e9:
            raise ValueError("out of range")
    except ValueError as error:
        raise DataError(
            f"evaluate.people: {path}, line {number}: needs stim_ID, correct (True, False, a share) and for shares c (answers)"
        ) from error
    return stimulus_of(stimulus), answers, answers * share


def compare_with_people(
    people: Mapping[str, Answers],
    names: Sequence[str],
    scenarios: Sequence[str],
    labels: np.ndarray,
    said: Mapping[str, tuple[np.ndarray, Sequence[float]]],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy of people and of each mode on the stimuli that both saw, also by scenario, and how similar their answers are.

    `said`: by mode, probabilities [R, N] of the N videos and thresholds [R]. `correlation` is Pearson's between a readout's
    probability and the share of people who said yes, `rmse` their root mean squared difference; both are means over seeds.

    Raises DataError if people saw none of the videos.
    """
    both = [index for index in np.argsort(np.asarray(names), kind="stable") if stimulus_of(names[index]) in people]
    if not both:
        raise DataError(f"evaluate.people: none of its {len(people)} stimuli is a test video of this study, such as {names[0]}")
    answers = [people[stimulus_of(names[index])] for index in both]
    truth, strata = np.asarray(labels)[both].astype(bool), np.asarray(scenarios)[both]
    right = np.array([each.right / each.given for each in answers])
    yes = np.array([each.said_yes(label) for each, label in zip(answers, truth, strict=True)])
    drawn = Resampling(strata, resamples, seed)
    found: dict[str, Any] = {"stimuli": len(both), "videos": len(names), "answers": round(sum(each.given for each in answers))}
    found["accuracy"] = drawn.mean(right[None])
    found["per_scenario"] = {name: drawn.mean(right[None], strata == name) for name in map(str, np.unique(strata))}
    found["modes"] = {}
    for mode, (probabilities, thresholds) in said.items():
        scores = np.asarray(probabilities, np.float64)[:, both]
        called = (scores > np.asarray(thresholds)[:, None]) == truth
        found["modes"][mode] = {
            "accuracy": drawn.mean(called),
            "per_scenario": {name: drawn.mean(called, strata == name) for name in found["per_scenario"]},
            "correlation": drawn.correlation(scores, yes),
            "rmse": drawn.root_mean((scores - yes) ** 2),
        }
    return found
