"""Seeded random draws as scene descriptions need them: plain floats, inclusive ranges, one of several."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Option = TypeVar("Option")


class Draws:
    """A stream of random draws; the same key gives the same stream."""

    def __init__(self, *key: int) -> None:
        self._generator = np.random.default_rng(key)

    def uniform(self, low: float, high: float) -> float:
        """A float between `low` and `high`."""
        return float(self._generator.uniform(low, high))

    def integer(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return int(self._generator.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self._generator.random() < probability)

    def choose(self, *options: Option) -> Option:
        """One of the options, all equally likely."""
        return options[int(self._generator.integers(len(options)))]

    def sign(self) -> float:
        """-1.0 or 1.0."""
        return self.choose(-1.0, 1.0)

    def normal(self, deviation: float) -> float:
        """A normally distributed float around 0."""
        return float(self._generator.normal(0.0, deviation))

    def shuffled(self, options: tuple[Option, ...]) -> list[Option]:
        """All the options in random order."""
        return [options[i] for i in self._generator.permutation(len(options))]
