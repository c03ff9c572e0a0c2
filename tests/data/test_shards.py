import io
import itertools
import os
import pickle
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from physion.data.clips import FrameClips, LabelledSlots, SlotClips, VideoClips, to_unit
from physion.data.layout import Video
from physion.data.shards import FrameShards, Shards, decode_jpeg, encode_frames, in_groups, index_bytes, index_item, write_shard
from physion.errors import DataError
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest
from physion.store.local import LocalStore

T, SIZE, SLOTS, WIDTH = 12, 32, 2, 4
VIDEOS = [Video(f"v{n}", f"v{n}.mp4", "Drop" if n % 2 else "Roll", bool(n % 2), heldout=n == 4) for n in range(5)]


def smooth(n):
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([np.stack([x * 7, y * 7, np.full_like(x, 20 * t + n)], -1) for t in range(T)]).astype(np.uint8)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    writer = ArtifactWriter(LocalStore(tmp_path_factory.mktemp("store")), "frames", "f" * 20)
    items, files = [], {}
    for number, group in enumerate(in_groups(VIDEOS, 2)):
        tensors = {}
        for video in group:
            n = int(video.name[1:])
            tensors |= {f"{video.name}/{kind}": array for kind, array in encode_frames(smooth(n), 95).items()}
            tensors[f"{video.name}/tokens"] = (np.arange(T * 4).reshape(T, 4) + 100 * n).astype(np.int16)
            slots = np.arange(T * SLOTS * WIDTH, dtype=np.float32).reshape(T, SLOTS, WIDTH)
            tensors[f"{video.name}/slots"] = slots + 1000 * n
            items.append(index_item(video, f"{number}.safetensors"))
        files[f"{number}.safetensors"] = writer.scratch / str(number)
        write_shard(files[f"{number}.safetensors"], tensors, tensors.items())
    files["index.json"] = writer.scratch / "index"
    files["index.json"].write_bytes(index_bytes(items))
    records = writer.add_part("all", files).files
    manifest = Manifest(
        stage="frames",
        instance="f",
        fingerprint="f" * 20,
        config={},
        inputs={},
        files=records,
        code="",
        created="2026-01-01T00:00:00+00:00",
        seconds=0,
    )
    return Artifact(writer.store, writer.publish(manifest))


def test_what_the_index_says(artifact):
    shards = Shards(artifact)
    assert shards.videos == VIDEOS
    assert [video.name for video in shards.select(heldout=True)] == ["v4"]
    assert shards.shape("tokens") == (T, 4)


def test_rows_of_an_array(artifact):
    shards = Shards(artifact)
    assert shards.read("v3", "tokens", slice(2, 4)).tolist() == [[308, 309, 310, 311], [312, 313, 314, 315]]
    assert shards.read("v3", "tokens").dtype == np.int16


def test_frames_survive_jpeg(artifact):
    frames = FrameShards(artifact)
    assert (frames.video_frames, frames.image_size) == (T, SIZE)
    images = frames.images("v2", 3, 4)
    assert images.shape == (4, SIZE, SIZE, 3)
    assert np.abs(images.astype(int) - smooth(2)[3:7]).mean() < 4
    np.testing.assert_array_equal(frames.images("v2", T - 1, 1)[0], frames.images("v2", 0, T)[-1])


def test_a_jpeg_alone():
    encoded = encode_frames(smooth(0), 95)
    offsets, data = encoded["offsets"], encoded["jpeg"].tobytes()
    assert offsets[0] == 0
    assert offsets[-1] == len(data)
    for t in range(T):
        assert np.abs(decode_jpeg(data[offsets[t] : offsets[t + 1]]).astype(int) - smooth(0)[t]).mean() < 4


