"""How two versions of a file differ: in which tensors, values, frames or bytes, and by how much."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from physion.data.shards import decode_jpeg, read_entries
from physion.data.video import decode
from physion.store.artifacts import Artifact

CHUNK = 1 << 22  # bytes of each file in memory at once


@dataclass(frozen=True)
class Change:
    """A tensor, value, frame or range of bytes that differs."""

    where: str
    detail: str = ""
    """How many elements (for a JPEG video: frames), or the old and the new value."""
    largest: float | None = None
    """The largest absolute difference of numbers, infinite if only one is NaN, or of pixels (0 to 255)."""

    def __str__(self) -> str:
        return f"{self.where} ({self.detail})" if self.detail else self.where


@dataclass(frozen=True)
class Differences:
    """`count` of `of` tensors, values, frames or bytes of a file differ: none if equal content is only encoded differently."""

    unit: str
    count: int
    of: int
    changes: list[Change]

    @property
    def largest(self) -> float | None:
        """The largest difference of all changes."""
        return max((change.largest for change in self.changes if change.largest is not None), default=None)

    def __str__(self) -> str:
        if not self.count:
            return f"the same {self.unit} in other bytes"
        worst = next(change for change in self.changes if change.largest == self.largest)
        by = ":" if self.largest is None else f", by up to {self.largest:.3g} in"
        return f"{self.count} of {self.of} {self.unit}{by} {worst}"


def differences(name: str, a: Artifact, b: Artifact) -> Differences | str:
    """How file `name` of two artifacts differs, compared by the type that its suffix says, otherwise byte by byte; or that only
    one has it.

    Raises DataError if a file does not match its manifest.
    """
    if name not in a.names() or name not in b.names():
        return "only in A" if name in a.names() else "only in B"
    with a.path(name).open("rb") as one, b.path(name).open("rb") as other:
        try:
            match Path(name).suffix:
                case ".safetensors":
                    return _tensors(one, other)
                case ".json":
                    return differing_values(json.load(one), json.load(other))
                case ".csv":
                    return differing_values(_rows(one), _rows(other))
                case ".mp4":
                    return _frames(decode(one), decode(other))
        except Exception:  # noqa: S110
            pass  # it is not what its name says, whatever error its reader raises
        return _bytes(one, other)


def differing_values(a: Any, b: Any) -> Differences:
    """How two JSON values differ; places are paths such as `modes.rollout.n`."""
    ours, theirs = dict(_leaves(a)), dict(_leaves(b))
    paths = list(dict.fromkeys([*ours, *theirs]))
    pairs = [(path, ours.get(path, "nothing"), theirs.get(path, "nothing")) for path in paths]
    changes = [Change(path, f"{one} → {other}", _apart(one, other)) for path, one, other in pairs if one != other]
    return Differences("values", len(changes), len(paths), changes)


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    branches = tree if isinstance(tree, dict) else dict(enumerate(tree)) if isinstance(tree, list) else {}
    for key, branch in branches.items():
        yield from _leaves(branch, f"{path}.{key}" if path else f"{key}")
    if not branches:
        yield path, tree if isinstance(tree, str) else json.dumps(tree)


def _apart(a: str, b: str) -> float | None:
    try:
        apart = abs(float(a) - float(b))
    except ValueError:
        return None
    return apart if math.isfinite(apart) else math.inf


def _rows(file: BinaryIO) -> dict[str, dict[str, str]]:
    """The rows below the header, by their first cell, which is the video in our tables. Raises ValueError for other tables."""
    header, *rows = csv.reader(io.StringIO(file.read().decode()))
    if not rows or len({row[0] for row in rows}) < len(rows):
        raise ValueError("there are no rows, or some share their first cell")
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def _frames(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> Differences:
    """Compare pictures, uint8 [H, W, 3], one by one."""
    number, changes = -1, []
    for number, (one, other) in enumerate(zip_longest(a, b)):
        shapes = ["nothing" if frame is None else str(frame.shape) for frame in (one, other)]
        if shapes[0] != shapes[1]:
            changes.append(Change(f"frame {number}", " → ".join(shapes)))
        elif largest := int(np.abs(one.astype(np.int16) - other).max()):
            changes.append(Change(f"frame {number}", largest=largest))
    return Differences("frames", len(changes), number + 1, changes)


def _tensors(a: BinaryIO, b: BinaryIO) -> Differences:
    (start_a, ours), (start_b, theirs) = (read_entries(file.fileno()) for file in (a, b))
    names, changes = list(dict.fromkeys([*ours, *theirs])), []
    videos = {name.removesuffix("/jpeg") for name in ours.keys() & theirs.keys() if name.endswith("/jpeg")}
    for video in sorted(videos):
        one, other = _jpegs(a, start_a, ours, video), _jpegs(b, start_b, theirs, video)
        if one != other:
            frames = _frames(map(decode_jpeg, one), map(decode_jpeg, other))
            changes.append(Change(f"{video}/jpeg", f"{frames.count} of {frames.of} frames", frames.largest or 0))
    for name in names:
        kinds = [f"{each[name]['dtype']} {each[name]['shape']}" if name in each else "nothing" for each in (ours, theirs)]
        if name.rpartition("/")[0] in videos:
            continue
        if kinds[0] != kinds[1]:
            changes.append(Change(name, " → ".join(kinds)))
            continue
        first, last = ours[name]["data_offsets"]
        a.seek(start_a + first)
        b.seek(start_b + theirs[name]["data_offsets"][0])
        count, of, largest = _elements(ours[name]["dtype"], _chunks(a, b, last - first))
        if count:
            changes.append(Change(name, f"{count} of {of}", largest))
    return Differences("tensors", len(changes), len(names), changes)


def _jpegs(file: BinaryIO, start: int, entries: dict[str, Any], video: str) -> list[bytes]:
    """The encoded frames of a video in a shard."""
    places = [entries[f"{video}/{kind}"]["data_offsets"] for kind in ("offsets", "jpeg")]
    offsets, data = (os.pread(file.fileno(), last - first, start + first) for first, last in places)
    return [data[first:last] for first, last in pairwise(np.frombuffer(offsets, "<i8"))]


def _elements(dtype: str, chunks: Iterable[tuple[bytes, bytes]]) -> tuple[int, int, float]:
    """How many elements of a tensor differ, of how many, and by how much at most. NaN equals NaN."""
    known = re.fullmatch(r"[FIU](8|16|32|64)", dtype)
    kind = np.dtype("<u2" if dtype == "BF16" else f"<{dtype[0].lower()}{int(dtype[1:]) // 8}" if known else "u1")
    count, of, largest = 0, 0, 0.0
    for pair in chunks:
        x, y = (np.frombuffer(data, kind) for data in pair)
        if dtype == "BF16":  # the upper half of a float32
            x, y = ((half.astype("<u4") << 16).view("<f4") for half in (x, y))
        differs = (x != y) & ((x == x) | (y == y))
        with np.errstate(invalid="ignore", over="ignore"):
            by = np.abs(x[differs].astype(np.float64) - y[differs].astype(np.float64))
        count, of = count + len(by), of + len(x)
        largest = max(largest, float(np.nan_to_num(by, nan=np.inf, posinf=np.inf).max(initial=0)))
    return count, of, largest


def _bytes(a: BinaryIO, b: BinaryIO) -> Differences:
    sizes = [os.fstat(file.fileno()).st_size for file in (a, b)]
    count, first, done = max(sizes) - min(sizes), min(sizes), 0
    a.seek(0)
    b.seek(0)
    for one, other in _chunks(a, b, min(sizes)):
        places = np.flatnonzero(np.frombuffer(one, "u1") != np.frombuffer(other, "u1"))
        first = min([first, *(done + places[:1])])
        count, done = count + len(places), done + len(one)
    return Differences("bytes", count, max(sizes), [Change(f"from byte {first} on")])


def _chunks(a: BinaryIO, b: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The next `size` bytes of two files, in chunks."""
    for left in range(size, 0, -CHUNK):
        yield a.read(min(CHUNK, left)), b.read(min(CHUNK, left))
