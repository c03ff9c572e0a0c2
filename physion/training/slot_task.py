"""What the trainings of slot models share: clips of frames, where each slot looks, and whether it binds."""

from __future__ import annotations

import numpy as np
import torch

from physion.data.clips import Batch, FrameClips, to_unit
from physion.data.order import spread
from physion.data.shards import FrameShards, Shards
from physion.data.truth import TruthShards
from physion.models.slots import SlotModel, encode_video, resize_masks, see_video
from physion.report import pictures
from physion.report.binding import means, measure_slots, overlaps_in
from physion.training.engine import Task, best_device

WATCHED = 4  # held-out videos that every held-out measurement sees whole


class SlotTask(Task):
    """A training on clips of successive frames: `images` uint8 [B, T, 3, H, W] and, with tokens, `tokens` int64 [B, T, N]."""

    model: SlotModel

    def __init__(
        self,
        model: SlotModel,
        frames: FrameShards,
        clip_frames: int,
        tokens: Shards | None = None,
        truth: TruthShards | None = None,
    ) -> None:
        self.model, self.frames, self.truth = model, frames, truth
        self.train, self.heldout = (
            FrameClips(frames, frames.select(heldout=heldout), frames.video_frames, clip_frames, tokens)
            for heldout in (False, True)
        )

    def measures(self) -> dict[str, float]:
        """`measure_slots` over a few whole held-out videos, which show what clips cannot: whether slots keep their meaning."""
        videos = self.frames.select(heldout=True)
        names = [videos[number].name for number in spread(len(videos), WATCHED)]
        images = np.stack([self.frames.images(name, 0, self.frames.video_frames) for name in names])
        batch = to_unit(torch.from_numpy(images).permute(0, 1, 4, 2, 3).to(best_device()))
        found = zip(names, *(each.numpy() for each in see_video(self.model, batch, images.shape[2])), strict=True)
        known = self.truth
        return means([measure_slots(s, None if known is None else overlaps_in(known, n, masks)) for n, s, masks in found])

    def picture(self, batch: Batch) -> np.ndarray:
        """The last frame of each clip, with the slots' colors below."""
        (out,) = encode_video(self.model, [to_unit(batch["images"])], with_masks=True)
        assert out.masks is not None
        frames_BHW3 = batch["images"][:, -1].permute(0, 2, 3, 1).cpu().numpy()
        masks_BSHW = resize_masks(out.masks[:, -1:].float(), frames_BHW3.shape[1])[:, 0].cpu().numpy()
        return pictures.grid([frames_BHW3, pictures.overlay_masks(frames_BHW3, masks_BSHW)])
