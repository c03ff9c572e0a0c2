"""Which videos are held out: whole families of near twins, so that nothing is chosen on videos that training has seen."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from physion.data.layout import Video

# The words of a Physion name that only describe the looks of an event: its room, and distractors and occluders around it.
# Official names that are equal without these words, and have the same number, show one event (with one label) up to five times,
# as in pilot_it2_drop_simple_box_0003_img and pilot_it2_drop_simple_tdw_2_dis_2_occ_0003_img.
_LOOKS = re.compile(r"_(?:\d_dis_\d_occ|(?:box|tdw)(?:room(?:_2)?)?|(?:mono|dis|occ|d|o)\d[a-z]*)(?=_)")
# PhysionSim draws clips 2k and 2k + 1 for opposite labels: each reveals the other's.
_SIMULATED = re.compile(r"([a-z]+_[a-z]+_s\d+)_(\d+)_img")


def family(name: str) -> str:
    """What the names of near twins share: videos of one event in different rooms, and PhysionSim's pairs of clips."""
    if match := _SIMULATED.fullmatch(name):
        return f"{match[1]}_{int(match[2]) // 2}"
    return _LOOKS.sub("", name)


def hold_out(videos: Sequence[Video], share: float) -> list[Video]:
    """Mark whole families as held out, scenario by scenario, until their videos reach `share` of all videos so far.

    In each scenario these are the families whose names have the smallest SHA-256: the choice depends only on names, so it is
    the same on every machine, in every order and for every seed. The share is met to within one family.
    """
    families: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for video in videos:
        families[video.scenario][family(video.name)].append(video.name)
    seen = 0
    heldout: set[str] = set()
    for _, scenario in sorted(families.items()):
        seen += sum(map(len, scenario.values()))
        for name in sorted(scenario, key=lambda name: hashlib.sha256(name.encode()).digest()):
            if len(heldout) >= round(share * seen, 9):
                break
            heldout.update(scenario[name])
    return [replace(video, heldout=video.name in heldout) for video in videos]
