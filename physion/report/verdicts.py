"""Where the chain breaks: one number for each link, its values at chance and at best, and a verdict in words.

The rules, with their reasons, are in docs/reproduce.md. Intervals decide: a link is above chance if its whole interval is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_VIDEOS = 8  # below, a bootstrap interval is meaningless; the page shows as many
LEAST_ANSWERS = 30  # below, all answers may be right, and the interval a point

ABOVE, AT_CHANCE, WEAKEST, TOO_FEW, UNKNOWN = "above chance", "at chance", "weakest", "too few videos", "not measured"
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Link:
    """A link: `number`, an interval, is its `measure` over `n` videos; `fails` says what is wrong if it is at chance.

    `ceiling` is the best possible number, None if unknown; if it is below chance, less is better.
    """

    name: str
    measure: str
    number: Mapping[str, float | None]
    n: int
    chance: float
    ceiling: float | None
    fails: str
    least: int = LEAST_VIDEOS

    @property
    def state(self) -> str:
        """Whether it is above chance, as far as can be determined."""
        low, high = self.number["low"], self.number["high"]
        if low is None or high is None:
            return UNKNOWN
        if self.n < self.least:
            return TOO_FEW
        better = high < self.chance if self.ceiling is not None and self.ceiling < self.chance else low > self.chance
        return ABOVE if better else AT_CHANCE

    @property
    def shares(self) -> tuple[float, float] | None:
        """The ends of the interval as shares of the way from chance (0) to the ceiling (1)."""
        if self.ceiling is None or self.state != ABOVE:
            return None
        way = self.ceiling - self.chance
        low, high = sorted((float(self.number[end] or 0) - self.chance) / way for end in ("low", "high"))
        return low, high


def verdicts(metrics: Metrics) -> list[dict[str, Any]]:
    """A row for each link, in the order of the chain, from the rest of metrics.json."""
    found = {"video": _video, "tokens": _tokens, "slots": _slots, "dynamics": _dynamics, "answer": _answer}
    links = {name: link(metrics) for name, link in found.items()}
    weakest = _weakest([link for link in links.values() if isinstance(link, Link)])
    return [_row(name, link, weakest) for name, link in links.items()]


def _row(name: str, link: Link | str, weakest: str | None) -> dict[str, Any]:
    """link: or the reason why it could not be measured."""
    if isinstance(link, str):
        return {"link": name, "state": UNKNOWN, "verdict": link}
    state = WEAKEST if name == weakest else link.state
    said = {
        ABOVE: "Above chance.",
        AT_CHANCE: link.fails,
        TOO_FEW: f"{link.n} videos are too few to tell; {link.least} are the least.",
        UNKNOWN: "Nothing to measure it by was found in these videos.",
    }
    if state == WEAKEST and link.shares is not None:
        low, high = link.shares
        said[WEAKEST] = (
            f"The weakest link: {100 * low:.0f} to {100 * high:.0f} % of the way from chance to its ceiling, behind all others."
        )
    number = {end: link.number[end] for end in ("value", "low", "high")} | {"n": link.n}
    row = {"link": name, "measure": link.measure, "number": number, "chance": link.chance, "ceiling": link.ceiling}
    return row | {"state": state, "verdict": said[state]}


def _weakest(links: list[Link]) -> str | None:
    """The link whose whole interval is closer to chance than those of all others; none while one is at chance."""
    judged = {link.name: link.shares for link in links if link.name != "video" and link.shares is not None}
    if len(judged) < 2 or any(link.state == AT_CHANCE for link in links):
        return None
    name = min(judged, key=lambda name: judged[name][1])
    return name if all(judged[name][1] < shares[0] for other, shares in judged.items() if other != name) else None


# ------------------------------------------------------------------------------------------------------ links
def _video(metrics: Metrics) -> Link | str:
    known = _regression(metrics, "states-full")
    if known is None:
        return "No truth is known of these videos, so nobody can tell what they hold of the answer."
    fails = "Even the true states of agent and patient do not tell the answer: look at the videos and their labels first."
    return Link("video", "states", known, _videos(metrics), _chance(metrics), 1.0, fails, LEAST_ANSWERS)


def _tokens(metrics: Metrics) -> Link | str:
    pictures = metrics["pictures"]
    if "reconstructed" not in pictures:
        return "There are no tokens, or no videos on this page to draw from them."
    fails = "What comes back from the tokens is no more like the video than frames in one color: the dVAE has learned nothing."
    return Link("tokens", "explained", pictures["reconstructed"]["explained"], pictures["videos"], 0.0, 1.0, fails)


def _slots(metrics: Metrics) -> Link | str:
    found = metrics["slots"]["test"]
    if not found["truth"]:
        number = found.get("kept_places", _NONE)
        fails = "Slots keep their places from frame to frame no more than drawn by lot would."
        return Link("slots", "kept_places", number, found["videos"], 1 / found["slots"], 1.0, fails)
    read = {body: ways["best"]["picture"]["r2"] for body, ways in found["probes"].items()}
    if any(r2 is None or r2["value"] is None for r2 in read.values()):
        return "Agent or patient was seen in no video, or in too few, that a probe could be asked about."
    body = min(read, key=lambda body: read[body]["value"])  # the answer needs both
    fails = f"Where the {body} is cannot be read from its slot: the slots do not see it."
    return Link("slots", f"place_{body}", read[body], found["videos"], 0.0, 1.0, fails)


def _dynamics(metrics: Metrics) -> Link | str:
    found = metrics["dynamics"]
    if not found:
        return "Nothing was predicted."
    fails = "The rollout is no nearer to the slots that came than a copy of the last observed frame."
    return Link("dynamics", "against_copying", found["against_copying"], found["videos"], 1.0, 0.0, fails)


def _answer(metrics: Metrics) -> Link:
    mode = "rollout" if "rollout" in metrics["modes"] else next(iter(metrics["modes"]))
    said, chance = metrics["modes"][mode], _chance(metrics)
    ceiling, fails = None, "The readout's answers are not told apart from always giving the commoner one."
    of_slots = [found for on in ("places", "slots") if (found := _regression(metrics, f"{on}-{mode}")) is not None]
    states = _regression(metrics, f"states-{mode}")
    if answering := [found["value"] for found in of_slots if found["low"] > chance]:
        ceiling = max(answering)
        fails += f" A regression gets {100 * ceiling:.1f} % from the same slots: the readout is to blame."
    elif of_slots:
        fails += " Nor are those of regressions on the same slots: what the answer needs is lost before."
    if states is not None and states["low"] > chance and (ceiling or 0.0) < said["overall"]["accuracy"]["value"]:
        ceiling = states["value"]  # the readout does better than any regression on its slots
    return Link("answer", f"answers_{mode}", said["overall"]["accuracy"], said["n"], chance, ceiling, fails, LEAST_ANSWERS)


_NONE: dict[str, float | None] = {"value": None, "low": None, "high": None}


def _videos(metrics: Metrics) -> int:
    """Test videos."""
    return int(next(iter(metrics["modes"].values()))["n"])


def _chance(metrics: Metrics) -> float:
    return float(next(iter(metrics["modes"].values()))["chance"])


def _regression(metrics: Metrics, on: str) -> Any:
    """The accuracy of a regression, with the variant that its folds chose; None if there is none."""
    if on not in metrics["regressions"]:
        return None
    found = metrics["regressions"][on]
    return found["variants"][found["chosen"]]["overall"]["accuracy"]
