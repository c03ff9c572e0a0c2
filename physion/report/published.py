"""Published numbers on the official Physion v1 test videos, in percent: references, never our results."""

from __future__ import annotations

from dataclasses import dataclass

HUMAN_ACCURACY = 74.7

HUMAN_BY_SCENARIO = {
    "collide": 81.0,
    "contain": 76.7,
    "dominoes": 69.4,
    "drape": 67.8,
    "drop": 74.6,
    "link": 64.5,
    "roll": 87.1,
    "support": 76.5,
}


@dataclass(frozen=True)
class PublishedResult:
    """One row of Table 4 of the SlotFormer paper; `rollout` is None where there is nothing to roll out."""

    name: str
    observed: float
    rollout: float | None


SOURCE = "SlotFormer, arXiv 2210.05861, Table 4"

PUBLISHED = (
    PublishedResult("Human", HUMAN_ACCURACY, None),
    PublishedResult("SlotFormer", 65.2, 67.1),
    PublishedResult("RPIN", 62.8, 63.8),
    PublishedResult("pDEIT-lstm", 59.2, 60.0),
)
