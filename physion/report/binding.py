"""Do slots bind to bodies, and stay bound? Compared with the engine's masks, or measured from the slots alone.

Shapes: T frames, B bodies (the agent, the patient, others), S slots, D slot size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from physion.data.truth import AGENT, PATIENT, TruthShards

SEEN = 0.002  # share of a frame's pixels from which a body counts as seen: 8 of 64 x 64


def overlaps(truth_THW: np.ndarray, slots_THW: np.ndarray, bodies: int, slots: int) -> np.ndarray:
    """How many pixels of each body each slot covers, int64 [T, 1 + B, S]; row 0 is floor and walls.

    truth_THW: 1 + the index of the body in each pixel, 0 for none. slots_THW: the slot whose mask is largest there.
    """
    frames = len(truth_THW)
    cells = (np.arange(frames).reshape(-1, 1, 1) * (1 + bodies) + truth_THW) * slots + slots_THW
    return np.bincount(cells.ravel(), minlength=frames * (1 + bodies) * slots).reshape(frames, 1 + bodies, slots)


def overlaps_in(truth: TruthShards, video: str, masks_TSHW: np.ndarray) -> np.ndarray:
    """`overlaps` of a video's bodies with the slots of these masks; every n-th pixel if the ground truth has more pixels."""
    bodies, side = truth.masks(video)[: len(masks_TSHW)], masks_TSHW.shape[-1]
    at = (2 * np.arange(side) + 1) * bodies.shape[1] // (2 * side)
    return overlaps(bodies[:, at][:, :, at], masks_TSHW.argmax(1), len(truth.scenes[video].bodies), masks_TSHW.shape[1])


def adjusted_rand(overlap_BS: np.ndarray) -> np.ndarray:
    """The adjusted Rand index of two partitions of the same pixels, from their overlaps [..., B, S] -> [...].

    1 if they are equal, 0 if they agree only by chance; equal to scikit-learn's `adjusted_rand_score`.
    """

    def pairs(counts: np.ndarray) -> np.ndarray:
        return counts * (counts - 1.0) / 2

    together = pairs(overlap_BS).sum((-2, -1))
    by_body, by_slot = (pairs(overlap_BS.sum(axis)).sum(-1) for axis in (-1, -2))
    by_chance = by_body * by_slot / np.maximum(pairs(overlap_BS.sum((-2, -1))), 1)
    most = (by_body + by_slot) / 2
    same = most == by_chance
    index: np.ndarray = np.where(same, 1.0, (together - by_chance) / np.where(same, 1.0, most - by_chance))
    return index


def overlap_ratios(overlap_BS: np.ndarray) -> np.ndarray:
    """Intersection over union of each body with each slot, from overlaps [..., 1 + B, S] -> [..., B, S]; 0 if unseen."""
    bodies, slots = overlap_BS[..., 1:, :].sum(-1), overlap_BS.sum(-2)
    union = bodies[..., :, None] + slots[..., None, :] - overlap_BS[..., 1:, :]
    ratios: np.ndarray = overlap_BS[..., 1:, :] / np.maximum(union, 1)
    return ratios


def mean_overlap(ratios_BS: np.ndarray) -> float:
    """mIoU: the mean over bodies of the overlap with their slots, matched one to one so that it is largest."""
    from scipy.optimize import linear_sum_assignment

    return float(ratios_BS[linear_sum_assignment(ratios_BS, maximize=True)].sum() / len(ratios_BS))


