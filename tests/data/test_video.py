import numpy as np
import pytest
import torch
from torch.nn import functional as F

from physion.data.video import read_frames, write_mp4
from physion.errors import DataError
from physion.stages.frames import resize


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
    import av

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


def test_something_else_under_the_name_of_a_video(tmp_path):
    (tmp_path / "page.mp4").write_text("<html>not found</html>" * 100)
    with pytest.raises(DataError, match=r"page\.mp4: cannot be decoded"):
        read_frames(tmp_path / "page.mp4", 1)


def test_half_the_size_is_the_mean_of_two_by_two():
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    mean = frames.reshape(3, 32, 2, 32, 2, 3).mean((2, 4))
    np.testing.assert_array_equal(resize(frames, 32), np.rint(mean))


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 48), (90, 120, 64), (32, 32, 128), (64, 100, 32)])
def test_any_size_is_what_torch_interpolates(height, width, size):
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    plain = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=False).permute(0, 2, 3, 1)
    resized = resize(frames, size)
    assert resized.dtype == np.uint8
    assert np.abs(resized - plain.numpy()).max() <= 0.501  # rounding, and nothing else


def test_the_right_size_is_left_alone():
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(resize(frames, 32), frames)
