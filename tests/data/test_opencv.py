"""Frames are those of the published code, which reads with OpenCV: VideoCapture, INTER_LINEAR, imwrite. Not a bit differs."""

import io
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from physion.data.shards import encode_frames
from physion.data.video import frame_rate, read_frames, resize

FRAMES = 12


def moving(height, width):
    """RGB frames with what resizing, chroma and color ranges can get wrong: gradients, noise, saturated edges; all move."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    noise = noise.repeat(8, 0).repeat(8, 1)[:height, :width]
    for t in range(FRAMES):
        frame = np.stack([x * 3 + 5 * t, y * 2 + 3 * t, (x + y) // 2 + 4 * t], -1).astype(np.uint8)
        frame = np.where((x > width // 2)[..., None], noise, frame)
        frame[height // 4 : height // 2, 3 * t : 3 * t + width // 5] = (250, 10, 10)
        frame[height // 2 : height * 2 // 3, 2 * t : 2 * t + width // 6] = (240, 240, 0)
        yield np.roll(frame, t, 1)


def encode(
    path, height=96, width=128, pix_fmt="yuv420p", codec="libx264", rate=30, x264="", times=None, rotation=0, audio=False
):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "18", "x264-params": x264})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=44100, layout="mono") if audio else None
        if times:
            stream.codec_context.time_base = Fraction(1, 600)
        for number, array in enumerate(moving(height, width)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 600)
            container.mux(stream.encode(frame))
            if sound:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1470), np.float32), format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = 44100, 1470 * number, Fraction(1, 44100)
                container.mux(sound.encode(samples))
        for each in [stream, *([sound] if sound else [])]:
            container.mux(each.encode())


# How each is made, what the decoder makes of it (to see that it is of its kind), and frames a second.
KINDS = {
    "512 square": ({"height": 512, "width": 512}, "yuv420p", 30),
    "no multiple of 16": ({"height": 102, "width": 150}, "yuv420p", 30),
    "odd": ({"height": 131, "width": 241, "pix_fmt": "yuv444p"}, "yuv444p", 30),
    "odd with half the colors": ({"height": 131, "width": 241, "codec": "mpeg4"}, "yuv420p", 30),
    "yuv444": ({"pix_fmt": "yuv444p"}, "yuv444p", 30),
    "yuv422": ({"pix_fmt": "yuv422p"}, "yuv422p", 30),
    "full range": ({"pix_fmt": "yuvj420p"}, "yuvj420p", 30),
    "bt709": ({"x264": "colormatrix=bt709:colorprim=bt709:transfer=bt709"}, "yuv420p", 30),
    "10 bit": ({"pix_fmt": "yuv420p10le"}, "yuv420p10le", 30),
    "B-frames": ({"x264": "bframes=4:b-adapt=0"}, "yuv420p", 30),
    "25 fps": ({"rate": 25}, "yuv420p", 25),
    "29.97 fps": ({"rate": Fraction(30000, 1001)}, "yuv420p", 29.97),
    "60 fps": ({"rate": 60}, "yuv420p", 60),
    "variable rate": ({"times": [0, 20, 30, 70, 90, 110, 115, 160, 180, 200, 230, 240]}, "yuv420p", 28.8),
    "with audio": ({"audio": True}, "yuv420p", 30),
    "turned": ({"rotation": 90}, "yuv420p", 30),
    "HEVC": ({"codec": "libx265"}, "yuv420p", 30),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_video(tmp_path, kind):
    how, pix_fmt, rate = KINDS[kind]
    path = tmp_path / "clip.mp4"
    encode(path, **how)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert {frame.format.name for frame in frames} == {pix_fmt}
    assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames) or kind != "B-frames"
    assert frame_rate(path) == rate

    capture, published = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        published.append(read[1])
    assert len(published) == FRAMES
    shape = (how.get("height", 96), how.get("width", 128), 3)
    assert published[0].shape == ((128, 96, 3) if kind == "turned" else shape)
    np.testing.assert_array_equal(read_frames(path, FRAMES), np.stack(published)[..., ::-1])
    for size in (128, 100, 48):
        smaller = [cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR)[..., ::-1] for frame in published]
        np.testing.assert_array_equal(read_frames(path, FRAMES, size), np.stack(smaller))


def test_every_size():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width, size = (int(length) for length in rng.integers(1, 300, 3))
        frame = rng.integers(0, 256, (height, width, 3), np.uint8)
        np.testing.assert_array_equal(resize(frame, size), cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR))


def test_the_same_jpeg():
    frames = np.stack([resize(frame, 128) for frame in moving(512, 512)])
    encoded = encode_frames(frames, 95)  # the quality of cv2.imwrite
    for number, (first, last) in enumerate(zip(encoded["offsets"][:-1], encoded["offsets"][1:], strict=True)):
        published = cv2.imdecode(cv2.imencode(".jpg", frames[number][..., ::-1])[1], cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded["jpeg"][first:last].tobytes()))), published)
