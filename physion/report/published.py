"""Published numbers on the official Physion v1 test videos, in percent: for reference, never our results."""

from __future__ import annotations

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


SOURCE = "SlotFormer, arXiv 2210.05861, Table 4"

# Accuracy by name and feature mode.
PUBLISHED = {
    "Human": {"observed": HUMAN_ACCURACY},
    "SlotFormer": {"observed": 65.2, "rollout": 67.1},
    "RPIN": {"observed": 62.8, "rollout": 63.8},
    "pDEIT-lstm": {"observed": 59.2, "rollout": 60.0},
}