def best_slots(overlap_TBS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slot that fits each body best in each frame, int64 [T, B]; whether the body owns it; whether the body is seen.

    A body owns the slot if the slot covers at least half of the body's pixels, and they are at least a quarter of the slot:
    masks are wider than what they show. Overlaps [T, 1 + B, S].
    """
    bodies, regions = overlap_TBS[:, 1:].sum(-1), overlap_TBS.sum(1)
    best = overlap_ratios(overlap_TBS).argmax(-1)
    shared = np.take_along_axis(overlap_TBS[:, 1:], best[..., None], -1)[..., 0]
    own = (2 * shared >= bodies) & (4 * shared >= np.take_along_axis(regions, best, -1)) & (shared > 0)
    return best, own, bodies >= SEEN * overlap_TBS[0].sum()


def steps(slots_TSD: np.ndarray) -> np.ndarray:
    """Squared distances of each slot of a frame (first index) to each of the next frame, float64 [T - 1, S, S]."""
    slots = slots_TSD.astype(np.float64)
    squares, products = (slots**2).sum(-1), np.einsum("tsd,trd->tsr", slots[:-1], slots[1:])
    apart: np.ndarray = squares[:-1, :, None] + squares[1:, None] - 2 * products
    return apart


def followed(slots_TSD: np.ndarray) -> np.ndarray:
    """For each slot of a frame, the nearest slot of the next frame, int64 [T - 1, S]."""
    nearest: np.ndarray = steps(slots_TSD).argmin(-1)
    return nearest


def norms(slots_TSD: np.ndarray) -> np.ndarray:
    """The slots' mean length in each frame, float64 [T]."""
    lengths: np.ndarray = np.linalg.norm(slots_TSD.astype(np.float64), axis=-1).mean(-1)
    return lengths


def measure_slots(slots_TSD: np.ndarray, overlap_TBS: np.ndarray | None = None) -> dict[str, float]:
    """Measures of one video's slots; measures that are undefined for it are left out.

    - `kept_places`: share of the slots whose nearest slot in the next frame has the same index.
    - `norm_first`, `norm_last`: their mean length in the first and the last frame.

    With overlaps [T, 1 + B, S]:

    - `ari`, `miou`: foreground ARI (of the pixels of bodies, if there are two) and mIoU over the whole video at once, so
      that a body whose slot changes its index counts as split.
    - `ari_frames`, `miou_frames`: the means over frames, each separately.
    - `own_agent`, `own_patient`: share of the frames that show the body in which it owns a slot (`best_slots`).
    - `kept_object`, `kept_index`: share of the slots that own a body for which, in the next frame, the nearest slot or the slot
      with the same index owns it too.
    """
    lengths, next_slot = norms(slots_TSD), followed(slots_TSD)
    found = {"norm_first": float(lengths[0]), "norm_last": float(lengths[-1])}
    if len(next_slot):
        found["kept_places"] = float((next_slot == np.arange(slots_TSD.shape[1])).mean())
    if overlap_TBS is None:
        return found
    seen_T = (overlap_TBS[:, 1:].sum(-1) > 0).sum(1)
    if seen_T.any():
        whole = overlap_TBS.sum(0)
        found["miou"] = mean_overlap(overlap_ratios(whole)[whole[1:].sum(-1) > 0])
        frames = zip(overlap_ratios(overlap_TBS), overlap_TBS[:, 1:].sum(-1) > 0, strict=True)
        found["miou_frames"] = float(np.mean([mean_overlap(ratios[there]) for ratios, there in frames if there.any()]))
        if (whole[1:].sum(-1) > 0).sum() > 1:
            found["ari"] = float(adjusted_rand(whole[1:]))
        if (seen_T > 1).any():
            found["ari_frames"] = float(adjusted_rand(overlap_TBS[seen_T > 1, 1:]).mean())
    best, own, seen = best_slots(overlap_TBS)
    for name, body in (("own_agent", AGENT), ("own_patient", PATIENT)):
        if seen[:, body].any():
            found[name] = float(own[seen[:, body], body].mean())
    held = (own & seen)[:-1] & seen[1:]
    if held.any():
        follows = np.take_along_axis(next_slot, best[:-1], 1)
        still = own[1:] & held
        found["kept_object"] = float((still & (best[1:] == follows)).sum() / held.sum())
        found["kept_index"] = float((still & (best[1:] == best[:-1])).sum() / held.sum())
    return found


def means(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over the videos for which it is defined."""
    names = dict.fromkeys(name for one in measured for name in one)
    return {name: float(np.mean([one[name] for one in measured if name in one])) for name in names}
