"""Metrics of the readouts on the test videos, each with a bootstrap interval.

A video is called positive (red touches yellow) if its probability is greater than the threshold, as in the published
evaluation. Shapes: N videos, R readout seeds, E epoch checkpoints, B bootstrap resamples.

The bootstrap resamples videos with replacement within their scenario. Physion fixes the number of videos per scenario (150), so
that mix is part of the design, not random; letting it vary would widen the intervals with differences between scenarios that no
new test set would show. A resample is kept as multiplicities [B, N], which turns every metric into a weighted sum and the whole
bootstrap into a few matrix products.

Seeds, if there are several, are resampled too. All seeds see the same videos, so a resample draws both and crosses them (Owen,
The pigeonhole bootstrap, arXiv 0712.1111): drawing different videos for each seed would average out what makes a video hard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES = 2000
PAPER_THRESHOLDS = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65)
EFFECT = 0.05  # difference in accuracy that should be distinguishable from chance
FLIPS = 9999
BINS = 10
CONTACT_BINS = (0, 45, 55, 65, 75, 150)  # frames of first contact: observed, the rollout in thirds, later


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
    """Share of the N videos that are called correctly."""
    scores, truth = _pair(probabilities, labels)
    if not truth.size:
        raise ValueError("accuracy of no videos is undefined")
    return float(np.mean((scores > threshold) == truth))


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> float | None:
    """Mean of the shares called correctly among positives and among negatives; None unless both are present."""
    scores, truth = _pair(probabilities, labels)
    return _number(_weighted_balanced_accuracy(scores > threshold, truth, np.ones((1, truth.size)))[0])


def roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties counting one half; None unless both are present."""
    scores, truth = _pair(probabilities, labels)
    return _number(_weighted_roc_auc(scores, truth, np.ones((1, truth.size)))[0])


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean squared difference between probability and answer; always saying one half gets 0.25. None for no videos."""
    scores, truth = _pair(probabilities, labels)
    return float(np.mean((scores - truth) ** 2)) if truth.size else None


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, float | int]]:
    """The reliability curve: in each of ten equal bins of probability that is not empty, how often the answer was yes.

    probabilities [N] or [R, N], labels [N]. `n` counts each seed's videos.
    """
    scores = np.atleast_2d(probabilities)
    truth = np.broadcast_to(_truth(labels), scores.shape)
    # As scikit-learn's calibration_curve: a bin holds its upper end, the first one 0 as well.
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], scores)
    found: list[dict[str, float | int]] = []
    for number in np.unique(bins):
        here = bins == number
        mean, share = float(scores[here].mean()), float(truth[here].mean())
        found.append({"low": number / BINS, "high": (number + 1) / BINS, "n": int(here.sum()), "said": mean, "positive": share})
    return found


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Pick the decision threshold of a readout on its held-out readout videos, [N] each.

    Returns the candidate with the highest balanced accuracy. Candidates are the midpoints between neighboring scores and 0.5
    itself; ties go to the one nearest to 0.5, then to the lower. So 0.5 stands unless the held-out videos favor another, also
    for constant scores, fewer than two classes, or no videos.
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


def _resample_seeds(count: int, resamples: int, seed: int) -> np.ndarray:
    """The weight of each seed in each resample, float64 [B, R], summing to 1; a single seed is not resampled.

    Deviations from the mean are stretched by sqrt(R / (R - 1)), because R resampled numbers vary too little by that factor.
    """
    if count == 1:
        return np.ones((resamples, 1))
    drawn = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), size=resamples) / count
    return np.asarray(1 / count + math.sqrt(count / (count - 1)) * (drawn - 1 / count))


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
    first_contacts: Sequence[int | None] | None = None,
) -> dict[str, Any]:
    """Everything that metrics.json says about one feature mode.

    Args:
        names: N distinct video names; videos are ordered by them, so the caller's order does not matter.
        scenarios: the scenario of each video.
        labels: bool [N], whether red touches yellow.
        probabilities_by_seed: [R, N] in [0, 1].
        thresholds_by_seed: [R], each chosen on held-out readout videos (`choose_threshold`).
        resamples: bootstrap resamples B.
        seed: seed of the bootstrap.
        first_contacts: the frame of first contact of each video, None if there is none; omit it if unknown.

    Returns a dict ready for JSON. Values are means over readout seeds; intervals resample videos, the same ones for all seeds,
    and seeds; `spread` is the standard deviation over seeds (None for a single one). A metric that needs both classes is None
    if the videos show only one. `scenario_mean` is the mean of the scenarios' own values.

    Raises ValueError if the shapes disagree, a name repeats or a probability is outside [0, 1].
    """
    order, truth = _in_name_order(names, scenarios, labels)
    scores, thresholds = _seeds(probabilities_by_seed, thresholds_by_seed, len(truth))
    scores, strata = scores[:, order], np.asarray(scenarios)[order]
    weights = _resample_weights(strata, resamples, seed)
    by_seed = _resample_seeds(len(scores), resamples, seed)
    overall = _measure(scores, thresholds, truth, weights)
    within = {str(name): _measure(scores[:, m], thresholds, truth[m], weights[:, m]) for name, m in _members(strata)}
    rows = [dict(zip(overall, values, strict=True)) for values in zip(*(one.values for one in overall.values()), strict=True)]
    per_seed = [{"threshold": float(limit)} | row for limit, row in zip(thresholds, rows, strict=True)]
    found = {
        "n": len(truth),
        "positives": int(truth.sum()),
        "chance": majority_rate(truth),
        "readout_seeds": len(scores),
        "overall": {name: one.over_seeds(by_seed) for name, one in overall.items()} | {"per_seed": per_seed},
        "scenario_mean": {name: _mean([each[name] for each in within.values()]).over_seeds(by_seed) for name in overall},
        "per_scenario": {
            str(name): {metric: one.over_seeds(by_seed) for metric, one in within[str(name)].items()}
            | {"n": int(m.sum()), "positives": int(truth[m].sum()), "chance": majority_rate(truth[m])}
            for name, m in _members(strata)
        },
        "reliability": reliability(scores, truth),
        "intervals": {
            "level": 0.95,
            "method": "percentile bootstrap of videos within scenario, crossed with one of readout seeds",
            "resamples": resamples,
            "seed": seed,
            "videos_for_5_points": videos_needed(),
        },
    }
    if first_contacts is not None:
        right = (scores > thresholds[:, None]) == truth
        frames = np.array([-1 if (frame := first_contacts[index]) is None else frame for index in order])
        found["by_first_contact"] = _by_first_contact(frames, right, weights, by_seed)
    return found


@dataclass(frozen=True)
class _Measured:
    """One metric: by seed [R], None where undefined, and in every resample of the videos [R, B], NaN where undefined."""

    values: Sequence[float | None]
    samples: np.ndarray

    def over_seeds(self, by_seed: np.ndarray, least: float = 0) -> dict[str, float | None]:
        """Mean and spread over seeds, and the interval of that mean; by_seed [B, R]. The metric ranges from `least` to 1."""
        known = [value for value in self.values if value is not None]
        samples = np.einsum("rb,br->b", self.samples, by_seed)
        if len(known) < len(self.values) or not np.isfinite(samples).any():
            return {"value": None, "low": None, "high": None, "spread": None}
        low, high = _ends(samples.clip(least, 1))  # stretching may move them out of range
        return {"value": float(np.mean(known)), "low": low, "high": high, "spread": _spread(known)}


def _measure(scores: np.ndarray, thresholds: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, _Measured]:
    """Every metric of scores [R, N] on labels [N], resampled with weights [B, N]."""
    called = scores > thresholds[:, None]
    pairs = list(zip(scores, thresholds, strict=True))
    return {
        "accuracy": _Measured(
            [accuracy(row, truth, limit) for row, limit in pairs], (called == truth) @ weights.T / truth.size
        ),
        "balanced_accuracy": _Measured(
            [balanced_accuracy(row, truth, limit) for row, limit in pairs],
            np.array([_weighted_balanced_accuracy(row, truth, weights) for row in called]),
        ),
        "roc_auc": _Measured(
            [roc_auc(row, truth) for row in scores], np.array([_weighted_roc_auc(row, truth, weights) for row in scores])
        ),
        "brier": _Measured([brier(row, truth) for row in scores], (scores - truth) ** 2 @ weights.T / truth.size),
    }


def _members(strata: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The videos of each scenario, bool [N]."""
    return [(name, strata == name) for name in np.unique(strata)]


