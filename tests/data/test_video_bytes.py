"""The bytes of a video depend on its frames alone, whatever the memory that the encoder got held before.

Without `cpu-independent` all sizes fail here on a processor with AVX-512; see physion/data/video.py.
"""

import ctypes
import hashlib
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from physion.data.video import write_mp4

CLIPS = [(size, seed) for size in (32, 48, 64) for seed in range(10)]
M_PERTURB = -6  # malloc.h of glibc


def _frames(size, seed):
    """uint8 [40, size, size, 3]: a block moves over noise."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 90, (1, size, size, 3), np.uint8).repeat(40, 0)
    row, speed = rng.integers(2, size - 10), rng.integers(1, 3)
    for number, frame in enumerate(frames):
        column = number * speed % (size - 8)
        frame[row : row + 8, column : column + 8] = (230, 200, 30)
    return frames


def _digest(folder, size, seed):
    path = Path(folder) / f"{size}-{seed}.mp4"
    write_mp4(path, _frames(size, seed))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digests(fill, threads=1):
    """SHA-256 of each clip; None: memory as it comes, else every byte of it is `fill` until somebody writes to it."""
    libc = ctypes.CDLL(None)
    # glibc writes this number's complement; above 255, where 0 would be "off", it takes the last eight bits.
    libc.mallopt(M_PERTURB, 0 if fill is None else 256 + (fill ^ 255))
    try:
        with TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
            return dict(zip(CLIPS, pool.map(lambda clip: _digest(folder, *clip), CLIPS), strict=True))
    finally:
        libc.mallopt(M_PERTURB, 0)


@pytest.fixture(scope="module")
def expected():
    return _digests(None)


@pytest.mark.parametrize("fill", [None, 0x00, 0x01, 0x7F, 0xFE, 0xFF])
def test_in_a_used_process(expected, fill):
    assert _digests(fill) == expected


def test_in_threads_side_by_side(expected):
    assert _digests(0xFF, threads=4) == expected


def test_in_fresh_processes(expected):
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        for digests in pool.map(_digests, [None, 0x00, 0xFF], chunksize=1):
            assert digests == expected
