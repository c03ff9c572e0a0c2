"""Training clips: a dataset maps a clip's number to its place in a video, and fetches many clips at once.

Images stay uint8 [.., 3, H, W] until they are on the device; `to_unit` converts them to float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from physion.data.layout import Video
from physion.data.shards import FrameShards, Shards
from physion.errors import DataError

Batch = dict[str, torch.Tensor]


class Clips(Protocol):
    """A dataset of clips."""

    def __len__(self) -> int:
        """Number of clips."""

    def __getitem__(self, clips: Sequence[int]) -> Batch:
        """The clips with these numbers, stacked."""


class VideoClips:
    """Every clip of `frames` frames, `stride` apart, from every video: all starts, as in the published training."""

    def __init__(self, videos: Sequence[Video], video_frames: int, frames: int, stride: int = 1) -> None:
        self.videos = list(videos)
        self.frames, self.stride = frames, stride
        self.starts = video_frames - (frames - 1) * stride
        if self.starts < 1:
            raise DataError(f"clips of {frames} frames, {stride} apart, do not fit into videos of {video_frames} frames")

    def __len__(self) -> int:
        return len(self.videos) * self.starts

    def place(self, clip: int) -> tuple[str, int]:
        """Video name and first frame of a clip."""
        return self.videos[clip // self.starts].name, clip % self.starts


class FrameClips(VideoClips):
    """Images of clips, with their tokens if `tokens` is given."""

    def __init__(
        self, shards: FrameShards, videos: Sequence[Video], video_frames: int, frames: int, tokens: Shards | None = None
    ) -> None:
        super().__init__(videos, video_frames, frames)
        self.shards, self.tokens = shards, tokens

    def __getitem__(self, clips: Sequence[int]) -> Batch:
        """`images` uint8 [B, T, 3, H, W] and, with tokens, `tokens` int64 [B, T, N]."""
        places = [self.place(clip) for clip in clips]
        images = np.stack([self.shards.images(video, start, self.frames) for video, start in places])
        batch = {"images": torch.from_numpy(images).permute(0, 1, 4, 2, 3)}
        if self.tokens is not None:
            rows = [self.tokens.read(video, "tokens", slice(start, start + self.frames)) for video, start in places]
            batch["tokens"] = torch.from_numpy(np.stack(rows)).long()
        return batch


class SlotClips(VideoClips):
    """Slots of clips."""

    def __init__(self, shards: Shards, videos: Sequence[Video], video_frames: int, frames: int, stride: int) -> None:
        super().__init__(videos, video_frames, frames, stride)
        self.shards = shards

    def __getitem__(self, clips: Sequence[int]) -> Batch:
        """`slots` float32 [B, T, S, D]."""
        span = (self.frames - 1) * self.stride + 1
        rows = [self.shards.slots(video, slice(start, start + span, self.stride)) for video, start in map(self.place, clips)]
        return {"slots": torch.from_numpy(np.stack(rows))}


class LabelledSlots:
    """The first `frames` frames of labeled videos."""

    def __init__(self, shards: Shards, videos: Sequence[Video], frames: int) -> None:
        self.shards, self.videos, self.frames = shards, list(videos), frames

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, clips: Sequence[int]) -> Batch:
        """`slots` float32 [B, T, S, D] and `labels` float32 [B]."""
        videos = [self.videos[clip] for clip in clips]
        rows = [self.shards.slots(video.name, slice(0, self.frames)) for video in videos]
        if any(len(row) < self.frames for row in rows):
            raise DataError(f"the readout needs {self.frames} frames of slots, a video has {min(map(len, rows))}")
        labels = torch.tensor([float(bool(video.label)) for video in videos])
        return {"slots": torch.from_numpy(np.stack(rows)), "labels": labels}


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in [-1, 1]: x / 127.5 - 1."""
    return images.float().div_(127.5).sub_(1.0)


def from_unit(images_T3HW: np.ndarray) -> np.ndarray:
    """Float images in [-1, 1], [T, 3, H, W] -> uint8 [T, H, W, 3]."""
    images: np.ndarray = np.clip((images_T3HW.transpose(0, 2, 3, 1) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    return images
