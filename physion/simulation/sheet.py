"""A sheet of pictures that shows each scenario, before and after the observed frames."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from physion.simulation import SCENARIOS, Clip, make_clip, make_trajectory
from physion.simulation.physics import OBSERVED_FRAMES

MOMENTS = (0, 30, 45, 60, 80, 149)
GAP, MARGIN = 6, 16
PAPER, INK, FAINT, ACCENT = (255, 255, 255), (28, 30, 34), (120, 124, 132), (190, 24, 24)


def write_contact_sheet(path: Path, seed: int, size: int) -> None:
    """Render clip 0 or 1 of every scenario, alternating positives and negatives, `size` pixels per frame."""
    text_scale = size / 128
    titles, notes = ImageFont.load_default(15 * text_scale), ImageFont.load_default(12.5 * text_scale)
    label_width, header = round(104 * text_scale), round(30 * text_scale)
    column = [MARGIN + label_width + number * (size + GAP) for number in range(len(MOMENTS))]
    # A wider gap where the observed part ends.
    column = [x + (2 * GAP if MOMENTS[number] >= OBSERVED_FRAMES else 0) for number, x in enumerate(column)]
    height = MARGIN + header + len(SCENARIOS) * (size + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (column[-1] + size + MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for moment, x in zip(MOMENTS, column, strict=True):
        draw.text((x, MARGIN), f"frame {moment}", INK if moment < OBSERVED_FRAMES else FAINT, notes)
    for row, scenario in enumerate(SCENARIOS):
        clip = _clip_with_label(scenario, seed, size, label=row % 2 == 0)
        y = MARGIN + header + row * (size + GAP)
        draw.text((MARGIN, y + 0.32 * size), scenario, INK, titles)
        if clip.first_contact is None:
            outcome, color = "no contact", FAINT
        else:
            outcome, color = f"contact at {clip.first_contact}", ACCENT
        draw.text((MARGIN, y + 0.32 * size + 22 * text_scale), outcome, color, notes)
        for moment, x in zip(MOMENTS, column, strict=True):
            sheet.paste(Image.fromarray(clip.frames[moment]), (x, y))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _clip_with_label(scenario: str, seed: int, size: int, *, label: bool) -> Clip:
    """The one of clips 0 and 1 that has the given label."""
    index = 0 if make_trajectory(scenario, seed, 0).label == label else 1
    return make_clip(scenario, seed, index, size=size)
