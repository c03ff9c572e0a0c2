import subprocess
import sys
from collections import Counter

import av
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from physion.data.video import decode, read_frames, resize, write_mp4
from physion.errors import DataError


@pytest.fixture(scope="module")
def frames():
    y, x = np.mgrid[:64, :64]
    return np.stack([np.stack([x * 4, y * 4, np.full_like(x, 8 * t)], -1) for t in range(20)]).astype(np.uint8)


@pytest.fixture
def mp4(tmp_path, frames):
    write_mp4(tmp_path / "clip.mp4", frames)
    return tmp_path / "clip.mp4"


def test_what_is_encoded_is_decoded(mp4, frames):
    decoded = read_frames(mp4, 20)
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 4
    np.testing.assert_array_equal(read_frames(mp4, 5), decoded[:5])


def test_the_same_frames_give_the_same_bytes(tmp_path, mp4, frames):
    write_mp4(tmp_path / "again.mp4", iter(frames))
    assert (tmp_path / "again.mp4").read_bytes() == mp4.read_bytes()


def test_a_short_video(mp4):
    with pytest.raises(DataError, match=r"clip\.mp4: has 20 frames, 150 are needed"):
        read_frames(mp4, 150)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_a_truncated_video(mp4, share):
    data = mp4.read_bytes()
    mp4.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"clip\.mp4: cannot be decoded after 0 frames"):
        read_frames(mp4, 20)


def test_a_video_whose_end_is_lost_although_its_index_is_in_front(tmp_path, frames):
    path = tmp_path / "fast.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert len(read_frames(path, 20)) == 20
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"fast\.mp4: (has|cannot be decoded after) \d+ frames"):
        read_frames(path, 20)


def test_a_video_with_damage_in_the_middle(mp4):
    data = bytearray(mp4.read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + 400] = bytes(b ^ 0x5A for b in data[start : start + 400])
    mp4.write_bytes(data)
    with pytest.raises(DataError, match=r"clip\.mp4"):
        read_frames(mp4, 20)


def test_a_video_of_an_unknown_codec(mp4):
    mp4.write_bytes(mp4.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(DataError, match=r"clip\.mp4: cannot be decoded after 0 frames \(its codec is unknown\)"):
        read_frames(mp4, 20)


def test_something_else_under_the_name_of_a_video(tmp_path):
    (tmp_path / "page.mp4").write_text("<html>not found</html>" * 100)
    with pytest.raises(DataError, match=r"page\.mp4: cannot be decoded"):
        read_frames(tmp_path / "page.mp4", 1)


def moving():
    """RGB frames of noise with a block that moves over it."""
    clip = np.random.default_rng(0).integers(0, 90, (1, 128, 128, 3), np.uint8).repeat(20, 0)
    for number, frame in enumerate(clip):
        frame[40:60, 2 * number : 2 * number + 20] = (230, 200, 30)
    return clip


def test_damaged_bytes_are_seldom_taken_for_a_picture(mp4):
    """Where the decoder may guess, nearly all of them are."""
    write_mp4(mp4, moving())
    data, rng = mp4.read_bytes(), np.random.default_rng(0)
    start = data.index(b"mdat") + 4
    stop = start - 8 + int.from_bytes(data[start - 8 : start - 4], "big")
    whole, found = read_frames(mp4, 20), Counter()
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(start, stop)] ^= rng.integers(1, 256)
        mp4.write_bytes(damaged)
        try:
            found["the same" if np.array_equal(read_frames(mp4, 20), whole) else "other pixels"] += 1
        except DataError:
            found["noticed"] += 1
    assert found["other pixels"] < 0.25 * 60
    assert found["noticed"] > 0.6 * 60


def flat(path, height, width, frames):
    """A video of one color, fast to make."""
    write_mp4(path, (np.full((height, width, 3), 90, np.uint8) for _ in range(frames)))


MEMORY = """
import re, sys
from pathlib import Path
from physion.data.video import read_frames
def now(what):
    return int(re.search(rf"{what}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
small, large = map(Path, sys.argv[1:])
read_frames(small, 60, 128)
Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is counted anew
before = now("VmRSS")
read_frames(large, 60, 128)
print(now("VmHWM") - before)
"""


def test_memory_does_not_grow_with_the_picture(tmp_path):
    """One after the other in one process: how much of the libraries is in memory depends on what else the machine does."""
    flat(tmp_path / "small.mp4", 64, 64, 60)
    flat(tmp_path / "large.mp4", 720, 1280, 60)
    command = [sys.executable, "-c", MEMORY, tmp_path / "small.mp4", tmp_path / "large.mp4"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    more = int(ended.stdout) / 1024
    assert more < 60, more  # MiB; the frames alone have 158


def test_a_picture_beyond_the_bound(tmp_path):
    path = tmp_path / "large.mp4"
    flat(path, 2048, 2050, 1)
    with pytest.raises(DataError, match=r"large\.mp4: .*2050x2048 pixels, more than 4194304"):
        read_frames(path, 1, 128)
    flat(path, 2048, 2048, 1)
    assert read_frames(path, 1, 128).shape == (1, 128, 128, 3)


def headers(extradata):
    """The parameter sets of an avcC box (one of each kind), as they may also stand in the stream."""
    size = int.from_bytes(extradata[6:8], "big")
    picture = extradata[8 + size + 1 :]
    return b"".join(
        part[:2].rjust(4, b"\0") + part[2 : 2 + int.from_bytes(part[:2], "big")] for part in (extradata[6:], picture)
    )


@pytest.mark.parametrize("width", [128, 2304])
def test_pictures_that_grow_in_the_stream(tmp_path, width):
    """A bound that is held against the container's words alone would not see it."""
    with av.open(str(tmp_path / "growing.mp4"), "w") as output:
        stream = None
        for number, (height, wide) in enumerate([(64, 64), (2048, width)]):
            flat(tmp_path / "part.mp4", height, wide, 1)
            with av.open(str(tmp_path / "part.mp4")) as part:
                stream = stream or output.add_stream_from_template(part.streams.video[0])
                known = headers(part.streams.video[0].codec_context.extradata)
                packet = av.Packet(known + bytes(next(part.demux(video=0))))
            packet.pts = packet.dts = 512 * number
            packet.stream, packet.is_keyframe = stream, True
            output.mux(packet)
    if width == 128:
        assert [frame.shape for frame in decode(str(tmp_path / "growing.mp4"))] == [(64, 64, 3), (2048, 128, 3)]
    else:
        with pytest.raises(DataError, match=r"growing\.mp4: cannot be decoded after \d frames"):
            read_frames(tmp_path / "growing.mp4", 2, 64)


def test_half_the_size_is_the_mean_of_two_by_two():
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    total = frame.reshape(32, 2, 32, 2, 3).sum((1, 3), dtype=int)
    np.testing.assert_array_equal(resize(frame, 32), (total + 2) // 4)


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 48), (90, 120, 64), (32, 32, 128), (64, 100, 32)])
def test_any_size_is_what_torch_interpolates(height, width, size):
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    plain = F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=False)[0].permute(1, 2, 0)
    resized = resize(frame, size)
    assert resized.dtype == np.uint8
    assert np.abs(resized - plain.numpy()).max() < 1  # OpenCV rounds twice, and weights to 11 bits


def test_the_right_size_is_left_alone():
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(resize(frame, 32), frame)
