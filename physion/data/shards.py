"""Videos in safetensors shards: JPEG frames, tokens or slots, read in slices through memory maps.

A shard holds one tensor `<video>/<kind>` (or two) per video. `index.json` says which shard holds which video, and what later
stages need to know about it: scenario, label, split.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from physion.data.layout import Video
from physion.errors import DataError
from physion.progress import byte_count, say
from physion.store.artifacts import Artifact, json_of
from physion.store.keys import Key, shown

INDEX = "index.json"
FRAME_KINDS = ("jpeg", "offsets")
FRAME_PIXELS = 512 * 512  # the largest that the stage makes
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "I16": np.dtype("<i2"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
}
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, as in safetensors
ENTRY_BYTES = 160  # bytes per header entry, at most, besides the name: two offsets and a shape of four


def shard_name(part: str) -> str:
    """File name of the shard for a part."""
    return f"{part}.safetensors"


def write_shard(path: Path, names: Iterable[str], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write a safetensors file array by array, so that only one is in memory at a time.

    `names` are the names that `arrays` may yield: the header reserves room for all of them.
    """
    room = sum(len(json.dumps(name)) + ENTRY_BYTES for name in names)
    room += -room % 8
    header, end = {}, 0
    with path.open("wb") as file:
        file.seek(8 + room)
        for name, array in arrays:
            file.write(array.tobytes())
            place = (end, end := end + array.nbytes)
            header[name] = {"dtype": KINDS[array.dtype], "shape": array.shape, "data_offsets": place}
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= room
        file.seek(0)
        file.write(room.to_bytes(8, "little") + text.ljust(room))


@dataclass(frozen=True)
class _Place:
    """Where an array is in a shard."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    row_bytes: int


def read_entries(file: int) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begin, and its header's entry for each array. Raises ValueError for other files."""
    length, size = int.from_bytes(os.pread(file, 8, 0), "little"), os.fstat(file).st_size
    if length > min(size - 8, LONGEST_HEADER):
        raise ValueError("it has no safetensors header")
    entries = json_of(os.pread(file, length, 8))
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        (first, end), count = entry["data_offsets"], math.prod(entry["shape"])
        numbers = [first, end, *entry["shape"]]
        if not all(type(number) is int and number >= 0 for number in numbers) or not first <= end <= size - 8 - length:
            raise ValueError(f"{name} lies outside of it")  # mapping what is not there would kill the process
        if entry["dtype"] in DTYPES and end - first != count * DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"{name} has a size that does not match its shape")
    return 8 + length, entries


def _read_header(file: int) -> dict[str, _Place]:
    """Places by name. Raises ValueError, KeyError or TypeError if it is not a safetensors header."""
    start, entries = read_entries(file)
    places = {}
    for name, entry in entries.items():
        dtype, (count, *row) = DTYPES[entry["dtype"]], entry["shape"]
        places[name] = _Place(dtype, (count, *row), start + entry["data_offsets"][0], dtype.itemsize * math.prod(row))
    return places


def index_item(video: Video, shard: str) -> dict[str, Any]:
    """A video's entry in the index."""
    return {**asdict(video), "shard": shard}


