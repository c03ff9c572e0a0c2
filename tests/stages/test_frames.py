"""What the stage `frames` says of videos that are unlike the official ones."""

import json

import av
import pytest


@pytest.fixture
def frames(physion, preset, dataset, tmp_path):
    """The stage for videos of a dataset of the test's own."""

    def command(subset="test", *options):
        where = ["-p", preset, "-s", tmp_path / "store", "--set", f"fetch.root={dataset.root}", *options]
        assert physion("stage", "fetch", "--subset", subset, *where).code == 0
        return physion("stage", "frames", "--subset", subset, *where)

    return command


def with_rate(path, rate):
    """The same frames at another rate."""
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_videos_of_another_rate_are_named(frames, dataset, tmp_path):
    slow, _, fast, *_ = dataset.videos("test")
    with_rate(slow, 25)
    with_rate(fast, 60)
    ended = frames()
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert "frames-test: 2 of 6 videos do not have 30 frames per second:" in said
    for video, rate in ((slow, 25.0), (fast, 60.0)):
        assert f"{video.stem} ({rate})" in said
    (manifest,) = (tmp_path / "store").glob("artifacts/frames/*/manifest.json")
    assert json.loads(manifest.read_text())["metrics"]["other_rates"] == 2


def test_held_out_videos_that_choose_no_threshold_are_told(frames):
    assert "thresholds stay at 0.5" not in frames("readout").err
    ended = frames("readout", "--set", "frames.heldout=0.125")  # one of eight
    assert ended.code == 0
    assert "the held-out readout videos do not have both outcomes: thresholds stay at 0.5 instead of being chosen" in ended.err


DEADLY = """
import os, signal
from physion.data import video
decode = video.decode
def dying(source):
    if source.endswith({name!r}):
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(source)
video.decode = dying
"""


def test_a_decoder_that_dies_is_an_error_that_names_the_video(frames, dataset, tmp_path, monkeypatch):
    deadly = dataset.videos("test")[4]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY.format(name=deadly.name))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")  # for the worker processes
    ended = frames()
    assert ended.code == 3, ended.err
    assert f"error: {deadly.name}: the process that read it died of SIGSEGV" in ended.err
    assert "Traceback" not in ended.err
    assert not list((tmp_path / "store").glob("artifacts/frames/*/manifest.json"))