@pytest.mark.parametrize("quality", [50, 95, 100])
@pytest.mark.parametrize("size", [32, 64, 100, 128])
def test_a_jpeg_is_decoded_as_pillow_decodes_it(size, quality):
    noise = np.random.default_rng(size).integers(0, 256, (3, size, size, 3), np.uint8)
    smoothed = np.stack([np.asarray(Image.fromarray(frame).resize((size, size), box=(0, 0, 9, 9))) for frame in noise])
    encoded = encode_frames(np.concatenate([noise, smoothed]), quality)
    data, offsets = encoded["jpeg"].tobytes(), encoded["offsets"]
    for start, end in itertools.pairwise(offsets):
        np.testing.assert_array_equal(decode_jpeg(data[start:end]), np.asarray(Image.open(io.BytesIO(data[start:end]))))


def test_a_jpeg_that_claims_to_be_huge_is_refused_unread():
    data = bytearray(encode_frames(smooth(0)[:1], 95)["jpeg"].tobytes())
    at = data.index(b"\xff\xc0") + 5  # height and width in the frame's header
    data[at : at + 4] = b"\xff\xdc\xff\xdc"
    with pytest.raises(ValueError, match="a frame of 65500 x 65500 pixels"):
        decode_jpeg(bytes(data))


def test_shards_go_to_another_process(artifact):
    shards = Shards(artifact)
    first = shards.read("v0", "slots")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(shards)).read("v0", "slots"), first)


def test_safetensors_reads_what_is_written_here(tmp_path):
    arrays = {
        "jpeg": np.arange(13, dtype=np.uint8),
        "empty": np.empty((0, 5), np.float32),
        "ö 'quoted\"": np.arange(6, dtype=np.int64),
        "slots": np.arange(24, dtype=np.float32).reshape(2, 3, 4).swapaxes(0, 2),
        "tokens": np.arange(8, dtype=np.int16).reshape(2, 4),
    }
    write_shard(tmp_path / "shard", [*arrays, "one that does not come"], arrays.items())
    loaded = load_file(tmp_path / "shard")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype


def test_what_safetensors_writes_is_read_here(artifact, tmp_path):
    shards = Shards(artifact)
    path = artifact.path("0.safetensors")
    tensors = load_file(path)
    save_file(tensors, tmp_path / "shard", {"some": "metadata"})
    shards.artifact = SimpleNamespace(path=lambda name: tmp_path / "shard")
    for name in ("v0", "v1"):
        for kind in ("jpeg", "offsets", "tokens", "slots"):
            for rows in (slice(None), slice(2, 7), slice(1, 12, 3), slice(5, 5), slice(-2, None), slice(9, 100)):
                np.testing.assert_array_equal(shards.read(name, kind, rows), tensors[f"{name}/{kind}"][rows])


@pytest.mark.parametrize(
    "data",
    [b"", b"\x08", b"\xff" * 16, (2).to_bytes(8, "little") + b"{}", (9).to_bytes(8, "little") + b'{"v0/slots', None],
    ids=["empty", "short", "huge", "without it", "cut", "without its end"],
)
def test_shards_that_are_damaged(artifact, tmp_path, data):
    shards = Shards(artifact)
    whole = artifact.path("0.safetensors").read_bytes()
    (tmp_path / "shard").write_bytes(whole[: len(whole) - 5] if data is None else data)
    shards.artifact = SimpleNamespace(path=lambda name: tmp_path / "shard")
    with pytest.raises(DataError, match="is not a readable shard"):
        [shards.read(video, kind) for video in ("v0", "v1") for kind in ("slots", "tokens", "jpeg", "offsets")]


def test_reading_leaves_no_maps_and_no_open_files(artifact):
    """So that resident memory does not grow with what is read, and what a cache removes frees its room."""
    shards = Shards(artifact)
    before = os.listdir("/proc/self/fd")
    arrays = [shards.read(video.name, "slots") for video in VIDEOS]
    assert len(arrays) == len(VIDEOS)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert "safetensors" not in Path("/proc/self/maps").read_text().replace("safetensors_rust", "").replace("/safetensors/", "")


