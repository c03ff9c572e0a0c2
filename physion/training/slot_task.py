"""What the trainings of slot models have in common: the picture of where each slot looks."""

from __future__ import annotations

import numpy as np

from physion.data.clips import Batch, to_unit
from physion.models.slots import resize_masks
from physion.report import pictures
from physion.training.engine import Task


class SlotTask(Task):
    """A training whose `model` has the `encode` of a `physion.models.slots.SlotModel`; its clips have `images`."""

    def picture(self, batch: Batch) -> np.ndarray:
        """The last frame of each clip, in the slots' colours below."""
        masks = self.model.encode(to_unit(batch["images"]), with_masks=True).masks  # type: ignore[operator]
        frames_BHW3 = batch["images"][:, -1].permute(0, 2, 3, 1).cpu().numpy()
        masks_BSHW = resize_masks(masks[:, -1:].float(), frames_BHW3.shape[1])[:, 0].cpu().numpy()
        return pictures.grid([frames_BHW3, pictures.overlay_masks(frames_BHW3, masks_BSHW)])
