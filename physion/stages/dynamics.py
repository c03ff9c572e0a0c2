"""How far predicted slots are from the true ones, measured for `evaluate` on whole videos.

The references: the slots' variance (always predicting the mean slot of an index errs by 1), and copying the last observed
frame.

Shapes: N videos, T frames, P predicted frames, S slots, D slot size, K coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from physion.config.schema import Evaluate
from physion.data.shards import Shards
from physion.data.truth import TruthShards
from physion.job import Job
from physion.models.probes import learn_apart
from physion.progress import progress
from physion.report.binding import best_slots, steps
from physion.report.metrics import over_videos
from physion.stages.links import BODIES, PROBED, SPACES, Asked, Seen


@dataclass(frozen=True)
class Rolled:
    """A video as seen by the model, and its rollout [T, S, D], whose first `observed` frames are true.

    `order` and `true_order` [1 + P, S] track the slots of the last observed frame through the rollout, and through the truth.
    """

    seen: Seen
    rollout: np.ndarray
    order: np.ndarray
    true_order: np.ndarray

    @staticmethod
    def of(seen: Seen, rollout: np.ndarray, observed: int) -> Rolled:
        """Track the slots."""
        return Rolled(seen, rollout, *(tracked(slots[observed - 1 :]) for slots in (rollout, seen.slots)))

    def errors(self) -> dict[str, np.ndarray]:
        """Squared distances to the true slots, mean over slots, float64 [P]: as given, and with the slots' order restored."""
        predicted = len(self.order) - 1
        last, true = self.seen.slots[-predicted - 1], self.seen.slots[-predicted:]
        rollout, ordered = self.rollout[-predicted:], _in(self.true_order[1:], true)
        pairs = {
            "rollout": (rollout, true),
            "copied": (last, true),
            "rollout_ordered": (_in(self.order[1:], rollout), ordered),
            "copied_ordered": (last, ordered),
        }
        return {way: ((said.astype(np.float64) - came) ** 2).sum(-1).mean(-1) for way, (said, came) in pairs.items()}


def tracked(slots_TSD: np.ndarray) -> np.ndarray:
    """The index of each of the first frame's slots in every frame, int64 [T, S], matched one to one with the nearest."""
    from scipy.optimize import linear_sum_assignment

    order = [np.arange(slots_TSD.shape[1])]
    for costs in steps(slots_TSD):
        order.append(linear_sum_assignment(costs[order[-1]])[1])
    return np.stack(order)


def _in(order_TS: np.ndarray, slots_TSD: np.ndarray) -> np.ndarray:
    return np.take_along_axis(slots_TSD, order_TS[..., None], 1)


def measure_dynamics(job: Job, config: Evaluate, seen: Sequence[Seen], truth: TruthShards | None) -> dict[str, Any]:
    """`dynamics_numbers` of the rollouts of these test videos."""
    rollouts = Shards(job.inputs["rollouts"])
    observed = int(job.inputs["rollouts"].number("identity", "config", "observed"))
    of_rollouts = (readout for readout in job.inputs.values() if readout.manifest.params.get("features") == "rollout")
    watched = next((int(readout.number("metrics", "frames")) for readout in of_rollouts), len(seen[0].slots))
    rolled = []
    with progress(f"{job.instance}: rollouts", len(seen), "videos") as bar:
        for each in seen:
            job.stop.check()
            rolled.append(Rolled.of(each, rollouts.slots(each.video.name), observed))
            bar.advance()
    return dynamics_numbers(rolled, truth, observed, watched, config)


def dynamics_numbers(
    rolled: Sequence[Rolled], truth: TruthShards | None, observed: int, watched: int, config: Evaluate
) -> dict[str, Any]:
    """Errors after the `observed` frames: over time, and over the predicted frames that readouts see, up to frame `watched`.

    `against_copying` is the rollout's error divided by that of copying, both with the slots' order restored. With ground truth,
    also how far from a body's true place a probe puts it (`_distances`). Empty if nothing was predicted.
    """
    frames = len(rolled[0].rollout)
    if observed >= frames:
        return {}
    scenarios = [each.seen.video.scenario for each in rolled]
    curves = _Curves(np.arange(observed, frames), watched, scenarios, config)
    mean_SD = np.mean([each.seen.slots[observed:].mean(0, np.float64) for each in rolled], 0)
    variance = np.array([((each.seen.slots[observed:] - mean_SD) ** 2).sum(-1).mean() for each in rolled])
    errors = [each.errors() for each in rolled]
    wrong = {way: np.stack([one[way] for one in errors]) for way in errors[0]}
    by_variance = np.repeat(variance[:, None], frames - observed, 1)
    ours, copied = (wrong[f"{way}_ordered"][:, : watched - observed].sum(1) for way in ("rollout", "copied"))
    found: dict[str, Any] = {
        "videos": len(rolled),
        "observed": observed,
        "watched": watched,
        "against_copying": over_videos(ours, copied, scenarios, config.resamples, config.seed),
        "error": {way: curves.of(parts, by_variance) for way, parts in wrong.items()},
    }
    if truth is not None and (frames - 1) // PROBED * PROBED >= observed:
        found["places"] = {name: _distances(rolled, truth, body, observed, curves) for name, body in BODIES.items()}
    return found


