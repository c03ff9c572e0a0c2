"""MP4 in, MP4 out, through PyAV on one thread (the parallelism is over videos)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import av
import av.error
import numpy as np

from physion.errors import DataError

FPS = 30
# x264's AVX-512 code for macroblock trees (mbtree_propagate_list) takes 8 macroblocks at a time. Unless a row of them is a
# multiple of that, it goes on into the next row and, after the last, into memory that was never written: at 32, 48, 64 or 96
# pixels quantizers depended on it. With this option x264 uses code that stops where the row does, the same on every processor.
X264_PARAMS = "cpu-independent=1"


def decode(source: str | BinaryIO) -> Iterator[np.ndarray]:
    """The frames of a video one by one: uint8 [H, W, 3], RGB. Raises FFmpegError, OSError or ValueError."""
    with av.open(source, "r") as container:
        if not container.streams.video:
            raise ValueError("there is no video stream")
        stream = container.streams.video[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


def read_frames(path: Path, limit: int) -> np.ndarray:
    """Decode the first `limit` frames of a video.

    Returns uint8 [T, H, W, 3], RGB, T = `limit`.

    Raises DataError naming the file when it cannot be decoded or holds fewer frames.
    """
    frames: list[np.ndarray] = []
    try:
        for frame in islice(decode(str(path)), limit):
            frames.append(frame)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path.name}: cannot be decoded after {len(frames)} frames ({reason})") from error
    if len(frames) < limit:
        raise DataError(f"{path.name}: has {len(frames)} frames, {limit} are needed")
    return np.stack(frames)


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int = FPS, crf: int = 18) -> None:
    """Encode uint8 RGB frames [H, W, 3] (even sizes) as H.264; the bytes depend on the frames alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"crf": str(crf), "preset": "veryfast", "x264-params": X264_PARAMS}
    with av.open(str(path), "w", format="mp4") as container:
        stream = None
        for array in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps, options=options)
                stream.height, stream.width = array.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.thread_count = 1
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