def test_a_shard_is_written_array_by_array(tmp_path):
    """No more than one array is alive at a time."""
    made = []

    def arrays():
        for number in range(5):
            assert sum(array() is not None for array in made) <= 1
            array = np.zeros((10, 10), np.float32)
            made.append(weakref.ref(array))
            yield str(number), array
            del array

    write_shard(tmp_path / "shard", "01234", arrays())
    assert len(load_file(tmp_path / "shard")) == 5


def test_a_shard_that_is_no_safetensors_file(tmp_path):
    writer = ArtifactWriter(LocalStore(tmp_path), "frames", "f" * 20)
    (writer.scratch / "shard").write_bytes(b"not safetensors")
    (writer.scratch / "index").write_bytes(index_bytes([index_item(VIDEOS[0], "0")]))
    part = writer.add_part("all", {"0": writer.scratch / "shard", "index.json": writer.scratch / "index"})
    manifest = Manifest(
        stage="frames",
        instance="f",
        fingerprint="f" * 20,
        config={},
        inputs={},
        files=part.files,
        code="",
        created="2026-01-01T00:00:00+00:00",
        seconds=0,
    )
    with pytest.raises(DataError, match="is not a readable shard"):
        Shards(Artifact(writer.store, manifest)).read("v0", "slots")


def test_the_numbers_of_clips_are_the_published_ones():
    videos = [Video(str(n), "", "Drop") for n in range(15_200)]
    assert len(VideoClips(videos, 150, 1)) == 2_280_000
    assert len(VideoClips(videos, 150, 6)) == 2_204_000
    assert len(VideoClips(videos, 150, 25, stride=3)) == 1_185_600


def test_every_start_of_every_video_is_a_clip():
    clips = VideoClips(VIDEOS, T, 3, stride=2)
    places = [clips.place(n) for n in range(len(clips))]
    assert len(set(places)) == len(places) == 5 * 8
    assert {start for _, start in places} == set(range(8))


def test_clips_that_do_not_fit():
    assert len(VideoClips(VIDEOS, T, 12)) == 5
    with pytest.raises(DataError, match="clips of 5 frames, 3 apart, do not fit into videos of 12 frames"):
        VideoClips(VIDEOS, T, 5, stride=3)


def test_frame_clips(artifact):
    frames = FrameShards(artifact)
    clips = FrameClips(frames, frames.select(heldout=False), T, 3, tokens=Shards(artifact))
    batch = clips[[0, 10, 25]]  # v0 from frame 0, v1 from 0, v2 from 5
    assert batch["images"].shape == (3, 3, 3, SIZE, SIZE)
    assert batch["images"].dtype == torch.uint8
    np.testing.assert_array_equal(batch["images"][2].permute(0, 2, 3, 1).numpy(), frames.images("v2", 5, 3))
    assert batch["tokens"].dtype == torch.int64
    assert batch["tokens"][2, 0].tolist() == [220, 221, 222, 223]


def test_slot_clips(artifact):
    shards = Shards(artifact)
    clips = SlotClips(shards, shards.videos, T, frames=3, stride=4)
    batch = clips[[0, 5]]  # v0 from 0, v1 from 1
    np.testing.assert_array_equal(batch["slots"][1].numpy(), shards.read("v1", "slots")[[1, 5, 9]])


def test_labelled_slots(artifact):
    shards = Shards(artifact)
    batch = LabelledSlots(shards, shards.videos, 5)[[0, 1]]
    assert batch["slots"].shape == (2, 5, SLOTS, WIDTH)
    assert batch["labels"].tolist() == [0.0, 1.0]


def test_images_in_minus_one_to_one():
    unit = to_unit(torch.tensor([0, 255, 51], dtype=torch.uint8))
    assert unit.tolist() == pytest.approx([-1.0, 1.0, -0.6])
