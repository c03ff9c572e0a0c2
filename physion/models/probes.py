"""Linear probes: where a body is, from one slot, and which slot that is. Learnt on some videos, asked about others.

Shapes: N videos, T frames, S slots, D slot size, K coordinates, X samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FOLDS = 5
PENALTY = 1.0  # of ridge regression, on standardised slots


class Probe:
    """What one learns of a body from slots [X, S, D], of which number `best` [X] is its own, and its places [X, K]."""

    def __init__(self, slots_XSD: np.ndarray, best_X: np.ndarray, places_XK: np.ndarray) -> None:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        slots, size = slots_XSD.shape[1:]
        its_own = slots_XSD[np.arange(len(best_X)), best_X]
        self._places: Any = make_pipeline(StandardScaler(), Ridge(PENALTY)).fit(its_own, places_XK)
        self._picker: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(
            slots_XSD.reshape(-1, size), (np.arange(slots) == best_X[:, None]).ravel()
        )

    def pick(self, slots_XSD: np.ndarray) -> np.ndarray:
        """The slot that most looks like this body's, int64 [X]."""
        scores = self._picker.decision_function(slots_XSD.reshape(-1, slots_XSD.shape[-1]))
        picked: np.ndarray = scores.reshape(slots_XSD.shape[:2]).argmax(1)
        return picked

    def places(self, slots_XSD: np.ndarray, which_X: np.ndarray) -> np.ndarray:
        """Where the body is by one slot each, [X, K]."""
        found: np.ndarray = self._places.predict(slots_XSD[np.arange(len(which_X)), which_X])
        return found


def folds(families_N: Sequence[str]) -> np.ndarray:
    """A fold of each video, int64 [N]; a family's videos, near twins, are in one."""
    numbers: np.ndarray = np.unique(np.asarray(families_N), return_inverse=True)[1] % FOLDS
    return numbers


def probe(
    slots_NTSD: np.ndarray, best_NT: np.ndarray, places_NTK: np.ndarray, seen_NT: np.ndarray, families_N: Sequence[str]
) -> dict[str, np.ndarray]:
    """Places [N, T, K] of a body by its `best` slot and by the one that is `picked`, never by a probe of its like.

    Only where the body is seen; elsewhere, and where there is nothing to learn from, NaN.
    """
    of = folds(families_N)
    found = {way: np.full(places_NTK.shape, np.nan) for way in ("best", "picked")}
    for fold in np.unique(of):
        learn, ask = seen_NT & (of != fold)[:, None], seen_NT & (of == fold)[:, None]
        if not learn.any() or not ask.any():
            continue
        learnt, slots = Probe(slots_NTSD[learn], best_NT[learn], places_NTK[learn]), slots_NTSD[ask]
        found["best"][ask] = learnt.places(slots, best_NT[ask])
        found["picked"][ask] = learnt.places(slots, learnt.pick(slots))
    return found
