"""MP4 in, MP4 out, through PyAV on one thread (the parallelism is across videos).

Frames equal those of OpenCV's VideoCapture and `cv2.resize`, bit for bit: this is what the published code reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from physion.errors import DataError

FPS = 30
# Official videos are 512 x 512. A decoder may keep 17 pictures as large as this, about 110 MB.
MAX_PIXELS = 2048 * 2048
# The decoder checks sizes itself, for containers that do not tell them, and raises errors instead of guessing.
STRICT = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
# x264's AVX-512 code for macroblock trees (mbtree_propagate_list) takes 8 macroblocks at a time. Unless a row's length is a
# multiple of 8, it continues into the next row and, after the last, into memory that was never written: at 32, 48, 64 or 96
# pixels, quantizers depended on it. With this option x264 uses code that stops at the end of the row, the same on every
# processor.
X264_PARAMS = "cpu-independent=1"


def decode(source: str | BinaryIO) -> Iterator[np.ndarray]:
    """The frames of a video one by one, in display order: uint8 [H, W, 3], BGR as in OpenCV.

    Raises FFmpegError, OSError or ValueError if the decoder notices damage, and for pictures of more than MAX_PIXELS.
    """
    with av.open(source, "r", options=STRICT) as container:
        if not container.streams.video:
            raise ValueError("there is no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError("its codec is unknown")
        if stream.width * stream.height > MAX_PIXELS:
            raise ValueError(f"its pictures have {stream.width}x{stream.height} pixels, more than {MAX_PIXELS} in all")
        stream.codec_context.options = STRICT
        stream.codec_context.thread_count = 1
        convert = VideoReformatter()
        for frame in container.decode(stream):
            if frame.is_corrupt:  # some errors only mark the frame
                raise ValueError("the next frame is damaged")
            picture = convert.reformat(frame, format="bgr24", interpolation=Interpolation.BICUBIC, threads=1).to_ndarray()
            yield np.rot90(picture, int(frame.rotation / 90))


def read_frames(path: Path, limit: int, size: int | None = None) -> np.ndarray:
    """Decode the first `limit` frames of a video, resizing each to `size` pixels per side before the next is decoded.

    Returns uint8 [T, H, W, 3], RGB, T = `limit`.

    Raises DataError naming the file if it cannot be decoded or has too few frames.
    """
    frames: list[np.ndarray] = []
    try:
        for frame in islice(decode(str(path)), limit):
            frames.append((frame if size is None else resize(frame, size))[..., ::-1])
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path.name}: cannot be decoded after {len(frames)} frames ({reason})") from error
    if len(frames) < limit:
        raise DataError(f"{path.name}: has {len(frames)} frames, {limit} are needed")
    return np.stack(frames)


def frame_rate(path: Path) -> float | None:
    """Frames per second, to two decimals, on average if they vary; None if the file does not say."""
    with av.open(str(path), "r", options=STRICT) as container:
        rate = container.streams.video[0].average_rate
        return None if rate is None else round(float(rate), 2)


def resize(frame_HW3: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize without antialiasing, uint8 [size, size, 3]: OpenCV's INTER_LINEAR with its fixed-point arithmetic.

    Source: `resize.cpp` of OpenCV (HResizeLinear, VResizeLinear). In numpy, because every worker process would spend seconds
    importing torch.
    """
    height, width, _ = frame_HW3.shape
    if height == width == size:
        return frame_HW3
    rows, row_weights = _taps(height, size)
    columns, column_weights = _taps(width, size)
    # Only the four pixels around each point: [above or below, size, left or right, size * 3].
    around = frame_HW3[rows].take(columns, axis=2).reshape(2, size, 2, -1)
    above, below = np.einsum("aylx,lx->ayx", around, column_weights.repeat(3, 1)) >> 4
    upper, lower = row_weights[..., None]
    resized: np.ndarray = ((above * upper >> 16) + (below * lower >> 16) + 2) >> 2
    return resized.astype(np.uint8).reshape(size, size, 3)


@lru_cache(16)
def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The two pixels of `length` between which each of `size` points lies, and their weights in 2048ths: int32 [2, size]."""
    centre = ((np.arange(size) + 0.5) * (1 / (size / length)) - 0.5).astype(np.float32)
    before = np.floor(centre)
    share = np.rint((centre - before) * 2048)
    return np.clip([before, before + 1], 0, length - 1).astype(np.int32), np.stack([2048 - share, share]).astype(np.int32)


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int = FPS, crf: int = 18) -> None:
    """Encode uint8 RGB frames [H, W, 3] (even sizes) as H.264; the bytes depend only on the frames."""
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
