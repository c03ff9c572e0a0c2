"""Linear probes: where a body is, from one slot, and which slot that is. Trained on some videos, evaluated on others.

Shapes: N videos, T frames, S slots, D slot size, K coordinates, X samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

FOLDS = 5
PENALTY = 1.0  # of ridge regression, on standardized slots


class Probe:
    """What can be learned about a body from slots [X, S, D], the index `best` [X] of its own slot, and its places [X, K]."""

    def __init__(self, slots_XSD: np.ndarray, best_X: np.ndarray, places_XK: np.ndarray) -> None:
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._learned_from = slots_XSD, best_X
        its_own = slots_XSD[np.arange(len(best_X)), best_X]
        self._places: Any = make_pipeline(StandardScaler(), Ridge(PENALTY)).fit(its_own, places_XK)
        self.mean_place: np.ndarray = places_XK.mean(0)

    @cached_property
    def _picker(self) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        slots_XSD, best_X = self._learned_from
        slots, size = slots_XSD.shape[1:]
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(
            slots_XSD.reshape(-1, size), (np.arange(slots) == best_X[:, None]).ravel()
        )

    def pick(self, slots_XSD: np.ndarray) -> np.ndarray:
        """The slot that looks most like this body's, int64 [X]."""
        scores = self._picker.decision_function(slots_XSD.reshape(-1, slots_XSD.shape[-1]))
        picked: np.ndarray = scores.reshape(slots_XSD.shape[:2]).argmax(1)
        return picked

    def places(self, slots_XSD: np.ndarray, which_X: np.ndarray) -> np.ndarray:
        """Where the body is, judged by one slot each, [X, K]."""
        found: np.ndarray = self._places.predict(slots_XSD[np.arange(len(which_X)), which_X])
        return found


def folds(families_N: Sequence[str]) -> np.ndarray:
    """The fold of each video, int64 [N]; a family's videos, near twins, share one."""
    numbers: np.ndarray = np.unique(np.asarray(families_N), return_inverse=True)[1] % FOLDS
    return numbers


def learn_apart(
    slots_NTSD: np.ndarray, best_NT: np.ndarray, places_NTK: np.ndarray, seen_NT: np.ndarray, families_N: Sequence[str]
) -> Iterator[tuple[Probe, np.ndarray]]:
    """Probes, each with the videos, bool [N], on which it may be evaluated: it was trained on those of other families.

    Trained only on frames that show the body; if there is nothing to learn from, there is no probe.
    """
    of = folds(families_N)
    for fold in np.unique(of):
        learn = seen_NT & (of != fold)[:, None]
        if learn.any():
            yield Probe(slots_NTSD[learn], best_NT[learn], places_NTK[learn]), of == fold


def probe(
    slots_NTSD: np.ndarray, best_NT: np.ndarray, places_NTK: np.ndarray, seen_NT: np.ndarray, families_N: Sequence[str]
) -> dict[str, np.ndarray]:
    """Places [N, T, K] of a body by its `best` slot and by the one that is `picked`, never by a probe trained on its family.

    NaN where the body is not visible or there is nothing to learn from.
    """
    found = {way: np.full(places_NTK.shape, np.nan) for way in ("best", "picked")}
    for learned, mine in learn_apart(slots_NTSD, best_NT, places_NTK, seen_NT, families_N):
        ask = seen_NT & mine[:, None]
        if ask.any():
            slots = slots_NTSD[ask]
            found["best"][ask] = learned.places(slots, best_NT[ask])
            found["picked"][ask] = learned.places(slots, learned.pick(slots))
    return found