@dataclass(frozen=True)
class _Curves:
    """A number over videos, over time: in each of the frames [P]; with intervals at a few, and over the watched ones."""

    frames: np.ndarray
    watched: int
    scenarios: Sequence[str]
    config: Evaluate

    def of(self, parts_NP: np.ndarray, wholes_NP: np.ndarray) -> dict[str, Any]:
        """The sum of parts divided by that of wholes (`over_videos`)."""
        whole = wholes_NP.sum(0)
        few = [self._measured(parts_NP[:, n], wholes_NP[:, n]) | {"frame": int(self.frames[n])} for n in self._few()]
        seen = self.frames < self.watched
        return {
            "frames": self.frames.tolist(),
            "by_frame": [float(p / w) if w > 0 else None for p, w in zip(parts_NP.sum(0), whole, strict=True)],
            "at": few,
            "watched": self._measured(parts_NP[:, seen].sum(1), wholes_NP[:, seen].sum(1)),
        }

    def _measured(self, parts: np.ndarray, wholes: np.ndarray) -> dict[str, float | int | None]:
        return over_videos(parts, wholes, self.scenarios, self.config.resamples, self.config.seed)

    def _few(self) -> list[int]:
        """Indices of the first frame, of the last one watched, of the last, and of those halfway between."""
        first, turn, last = self.frames[0], min(max(self.watched - 1, self.frames[0]), self.frames[-1]), self.frames[-1]
        wanted = [first, (first + turn) // 2, turn, (turn + last) // 2, last]
        return sorted({int(np.abs(self.frames - frame).argmin()) for frame in wanted})


def _distances(rolled: Sequence[Rolled], truth: TruthShards, body: int, observed: int, curves: _Curves) -> dict[str, Any]:
    """How far off a body's predicted place is, in picture and room, by probes trained on true slots of other families.

    They read the place from the `rollout`, from the last observed frame's slot (`copied`), and from the `true` slot that fits
    the body best, which shows how well it can be read at all; `mean` always predicts the mean place. The slot that stood for
    the body in the last observed frame is tracked through the rollout. Measured where the body is visible, both then and in the
    last observed frame.
    """
    seen = [each.seen for each in rolled]
    asked = Asked.of(body, seen, truth)
    rows = np.arange(0, len(rolled[0].rollout), PROBED)
    later = rows >= observed
    first = [best_slots(each.overlap[observed - 1 : observed]) for each in seen if each.overlap is not None]
    start, there = (np.array([each[which][0, body] for each in first]) for which in (0, 2))
    ask = asked.there[:, later] & there[:, None]
    followed = np.stack([each.order[rows[later] - observed + 1, begun] for each, begun in zip(rolled, start, strict=True)])
    last = np.stack([each.slots[observed - 1] for each in seen])
    read = {
        "rollout": (np.stack([each.rollout[rows[later]] for each in rolled]), followed),
        "copied": (np.repeat(last[:, None], later.sum(), 1), np.repeat(start[:, None], later.sum(), 1)),
        "true": (asked.slots[:, later], asked.best[:, later]),
    }
    places = asked.places[:, later]
    said = {way: np.full(places.shape, np.nan) for way in (*read, "mean")}
    for probe, mine in learn_apart(asked.slots, asked.best, asked.places, asked.there, asked.families):
        if (here := ask & mine[:, None]).any():
            said["mean"][here] = probe.mean_place
            for way, (slots, which) in read.items():
                said[way][here] = probe.places(slots[here], which[here])
    told = np.isfinite(said["mean"]).all(-1)
    over_time = _Curves(rows[later], curves.watched, curves.scenarios, curves.config)
    return {
        space: {
            way: over_time.of(np.where(told, np.linalg.norm((where - places)[..., axes], axis=-1), 0.0), told.astype(float))
            for way, where in said.items()
        }
        for space, axes in SPACES.items()
    }
