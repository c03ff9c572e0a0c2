"""The readout of the Physion benchmark (arXiv 2106.08261), logistic regression on standardized features; and boosted trees.

Shapes: N videos, T frames, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

Kind = Literal["logistic", "trees"]
STRENGTHS = tuple(float(c) for c in np.logspace(-6, 2, 9))
FOLDS = 5


@dataclass
class Answerer:
    """Computes the probability of "they touch" from features.

    cross_validated: accuracy to expect on other videos, from the folds; None if the videos are too few, or too similar, to
    be split.
    """

    kind: Kind
    strength: float | None = None
    cross_validated: float | None = None
    share: float = 0.5
    _steps: list[Any] = field(default_factory=list)

    def __call__(self, features_NF: np.ndarray) -> np.ndarray:
        """Probabilities, float64 [N]."""
        if not self._steps:
            return np.full(len(features_NF), self.share)
        values = features_NF
        for step in self._steps[:-1]:
            values = step.transform(values)
        probabilities: np.ndarray = self._steps[-1].predict_proba(values)[:, 1]
        return probabilities


def fit(kind: Kind, features_NF: np.ndarray, labels_N: np.ndarray, families_N: Sequence[str], seed: int = 0) -> Answerer:
    """Train a predictor. A family's videos are in one fold, since they are near twins (`physion.data.split.family`).

    `logistic` takes the inverse strength C of its L2 penalty from a log grid, by accuracy over five stratified folds, ties
    going to the strongest. `trees` are scikit-learn's histogram gradient boosting, with its defaults.

    The accuracy of the best C on the same folds would promise too much: it is a maximum of nine noisy numbers, and of eight
    such maxima where each scenario has a predictor of its own. So each fold is scored by the C that is best on the others.

    The same arguments give the same predictor. Without features, or if all labels are the same, it predicts the share of
    positives.
    """
    labels = np.asarray(labels_N, bool)
    folds = _folds(labels, families_N, seed)
    found = Answerer(kind, share=float(labels.mean()))
    if not features_NF.shape[1] or labels.all() or not labels.any():
        return found
    with threadpool_limits(1):  # no slower alone, many times faster alongside other work, same bits
        strengths: tuple[float | None, ...] = STRENGTHS if kind == "logistic" else (None,)
        right_KC = np.zeros((len(folds), len(strengths)))
        for fold, (train, held) in enumerate(folds):
            steps = _prepared(kind, features_NF[train])
            inside, outside = _through(steps, features_NF[train]), _through(steps, features_NF[held])
            for number, strength in enumerate(strengths):
                said = _fitted(kind, strength, seed, inside, labels[train]).predict(outside)
                right_KC[fold, number] = (said == labels[held]).sum()
        if folds:
            right_C = right_KC.sum(axis=0)
            found.strength = strengths[int(right_C.argmax())]
            elsewhere_K = (right_C - right_KC).argmax(axis=1)
            expected = right_KC[np.arange(len(folds)), elsewhere_K].sum()
            found.cross_validated = float(expected / sum(len(held) for _, held in folds))
        elif kind == "logistic":
            found.strength = STRENGTHS[len(STRENGTHS) // 2]
        steps = _prepared(kind, features_NF)
        last = _fitted(kind, found.strength, seed, _through(steps, features_NF), labels)
        found._steps = [*steps, last]
        return found


def pooled(features_NTF: np.ndarray) -> np.ndarray:
    """The mean over time, [N, F]."""
    means: np.ndarray = features_NTF.mean(axis=1)
    return means


def concatenated(features_NTF: np.ndarray) -> np.ndarray:
    """All frames side by side, [N, T * F]."""
    return features_NTF.reshape(len(features_NTF), -1)


def _folds(labels: np.ndarray, families: Sequence[str], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.unique(np.asarray(families), return_inverse=True)[1]
    count = min(FOLDS, int(labels.sum()), int((~labels).sum()), int(groups.max()) + 1)
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = list(splitter.split(np.zeros((len(labels), 1)), labels, groups))
    return [(train, held) for train, held in folds if 0 < labels[train].sum() < len(train) and len(held)]


def _prepared(kind: Kind, features: np.ndarray) -> list[Any]:
    """The step that standardizes features and, if there are more of them than videos, one that projects them onto the space
    that the videos span.

    There a penalized regression finds the same solution (its weights are a sum of the videos) in a fraction of the time.
    """
    if kind == "trees":
        return []
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    steps = [StandardScaler().fit(features)]
    if features.shape[1] > len(features):
        steps.append(PCA(len(features) - 1, svd_solver="full").fit(steps[0].transform(features)))
    return steps


def _through(steps: Sequence[Any], features: np.ndarray) -> np.ndarray:
    for step in steps:
        features = step.transform(features)
    return features


def _fitted(kind: Kind, strength: float | None, seed: int, features: np.ndarray, labels: np.ndarray) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if kind == "trees":
        return HistGradientBoostingClassifier(random_state=seed).fit(features, labels)
    with warnings.catch_warnings():
        # With almost no penalty, on perfectly separable videos, it does not converge: the last step is used.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=2000).fit(features, labels)
