"""What the trainings of slot models have in common: clips of frames, and the picture of where each slot looks."""

from __future__ import annotations

import numpy as np

from physion.data.clips import Batch, FrameClips, to_unit
from physion.data.shards import FrameShards, Shards
from physion.models.slots import SlotModel, encode_video, resize_masks
from physion.report import pictures
from physion.training.engine import Task


class SlotTask(Task):
    """A training on clips of successive frames: `images` uint8 [B, T, 3, H, W] and, with tokens, `tokens` int64 [B, T, N]."""

    model: SlotModel

    def __init__(self, model: SlotModel, frames: FrameShards, clip_frames: int, tokens: Shards | None = None) -> None:
        self.model = model
        self.train, self.heldout = (
            FrameClips(frames, frames.select(heldout=heldout), frames.video_frames, clip_frames, tokens)
            for heldout in (False, True)
        )

    def picture(self, batch: Batch) -> np.ndarray:
        """The last frame of each clip, in the slots' colours below."""
        (out,) = encode_video(self.model, [to_unit(batch["images"])], with_masks=True)
        assert out.masks is not None
        frames_BHW3 = batch["images"][:, -1].permute(0, 2, 3, 1).cpu().numpy()
        masks_BSHW = resize_masks(out.masks[:, -1:].float(), frames_BHW3.shape[1])[:, 0].cpu().numpy()
        return pictures.grid([frames_BHW3, pictures.overlay_masks(frames_BHW3, masks_BSHW)])
