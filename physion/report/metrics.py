"""Metrics of the readouts on the test videos, each with a bootstrap interval.

A video is called positive (red touches yellow) when its probability is greater than the threshold, as in the published
evaluation. Shapes: N videos, R readout seeds, E epoch checkpoints, B bootstrap resamples.

The bootstrap resamples videos with replacement within their scenario. Physion fixes how many videos each scenario
has (150), so that mix is part of the design and not a matter of luck; letting it vary would widen the intervals with
differences between scenarios that no new test set would show. A resample is kept as multiplicities [B, N], which
turns every metric into a weighted sum and the whole bootstrap into a few matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

RESAMPLES = 2000
PAPER_THRESHOLDS = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65)


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval, as fractions."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """The three numbers by name."""
        return asdict(self)

    def percent(self) -> str:
        """For people: `58.3 % [51.0, 65.1]`."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


# ---------------------------------------------------------------------------------------------- one readout
def accuracy(probabilities: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> float:
    """Share of the N videos called right."""
    scores, truth = _pair(probabilities, labels)
    if not truth.size:
        raise ValueError("accuracy of no videos is undefined")
    return float(np.mean((scores > threshold) == truth))


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> float | None:
    """Mean of the shares called right among positives and among negatives; None unless both are present."""
    scores, truth = _pair(probabilities, labels)
    return _number(_weighted_balanced_accuracy(scores > threshold, truth, np.ones((1, truth.size)))[0])


def roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Chance that a positive scores above a negative, ties counting one half; None unless both are present."""
    scores, truth = _pair(probabilities, labels)
    return _number(_weighted_roc_auc(scores, truth, np.ones((1, truth.size)))[0])


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Pick the decision threshold of a readout on its held-out readout videos, [N] each.

    Returns the candidate with the highest balanced accuracy. Candidates are the midpoints between neighbouring scores
    and 0.5 itself; equally good ones resolve to the nearest to 0.5, then to the lower. So 0.5 stands unless the
    held-out videos speak for another, which covers constant scores, and fewer than two classes (or no videos).
    """
    scores, truth = _pair(probabilities, labels)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return 0.5
    levels = np.unique(scores)
    candidates = np.unique(np.append((levels[:-1] + levels[1:]) / 2, 0.5))
    true_positives = positives - np.searchsorted(np.sort(scores[truth]), candidates, side="right")
    true_negatives = np.searchsorted(np.sort(scores[~truth]), candidates, side="right")
    merit = true_positives * negatives + true_negatives * positives  # balanced accuracy in integers: ties are exact
    best = candidates[merit == merit.max()]
    return float(best[np.argmin(np.round(np.abs(best - 0.5), 12))])


# --------------------------------------------------------------------------------------------------- bootstrap
def bootstrap_interval(values: np.ndarray, strata: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of per-video `values` [N] with its 95 % percentile interval, resampling within `strata` [N]."""
    if not len(values) or len(values) != len(strata):
        raise ValueError(
            f"a bootstrap needs one stratum a value and at least one value, got {len(values)} values and {len(strata)} strata"
        )
    weights = _resample_weights(np.asarray(strata), resamples, seed)
    return Interval(float(np.mean(values)), *_ends(weights @ values / len(values)))


def _resample_weights(strata: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each video is drawn in each resample, float64 [B, N]; every stratum keeps its size."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return weights


def _ends(samples: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the resamples [B] in which the metric is defined."""
    low, high = np.percentile(samples[np.isfinite(samples)], [2.5, 97.5])
    return float(low), float(high)


def _weighted_balanced_accuracy(predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N], [N], [B, N] -> [B]; NaN where a class has no weight."""
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = weights @ (predicted & labels) / (weights @ labels)
        specificity = weights @ (~predicted & ~labels) / (weights @ ~labels)
    return np.asarray((sensitivity + specificity) / 2)


def _weighted_roc_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N], [N], [B, N] -> [B]; NaN where a class has no weight."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where each group of tied scores begins
    if not len(starts):
        return np.full(len(weights), np.nan)
    positive = np.add.reduceat(weights[:, order] * labels[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * ~labels[order], starts, axis=1)
    wins = (positive * (np.cumsum(negative, axis=1) - negative / 2)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / (positive.sum(axis=1) * negative.sum(axis=1)))


# ------------------------------------------------------------------------------------------------ feature modes
def evaluate_predictions(
    names: Sequence[str],
    scenarios: Sequence[str],
    labels: np.ndarray,
    probabilities_by_seed: np.ndarray,
    thresholds_by_seed: Sequence[float] | np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything metrics.json says about one feature mode.

    Args:
        names: N distinct video names; they fix the order of the videos, so the caller's order changes nothing.
        scenarios: the scenario of each video.
        labels: bool [N], whether red touches yellow.
        probabilities_by_seed: [R, N] in [0, 1].
        thresholds_by_seed: [R], each chosen on held-out readout videos (`choose_threshold`).
        resamples: bootstrap resamples B.
        seed: seed of the bootstrap.

    Returns a dict ready for JSON. Values are means over readout seeds; intervals resample videos, the same ones for
    all seeds; `spread` is the standard deviation over seeds (None for a single one). A metric that needs both classes
    is None where the videos show only one.

    Raises ValueError when the shapes disagree, a name repeats or a probability is outside [0, 1].
    """
    order, truth = _in_name_order(names, scenarios, labels)
    scores, thresholds = _seeds(probabilities_by_seed, thresholds_by_seed, len(truth))
    scores, strata = scores[:, order], np.asarray(scenarios)[order]
    weights = _resample_weights(strata, resamples, seed)
    predicted = scores > thresholds[:, None]
    right = (predicted == truth).mean(axis=0)  # share of the seeds that call each video right, [N]
    per_seed = [_of_one_seed(row, truth, float(threshold)) for row, threshold in zip(scores, thresholds, strict=True)]
    resampled = {
        "accuracy": weights @ right / len(right),
        "balanced_accuracy": np.mean([_weighted_balanced_accuracy(row, truth, weights) for row in predicted], axis=0),
        "roc_auc": np.mean([_weighted_roc_auc(row, truth, weights) for row in scores], axis=0),
    }
    overall = {metric: _over_seeds([row[metric] for row in per_seed], samples) for metric, samples in resampled.items()}
    return {
        "n": len(truth),
        "positives": int(truth.sum()),
        "chance": majority_rate(truth),
        "readout_seeds": len(scores),
        "overall": {**overall, "per_seed": per_seed},
        "per_scenario": _by_scenario(strata, truth, right, weights),
        "intervals": {
            "level": 0.95,
            "method": "percentile bootstrap of videos within scenario, jointly over readout seeds",
            "resamples": resamples,
            "seed": seed,
        },
    }


def _of_one_seed(scores: np.ndarray, truth: np.ndarray, threshold: float) -> dict[str, float | None]:
    return {
        "threshold": threshold,
        "accuracy": accuracy(scores, truth, threshold),
        "balanced_accuracy": balanced_accuracy(scores, truth, threshold),
        "roc_auc": roc_auc(scores, truth),
    }


def _by_scenario(strata: np.ndarray, truth: np.ndarray, right: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Accuracy within each scenario; arguments as in `evaluate_predictions`."""
    found = {}
    for scenario in np.unique(strata):
        members = strata == scenario
        samples = weights[:, members] @ right[members] / members.sum()
        found[str(scenario)] = {
            "accuracy": Interval(float(right[members].mean()), *_ends(samples)).as_json(),
            "n": int(members.sum()),
            "positives": int(truth[members].sum()),
            "chance": majority_rate(truth[members]),
        }
    return found


def compare_modes(
    names: Sequence[str],
    scenarios: Sequence[str],
    labels: np.ndarray,
    first: tuple[np.ndarray, Sequence[float] | np.ndarray],
    second: tuple[np.ndarray, Sequence[float] | np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Accuracy of the first mode minus the second's, with a paired 95 % interval.

    Each mode is (probabilities [R, N], thresholds [R]); the two may differ in R. Every resample draws the same videos
    for both, so what makes a video hard for both cancels: the interval may leave out zero where two separate
    intervals overlap.
    """
    order, truth = _in_name_order(names, scenarios, labels)
    right = []
    for probabilities_by_seed, thresholds_by_seed in (first, second):
        scores, thresholds = _seeds(probabilities_by_seed, thresholds_by_seed, len(truth))
        right.append(((scores[:, order] > thresholds[:, None]) == truth).mean(axis=0))
    strata = [str(scenarios[index]) for index in order]
    return bootstrap_interval(right[0] - right[1], strata, resamples, seed)


def paper_protocol(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The published evaluation: the best test accuracy over seeds, epoch checkpoints and six thresholds.

    It selects on the test videos, so it is biased upwards: report it beside the headline, never as it.

    Args:
        probabilities: [R, E, N] in [0, 1].
        labels: bool [N].

    Returns the best accuracy and which one it was (indices from 0; ties go to the first seed, the earliest epoch, the
    lowest threshold), the best of each seed, and how many candidates were tried.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), _truth(labels)
    if scores.ndim != 3 or not scores.size or scores.shape[2:] != truth.shape:
        raise ValueError(f"probabilities must be [seeds, epochs, videos] for {truth.size} labels, got {scores.shape}")
    _check_probabilities(scores)
    thresholds = np.asarray(PAPER_THRESHOLDS)
    accuracies = ((scores[:, :, None, :] > thresholds[:, None]) == truth).mean(axis=-1)  # [R, E, thresholds]
    seed, epoch, which = np.unravel_index(int(np.argmax(accuracies)), accuracies.shape)
    return {
        "accuracy": float(accuracies[seed, epoch, which]),
        "seed_index": int(seed),
        "epoch_index": int(epoch),
        "threshold": float(thresholds[which]),
        "best_per_seed": accuracies.max(axis=(1, 2)).tolist(),
        "candidates": int(accuracies.size),
        "n": int(truth.size),
        "selected_on_test": True,
    }


def headline(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence from the metrics of each mode: `Rollout 58.3 % [51.0, 65.1], observed ...; chance 50.0 %.`"""
    found = []
    for mode, values in metrics.items():
        overall = values["overall"]["accuracy"]
        found.append(f"{mode} {Interval(overall['value'], overall['low'], overall['high']).percent()}")
    if not found:
        raise ValueError("a headline needs the metrics of at least one feature mode")
    chance, n = (next(iter(metrics.values()))[key] for key in ("chance", "n"))
    sentence = f"{', '.join(found)}; always guessing the commoner answer {100 * chance:.1f} % ({n:,} test videos)."
    return sentence[0].upper() + sentence[1:]


def majority_rate(labels: np.ndarray) -> float:
    """Accuracy of always giving the commoner of the two answers: what counts as chance here."""
    rate = float(np.mean(labels))
    return max(rate, 1 - rate)


def _over_seeds(values: Sequence[float | None], samples: np.ndarray) -> dict[str, float | None]:
    """Mean and spread of one metric over seeds, and its interval from the resamples [B] of that mean."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not np.isfinite(samples).any():
        return {"value": None, "low": None, "high": None, "spread": None}
    low, high = _ends(samples)
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"value": float(np.mean(known)), "low": low, "high": high, "spread": spread}


# -------------------------------------------------------------------------------------------- checks of arguments
def _pair(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores float64 [N] and labels bool [N], checked."""
    scores, truth = np.asarray(probabilities, dtype=np.float64), _truth(labels)
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise ValueError(
            f"probabilities and labels must be two vectors of one length, got shapes {scores.shape} and {truth.shape}"
        )
    _check_probabilities(scores)
    return scores, truth


def _truth(labels: np.ndarray) -> np.ndarray:
    """Labels as bool; the text "False" would otherwise count as true."""
    values = np.asarray(labels)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"labels must be booleans, got {values.dtype} such as {values.flat[0]!r}")
    return values.astype(bool)


def _check_probabilities(scores: np.ndarray) -> None:
    outside = scores[~((scores >= 0) & (scores <= 1))]  # written so that NaN is outside
    if outside.size:
        raise ValueError(f"probabilities must be in [0, 1], got {outside[0]} ({outside.size} of {scores.size} outside)")


def _in_name_order(names: Sequence[str], scenarios: Sequence[str], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices that sort the videos by name, and their labels bool [N] in that order."""
    truth = _truth(labels)
    if not len(names) or not (len(names) == len(scenarios) == truth.size):
        raise ValueError(
            f"metrics need one name, scenario and label a video and at least one video, got {len(names)} "
            f"names, {len(scenarios)} scenarios, {truth.size} labels"
        )
    order = np.argsort(np.asarray(names), kind="stable")
    for before, after in pairwise(order):
        if names[before] == names[after]:
            raise ValueError(f"video {names[after]} is listed twice")
    return order, truth[order]


def _seeds(probabilities: np.ndarray, thresholds: Sequence[float] | np.ndarray, videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores float64 [R, N] and thresholds float64 [R], checked."""
    scores, limits = np.asarray(probabilities, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or not limits.size or scores.shape != (limits.size, videos):
        raise ValueError(
            f"probabilities must be [seeds, videos] = [{limits.size}, {videos}] with a threshold a seed, got {scores.shape}"
        )
    _check_probabilities(scores)
    return scores, limits


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
