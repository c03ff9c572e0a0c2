"""What the scenarios give: `python benchmarks/simulation.py [draws]` prints the tables of `physion/simulation/README.md`.

The first table has the draws as nature gives them, each scenario's own balance and timing; the second has balanced
clips, which is what users see, and what they cost on one core.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from physion.simulation import SCENARIOS, make_trajectory
from physion.simulation.physics import OBSERVED_FRAMES, draw_trajectory
from physion.simulation.renderer import Renderer

SEED = 2026


def natural_row(scenario: str, draws: int) -> str:
    """A scenario's draws before balancing: share of positives, and when they touch."""
    trajectories = (draw_trajectory(scenario, SEED, index) for index in range(draws))
    valid = [trajectory.first_contact for trajectory in trajectories if trajectory is not None]
    contacts = np.array([contact for contact in valid if contact is not None])
    early = (contacts < OBSERVED_FRAMES).mean()
    low, middle, high = np.percentile(contacts, [5, 50, 95])
    share = len(contacts) / len(valid)
    return f"| {scenario} | {share:.2f} | {early:.2f} | {low:.0f} / {middle:.0f} / {high:.0f} |"


def balanced_row(scenario: str, clips: int) -> str:
    """A scenario's clips: share of positives, of those how many touch too early, seconds to simulate and to render."""
    labels, early, seconds = [], 0, {"simulate": 0.0, 64: 0.0, 128: 0.0}
    rendered = max(2, clips // 8)
    for index in range(clips):
        start = time.process_time()
        trajectory = make_trajectory(scenario, SEED, index)
        seconds["simulate"] += (time.process_time() - start) / clips
        labels.append(trajectory.label)
        early += trajectory.first_contact is not None and trajectory.first_contact < OBSERVED_FRAMES
        for size in (64, 128) if index < rendered else ():
            start = time.process_time()
            Renderer(trajectory, size, 2).frames()
            seconds[size] += (time.process_time() - start) / rendered
    costs = " | ".join(f"{value:.2f}" for value in seconds.values())
    return f"| {scenario} | {np.mean(labels):.2f} | {early / sum(labels):.2f} | {costs} |"


def main() -> None:
    """Print both tables."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print("| | positive | of those before frame 45 | contact frame p5 / 50 / 95 |\n|---|---|---|---|")
    for scenario in SCENARIOS:
        print(natural_row(scenario, draws), flush=True)
    print("\n| | positive | of those before frame 45 | simulate s | render 64 s | render 128 s |\n|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        print(balanced_row(scenario, draws // 5), flush=True)


if __name__ == "__main__":
    main()