def index_bytes(items: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of `index.json` for all entries, in order."""
    return json.dumps({"videos": list(items)}, indent=0).encode()


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    path: str
    scenario: str
    label: bool | None
    heldout: bool
    shard: Key


class _Index(BaseModel):
    videos: list[_Entry]


class Shards:
    """The videos of an artifact. Cheap to open and to send to another process.

    Every read maps only the rows it needs and releases them: resident memory does not grow with what was read, and a shard that
    the cache evicts frees its space at once. (Permanent maps are faster, but their pages count as this process's memory.)
    """

    def __init__(self, artifact: Artifact, index: str = INDEX) -> None:
        self.artifact = artifact
        try:
            entries = _Index.model_validate(artifact.json(index)).videos
        except ValidationError as error:
            where = f"{artifact.store.uri}/{artifact.prefix}/{index}"
            raise DataError(shown(f"{where} is damaged ({error.error_count()} fields); {artifact.advice}")) from error
        self._shard = {entry.name: entry.shard for entry in entries}
        self.videos = [Video(each.name, each.path, each.scenario, each.label, each.heldout) for each in entries]
        self._headers: dict[str, dict[str, _Place]] = {}

    def select(self, *, heldout: bool) -> list[Video]:
        """The training or the held-out videos."""
        return [video for video in self.videos if video.heldout == heldout]

    def read(self, video: str, kind: str, rows: slice = slice(None)) -> np.ndarray:
        """Some rows of a video's array, copied from a map; `rows` must not run backwards."""
        with self._open(video) as (file, header):
            place = header[f"{video}/{kind}"]
            start, stop, step = rows.indices(place.shape[0])
            shape = (max(0, stop - start), *place.shape[1:])
            first, length = place.offset + start * place.row_bytes, shape[0] * place.row_bytes
            if not length:
                return np.empty(shape, place.dtype)
            before = first % mmap.ALLOCATIONGRANULARITY
            pages = mmap.mmap(file, before + length, mmap.MAP_SHARED, mmap.PROT_READ, offset=first - before)
            return np.ndarray(shape, place.dtype, pages, before)[::step].copy()

    def slots(self, video: str, rows: slice = slice(None)) -> np.ndarray:
        """Slots of some frames of a video, float32 [T, S, D]. Raises DataError where they are not finite (`require_finite`)."""
        found = self.read(video, "slots", rows)
        inputs = self.artifact.manifest.inputs
        makers = [f"{each.instance} ({each.fingerprint})" for role, each in inputs.items() if role not in ("frames", "slots")]
        made = f", made by {' and '.join(makers)}," if makers else ""
        require_finite(found, video, "the slots", self.artifact, made, rows)
        return found

    def shape(self, kind: str) -> tuple[int, ...]:
        """Shape of the first video's array (all videos have the same)."""
        name = self.videos[0].name
        with self._open(name) as (_, header):
            return header[f"{name}/{kind}"].shape

    def prefetch(self, videos: Iterable[Video]) -> None:
        """Start fetching the shards of these videos, in order, if the store is remote."""
        self.artifact.prefetch(list(dict.fromkeys(self._shard[video.name] for video in videos)))

    def prefetch_all(self) -> None:
        """Start fetching every shard, for reading in random order, if the store is remote.

        Each process uses its own order, so that the ranks of a node share the work.
        """
        cache, files = self.artifact.store.cache, self.artifact.manifest.files
        if cache is None:
            return
        if (size := sum(record.size for record in files)) > cache.limit:
            say(
                f"{self.artifact.manifest.instance}: {byte_count(size)} are read in random order through a cache of "
                f"{byte_count(cache.limit)}, which takes forever: raise PHYSION_CACHE_LIMIT"
            )
            return
        shards = sorted(set(self._shard.values()))
        random.Random().shuffle(shards)
        self.artifact.prefetch(shards)

    @contextmanager
    def _open(self, video: str) -> Iterator[tuple[int, dict[str, _Place]]]:
        """The shard that holds a video, and where each array is in it."""
        shard = self._shard[video]
        path = self.artifact.path(shard)
        try:
            file = os.open(path, os.O_RDONLY)
            try:
                if shard not in self._headers:
                    self._headers[shard] = _read_header(file)
                yield file, self._headers[shard]
            finally:
                os.close(file)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(shown(f"{path} is not a readable shard ({error})")) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_headers": {}}


class FrameShards(Shards):
    """JPEG frames."""

    @property
    def video_frames(self) -> int:
        """Frames T per video."""
        return self.shape("offsets")[0] - 1

    @property
    def image_size(self) -> int:
        """Pixels per side of a frame."""
        return int(self.images(self.videos[0].name, 0, 1).shape[1])

    def images(self, video: str, start: int, count: int) -> np.ndarray:
        """Decode frames start, start + 1, ...: uint8 [count, H, W, 3], RGB."""
        with self._open(video):  # also turns errors in its content into clear ones
            offsets = self.read(video, "offsets", slice(start, start + count + 1))
            data = self.read(video, "jpeg", slice(int(offsets[0]), int(offsets[-1]))).tobytes()
            offsets = offsets - offsets[0]
            return np.stack([decode_jpeg(data[offsets[i] : offsets[i + 1]]) for i in range(count)])


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
    """uint8 [H, W, 3], RGB: the same pixels as Pillow, in a third of the time. Raises ValueError if it is not a frame."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if height * width > FRAME_PIXELS:  # a few hundred bytes can claim this size, and the decoder would trust them
        raise ValueError(f"a frame of {width} x {height} pixels")
    frame: np.ndarray = simplejpeg.decode_jpeg(data)
    return frame


def require_finite(
    values: np.ndarray, video: str, what: str, source: Artifact, made: str = "", frames: slice = slice(None)
) -> None:
    """Raise DataError where values [T, ...] of some frames of a video are not finite: training on them would diverge.

    source: the artifact that has the values, `made` by what else it names, or the weights that they were computed with.
    """
    finite = np.isfinite(values)
    if finite.all():
        return
    frame = (frames.start or 0) + (frames.step or 1) * int(finite.reshape(len(values), -1).all(1).argmin())
    manifest, given = source.manifest, source.manifest.metrics.get("weights", "")
    named = f"{manifest.instance}{f', which are {given},' if given else ''} in {source.store.uri}/{source.prefix}{made}"
    raise DataError(
        f"{what} of {video} are not finite from frame {frame} on, as {named} has them or makes them: such weights diverged in "
        "training, or are too large. Train them again or use others, then make again whatever they made"
    )


def in_groups(videos: Sequence[Video], size: int) -> list[list[Video]]:
    """Videos in successive groups of `size`; the last may be smaller."""
    return [list(videos[start : start + size]) for start in range(0, len(videos), size)]
