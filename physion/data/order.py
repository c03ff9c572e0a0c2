"""The order of training clips as a function of (seed, step): no state to save, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class StepBatches:
    """Global batches for steps `start` to `stop` - 1.

    The clips of all epochs form one endless sequence; epoch e is a permutation drawn from (seed, e). Step s takes items s *
    batch to (s + 1) * batch - 1. No clip is dropped, and a batch may span two epochs. Iterating yields a rank's `share` of
    every batch.
    """

    def __init__(self, clips: int, batch: int, seed: int, start: int, stop: int, share: slice = slice(None)) -> None:
        self.clips, self.batch, self.seed = clips, batch, seed
        self.start, self.stop, self.share = start, stop, share
        self._epoch = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return (self.at(step)[self.share] for step in range(self.start, self.stop))

    def at(self, step: int) -> list[int]:
        """Clip numbers of the batch for one step."""
        chosen: list[int] = []
        position, end = step * self.batch, (step + 1) * self.batch
        while position < end:
            epoch, first = divmod(position, self.clips)
            taken = self._permutation(epoch)[first : first + end - position]
            chosen += taken.tolist()
            position += len(taken)
        return chosen

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.clips))
        return self._epoch[1]


def spread(clips: int, count: int) -> list[int]:
    """At most `count` clip numbers, evenly spaced over all of them: a fixed held-out sample."""
    count = min(clips, count)
    return [(2 * k + 1) * clips // (2 * count) for k in range(count)]
