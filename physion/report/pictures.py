"""Pictures for the report: slot masks over frames, grids of frames, PNG bytes. All images are uint8 RGB."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

SLOT_COLOURS = np.array(
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
SHOWN = 128  # pixels a side that a picture of a grid has at least


def from_unit(images_T3HW: np.ndarray) -> np.ndarray:
    """Float images in [-1, 1], [T, 3, H, W] -> uint8 [T, H, W, 3]."""
    images: np.ndarray = np.clip((images_T3HW.transpose(0, 2, 3, 1) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    return images


def overlay_masks(frames_THW3: np.ndarray, masks_TSHW: np.ndarray) -> np.ndarray:
    """Frames in grey with every slot's mask in its colour: uint8 [T, H, W, 3]."""
    colours = SLOT_COLOURS[np.arange(masks_TSHW.shape[1]) % len(SLOT_COLOURS)]
    tint = np.einsum("tshw,sc->thwc", masks_TSHW, colours)
    grey = frames_THW3.mean(-1, keepdims=True)
    tinted: np.ndarray = np.clip(0.45 * grey + 0.55 * tint, 0, 255).astype(np.uint8)
    return tinted


def show_slots(frame_HW3: np.ndarray, masks_SHW: np.ndarray) -> np.ndarray:
    """What each slot attends to: the frame, faded to white where the slot's share is small, uint8 [S, H, W, 3]."""
    share = np.clip(masks_SHW / masks_SHW.max((1, 2), keepdims=True), 0, 1)[..., None]
    faded: np.ndarray = (frame_HW3 * share + 255 * (1 - share)).astype(np.uint8)
    return faded


def mark_predicted(frames_THW3: np.ndarray, predicted: Sequence[bool]) -> np.ndarray:
    """A border around every frame that says whether it was observed (grey) or predicted (orange)."""
    out = np.pad(frames_THW3, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for frame, flag in zip(out, predicted, strict=True):
        colour = PREDICTED if flag else OBSERVED
        frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = colour, colour, colour, colour
    return out


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of equally many pictures [N, H, W, 3] as one picture on white."""
    lines = [np.pad(enlarge(row, SHOWN), ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate([np.concatenate(list(line), 1) for line in lines], 0)[:-GAP, :-GAP]


def enlarge(images: np.ndarray, least: int) -> np.ndarray:
    """Repeat pixels until height and width of [..., H, W, 3] are at least `least`."""
    times = max(1, -(-least // images.shape[-2]))
    return images.repeat(times, -3).repeat(times, -2)


def png(image_HW3: np.ndarray) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