def _mean(measured: Sequence[_Measured]) -> _Measured:
    """A metric's mean over scenarios, weighted equally; undefined if it is undefined in one of them."""
    by_seed = zip(*(one.values for one in measured), strict=True)
    values = [None if None in row else float(np.mean([value for value in row if value is not None])) for row in by_seed]
    return _Measured(values, np.mean([one.samples for one in measured], axis=0))


def _by_first_contact(
    frames: np.ndarray, right: np.ndarray, weights: np.ndarray, by_seed: np.ndarray
) -> list[dict[str, float | int | None]]:
    """Accuracy on the positive videos by the frame [N] of first contact (-1: none); right [R, N]."""
    found = []
    for low, high in pairwise(CONTACT_BINS):
        here = (frames >= low) & (frames < high)
        if not here.any():
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            samples = (right[:, here] @ weights[:, here].T) / weights[:, here].sum(axis=1)
        measured = _Measured(right[:, here].mean(axis=1).tolist(), samples)
        found.append({"from": low, "to": high - 1, "n": int(here.sum())} | measured.over_seeds(by_seed))
    return found


class Resampling:
    """The bootstrap of N videos within their scenario, crossed with that of R seeds, for measures that belong to no mode.

    Each result has `value` (mean over seeds), `low`, `high`, `spread` and `n`, the number of videos.
    """

    def __init__(self, strata: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.weights, self.resamples, self.seed = _resample_weights(strata, resamples, seed), resamples, seed

    def mean(self, values: np.ndarray, members: np.ndarray | slice = slice(None)) -> dict[str, float | None]:
        """The mean of values [R, N], 0 to 1, over the members [N]."""
        values, weights = np.asarray(values, np.float64)[:, members], self.weights[:, members]
        return self._told(values.mean(axis=1), values @ weights.T / values.shape[1], values.shape[1])

    def root_mean(self, values: np.ndarray) -> dict[str, float | None]:
        """The root of the mean of values [R, N], 0 to 1."""
        return self._told(np.sqrt(values.mean(axis=1)), np.sqrt(values @ self.weights.T / values.shape[1]), values.shape[1])

    def correlation(self, values: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
        """Pearson's correlation of values [R, N] with [N]; None if one of them is constant."""
        found, samples = (
            np.stack([_weighted_correlation(row, other, weights) for row in values])
            for weights in (np.ones((1, len(other))), self.weights)
        )
        return self._told(found[:, 0], samples, len(other), least=-1)

    def _told(self, values: np.ndarray, samples: np.ndarray, count: int, least: float = 0) -> dict[str, float | None]:
        by_seed = _resample_seeds(len(values), self.resamples, self.seed)
        return _Measured([_number(value) for value in values], samples).over_seeds(by_seed, least) | {"n": count}


def _weighted_correlation(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N], [N], [B, N] -> [B]; NaN if one is constant."""
    count = weights.sum(axis=1)
    means = [weights @ each / count for each in (one, other)]
    variances = [weights @ each**2 / count - mean**2 for each, mean in zip((one, other), means, strict=True)]
    product = variances[0] * variances[1]
    together = weights @ (one * other) / count - means[0] * means[1]
    return np.where(product > 1e-18, together / np.sqrt(np.maximum(product, 1e-18)), np.nan)


def over_videos(
    parts: np.ndarray, wholes: np.ndarray, scenarios: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float | int | None]:
    """The sum of parts [N] divided by that of wholes [N], with its interval over the N videos, and how many have a whole.

    With wholes of 1, the mean over videos. Only the number if no video has a whole. Videos that are alone in their scenario are
    pooled: otherwise each would always be drawn, and the interval would be a point.
    """
    count = int((wholes > 0).sum())
    if not count:
        return {"value": None, "low": None, "high": None, "n": 0}
    _, of, members = np.unique(np.asarray(scenarios), return_inverse=True, return_counts=True)
    weights = _resample_weights(np.where(members[of] > 1, of, -1), resamples, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = _ends((weights @ parts) / (weights @ wholes))
    return {"value": float(parts.sum() / wholes.sum()), "low": low, "high": high, "n": count}


def complement(share: Mapping[str, float | int | None]) -> dict[str, float | int | None]:
    """1 minus the result of `over_videos`, such as R2 from the unexplained share of the variance."""
    turned = {"value": share["value"], "low": share["high"], "high": share["low"]}
    return {end: None if value is None else 1 - value for end, value in turned.items()} | {"n": share["n"]}


def compare_modes(
    names: Sequence[str],
    scenarios: Sequence[str],
    labels: np.ndarray,
    first: tuple[np.ndarray, Sequence[float] | np.ndarray],
    second: tuple[np.ndarray, Sequence[float] | np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Accuracy of the first mode minus the second's, with a paired 95 % interval; also for two runs on the same videos.

    Each mode is (probabilities [R, N], thresholds [R]); the two may differ in R. Every resample draws the same videos for both,
    so what makes a video hard for both cancels: the interval may exclude zero even if two separate intervals overlap. If both
    have as many seeds, these are paired too.
    """
    right, strata = _both_right(names, scenarios, labels, first, second)
    weights = _resample_weights(strata, resamples, seed)
    samples = [one @ weights.T / one.shape[1] for one in right]
    paired = len(right[0]) == len(right[1])
    draws = [_resample_seeds(len(one), resamples, seed + (0 if paired else number)) for number, one in enumerate(right)]
    resampled = [np.einsum("rb,br->b", one, by_seed) for one, by_seed in zip(samples, draws, strict=True)]
    return Interval(float(right[0].mean() - right[1].mean()), *_ends(resampled[0] - resampled[1]))


def paired_p_value(
    names: Sequence[str],
    scenarios: Sequence[str],
    labels: np.ndarray,
    first: tuple[np.ndarray, Sequence[float] | np.ndarray],
    second: tuple[np.ndarray, Sequence[float] | np.ndarray],
    seed: int = 0,
) -> float:
    """How often chance alone would separate two modes, or runs, as much: a two-sided paired sign-flip test over the test
    videos.

    Arguments as for `compare_modes`. With one seed each, this is McNemar's exact test, up to the error of 9,999 random flips.
    It asks about these trained readouts on other videos, not about other trainings.
    """
    right, _ = _both_right(names, scenarios, labels, first, second)
    apart = right[0].mean(axis=0) - right[1].mean(axis=0)
    apart = apart[apart != 0]
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (FLIPS, len(apart)))
    as_far = np.abs(signs @ apart) >= abs(apart.sum()) - 1e-9
    return float((1 + as_far.sum()) / (1 + FLIPS))


def videos_needed(effect: float = EFFECT, chance: float = 0.5, power: float = 0.8, level: float = 0.95) -> int:
    """Test videos needed to distinguish an accuracy of chance + effect from chance in `power` of all cases.

    For a two-sided test of one proportion, normal approximation (Fleiss, Statistical Methods for Rates and Proportions, 2.5).
    """
    normal, there = NormalDist(), chance + effect
    quantiles = normal.inv_cdf((1 + level) / 2), normal.inv_cdf(power)
    spread = quantiles[0] * math.sqrt(chance * (1 - chance)) + quantiles[1] * math.sqrt(there * (1 - there))
    return math.ceil((spread / effect) ** 2)


def _both_right(
    names: Sequence[str],
    scenarios: Sequence[str],
    labels: np.ndarray,
    first: tuple[np.ndarray, Sequence[float] | np.ndarray],
    second: tuple[np.ndarray, Sequence[float] | np.ndarray],
) -> tuple[list[np.ndarray], np.ndarray]:
    """Which videos each of two modes calls correctly, bool [R, N], and the scenarios [N], in the order of names."""
    order, truth = _in_name_order(names, scenarios, labels)
    right = []
    for probabilities_by_seed, thresholds_by_seed in (first, second):
        scores, thresholds = _seeds(probabilities_by_seed, thresholds_by_seed, len(truth))
        right.append((scores[:, order] > thresholds[:, None]) == truth)
    return right, np.asarray(scenarios)[order]


def paper_protocol(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The published evaluation: the best test accuracy over seeds, epoch checkpoints and six thresholds.

    It selects on the test videos, so it is biased upwards: report it beside the headline, never as the headline.

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
    """Accuracy of always giving the commoner of the two answers, which counts as chance here."""
    rate = float(np.mean(labels))
    return max(rate, 1 - rate)


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


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
