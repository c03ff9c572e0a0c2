"""Pictures for the report: slot masks over frames, grids of frames, PNG bytes. All images are uint8 RGB."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from physion.report.metrics import complement, over_videos

SLOT_COLORS = np.array(
    [
        (230, 25, 75),
        (60, 180, 75),
        (0, 130, 200),
        (255, 225, 25),
        (145, 30, 180),
        (245, 130, 48),
        (70, 240, 240),
        (240, 50, 230),
    ],
    np.float32,
)
OBSERVED, PREDICTED = (120, 120, 120), (235, 120, 20)
GAP = 4  # pixels between the pictures of a grid
SHOWN = 128  # minimum pixels per side of a picture in a grid
BEST_PSNR = 100.0  # for equal pictures, instead of infinity; one value of 128 x 128 pixels off by one gives 95


def overlay_masks(frames_THW3: np.ndarray, masks_TSHW: np.ndarray) -> np.ndarray:
    """Frames in gray with every slot's mask in its color: uint8 [T, H, W, 3]."""
    colors = SLOT_COLORS[np.arange(masks_TSHW.shape[1]) % len(SLOT_COLORS)]
    tint = np.einsum("tshw,sc->thwc", masks_TSHW, colors)
    grey = frames_THW3.mean(-1, keepdims=True)
    tinted: np.ndarray = np.clip(0.45 * grey + 0.55 * tint, 0, 255).astype(np.uint8)
    return tinted


def show_slots(frame_HW3: np.ndarray, masks_SHW: np.ndarray) -> np.ndarray:
    """What each slot attends to: the frame, faded to white where the slot's share is small, uint8 [S, H, W, 3]."""
    share = np.clip(masks_SHW / masks_SHW.max((1, 2), keepdims=True), 0, 1)[..., None]
    faded: np.ndarray = (frame_HW3 * share + 255 * (1 - share)).astype(np.uint8)
    return faded


def mark_predicted(frames_THW3: np.ndarray, predicted: Sequence[bool]) -> np.ndarray:
    """A border around every frame, gray if it was observed, orange if it was predicted."""
    out = np.pad(frames_THW3, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for frame, flag in zip(out, predicted, strict=True):
        color = PREDICTED if flag else OBSERVED
        frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = color, color, color, color
    return out


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of equally many pictures [N, H, W, 3], combined into one picture on white."""
    lines = [np.pad(enlarge(row, SHOWN), ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate([np.concatenate(list(line), 1) for line in lines], 0)[:-GAP, :-GAP]


def enlarge(images: np.ndarray, least: int) -> np.ndarray:
    """Repeat pixels until height and width of [..., H, W, 3] are at least `least`."""
    times = max(1, -(-least // images.shape[-2]))
    return images.repeat(times, -3).repeat(times, -2)


def psnr(shown_THW3: np.ndarray, drawn_THW3: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture in dB, float64 [T], at most `BEST_PSNR`; equal to scikit-image's."""
    squares = ((shown_THW3.astype(np.float64) - drawn_THW3) ** 2).mean((1, 2, 3))
    decibels: np.ndarray = 20 * np.log10(255) - 10 * np.log10(np.maximum(squares, 1e-9))
    return decibels.clip(max=BEST_PSNR)


def ssim(shown_THW3: np.ndarray, drawn_THW3: np.ndarray) -> np.ndarray:
    """Structural similarity of each picture, mean over colors and over all windows of 7 x 7 pixels, float64 [T].

    Wang et al., IEEE Trans. Image Processing 13 (2004), with uniform windows, scikit-image's default.
    """
    from scipy.ndimage import uniform_filter

    def mean(values: np.ndarray) -> np.ndarray:
        windows: np.ndarray = uniform_filter(values, (1, 7, 7, 1))[:, 3:-3, 3:-3]
        return windows

    one, other = shown_THW3.astype(np.float64), drawn_THW3.astype(np.float64)
    means = mean(one), mean(other)
    sample = 49 / 48  # variances of samples
    variances = [sample * (mean(each**2) - average**2) for each, average in zip((one, other), means, strict=True)]
    shared = sample * (mean(one * other) - means[0] * means[1])
    small = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * means[0] * means[1] + small[0]) * (2 * shared + small[1])
    below = (means[0] ** 2 + means[1] ** 2 + small[0]) * (variances[0] + variances[1] + small[1])
    found: np.ndarray = (above / below).mean((1, 2, 3))
    return found


def likeness(pairs: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int, seed: int) -> dict[str, Any]:
    """How similar the drawn videos are to the shown ones, [T, H, W, 3]: means over videos with intervals, and in each frame.

    `psnr` in dB, `ssim`, and `explained`: the share of the pixels' variance about each frame's mean color that is reproduced, 0
    for frames in one color.
    """
    ratios = {name: np.stack([measure(*pair) for pair in pairs]) for name, measure in (("psnr", psnr), ("ssim", ssim))}
    shown, drawn = (np.stack(each).astype(np.float64) for each in zip(*pairs, strict=True))
    wrong = ((drawn - shown) ** 2).sum((2, 3, 4))
    apart = ((shown - shown.mean((2, 3), keepdims=True)) ** 2).sum((2, 3, 4))
    alike = [""] * len(pairs)  # one or two per scenario: too few to draw from each separately
    found: dict[str, Any] = {}
    for name, values in ratios.items():
        found[name] = over_videos(values.mean(1), np.ones(len(pairs)), alike, resamples, seed)
        found[name]["by_frame"] = values.mean(0).tolist()
    found["explained"] = complement(over_videos(wrong.sum(1), apart.sum(1), alike, resamples, seed))
    found["explained"]["by_frame"] = [float(1 - w / a) if a else None for w, a in zip(wrong.sum(0), apart.sum(0), strict=True)]
    return found


def png(image_HW3: np.ndarray) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
