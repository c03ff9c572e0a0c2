"""Videos in safetensors shards: JPEG frames, tokens or slots, read by slices through memory maps.

A shard holds one tensor `<video>/<kind>` (or two) a video; `index.json` says which shard has which video, and carries what
later stages need to know of it: scenario, label, split.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from physion.data.layout import Video
from physion.errors import DataError
from physion.store.artifacts import Artifact

INDEX = "index.json"


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"{number:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write arrays as one safetensors file."""
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, str(path))


def index_item(video: Video, shard: str) -> dict[str, Any]:
    """A video's entry in the index."""
    return {**asdict(video), "shard": shard}


def index_bytes(items: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of `index.json` for all entries, in their order."""
    return json.dumps({"videos": list(items)}, indent=0).encode()


class Shards:
    """The videos of an artifact. Cheap to open and to send to another process: shards are mapped on first use."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        entries = artifact.json(INDEX)["videos"]
        self._shard = {entry["name"]: entry.pop("shard") for entry in entries}
        self.videos = [Video(**entry) for entry in entries]
        self._open: dict[str, Any] = {}

    def select(self, *, heldout: bool) -> list[Video]:
        """The training or the held-out videos."""
        return [video for video in self.videos if video.heldout == heldout]

    def read(self, video: str, kind: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a video's array, read from the map without loading the rest of it."""
        array: np.ndarray = self._map(video).get_slice(f"{video}/{kind}")[rows]
        return array

    def shape(self, kind: str) -> tuple[int, ...]:
        """Shape of the first video's array (all have the same)."""
        name = self.videos[0].name
        return tuple(self._map(name).get_slice(f"{name}/{kind}").get_shape())

    def _map(self, video: str) -> Any:
        shard = self._shard[video]
        if shard not in self._open:
            path = self.artifact.path(shard)
            try:
                self._open[shard] = safe_open(str(path), framework="np")
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path} is not a readable shard ({error})") from error
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


class FrameShards(Shards):
    """JPEG frames."""

    @property
    def video_frames(self) -> int:
        """Frames T of a video."""
        return self.shape("offsets")[0] - 1

    @property
    def image_size(self) -> int:
        """Pixels a side of a frame."""
        return int(self.images(self.videos[0].name, 0, 1).shape[1])

    def images(self, video: str, start: int, count: int, stride: int = 1) -> np.ndarray:
        """Decode frames start, start + stride, ...: uint8 [count, H, W, 3], RGB."""
        offsets = self.read(video, "offsets", slice(start, start + (count - 1) * stride + 2))
        data = self.read(video, "jpeg", slice(int(offsets[0]), int(offsets[-1]))).tobytes()
        offsets = offsets - offsets[0]
        return np.stack([decode_jpeg(data[offsets[i] : offsets[i + 1]]) for i in range(0, count * stride, stride)])


def encode_frames(frames_THW3: np.ndarray, quality: int) -> dict[str, np.ndarray]:
    """JPEG frames of one video: `jpeg` uint8 [bytes] and `offsets` int64 [T + 1]."""
    encoded = []
    for frame in frames_THW3:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        encoded.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {"jpeg": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets}


def decode_jpeg(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3], RGB."""
    return np.asarray(Image.open(io.BytesIO(data)))


def in_groups(videos: Sequence[Video], size: int) -> list[list[Video]]:
    """Videos in successive groups of `size`; the last may be smaller."""
    return [list(videos[start : start + size]) for start in range(0, len(videos), size)]
