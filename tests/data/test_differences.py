"""How two versions of a file differ, against the same worked out the plain way."""

import json
import uuid

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from physion.data import differences as module
from physion.data.differences import differences
from physion.data.shards import encode_frames, write_shard
from physion.data.video import read_frames, write_mp4
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest
from physion.store.local import LocalStore

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def compare(tmp_path):
    """Publish two versions of a file, each written by a function of its path, and say how they differ."""

    def of(name, *writes):
        artifacts = []
        for write in writes:
            output = ArtifactWriter(LocalStore(tmp_path / uuid.uuid4().hex), "any", "f" * 20)
            path = output.scratch / "file"
            write(path)
            part = output.add_part("0", {name: path})
            facts = {"stage": "any", "instance": "any", "fingerprint": "f" * 20, "config": {}, "inputs": {}}
            manifest = output.publish(
                Manifest(**facts, files=part.files, code="", created="2026-01-01T00:00:00+00:00", seconds=0)
            )
            artifacts.append(Artifact(output.store, manifest))
            output.close()
        return differences(name, *artifacts)

    return of


def tensors(**values):
    return lambda path: save_file({name: value.contiguous().clone() for name, value in values.items()}, path)


def text(content):
    return lambda path: path.write_text(content)


def facts(found):
    return {change.where: (change.detail, change.largest) for change in found.changes}


KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
KINDS += [torch.uint8, torch.bool]


@pytest.mark.parametrize("chunk", [64, module.CHUNK])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_elements_of_a_tensor(compare, monkeypatch, dtype, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)  # in many pieces, and in one
    rng = np.random.default_rng(0)
    before = torch.tensor(rng.integers(0, 100, (7, 11))).to(dtype)
    after = before.clone()
    after[rng.random((7, 11)) < 0.3] = 1
    expected = (after.double() - before.double()).abs()
    count = int((expected != 0).sum())
    assert 0 < count < 77
    found = compare("x.safetensors", tensors(same=before, w=before), tensors(same=before, w=after))
    assert (found.unit, found.count, found.of) == ("tensors", 1, 2)
    assert facts(found) == {"w": (f"{count} of 77", float(expected.max()))}


def test_a_difference_smaller_than_the_dtype_can_hold(compare):
    """1e-6 beside 1000 in float64, and two float32s whose difference float32 would round."""
    one, other = np.float32(16777216.0), np.float32(0.1)
    found = compare("x.safetensors", tensors(w=torch.tensor([one])), tensors(w=torch.tensor([other])))
    assert found.largest == float(one) - float(other) != float(one - other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number(compare, dtype):
    before = torch.tensor([NAN, INF, NAN, 1.0, INF, 2.0], dtype=dtype)
    alike = compare("x.safetensors", tensors(w=before, v=before[:1]), tensors(w=before, v=torch.tensor([1.0], dtype=dtype)))
    assert facts(alike) == {"v": ("1 of 1", INF)}  # NaN is as NaN, and not as 1
    assert str(alike) == "1 of 2 tensors, by up to inf in v (1 of 1)"
    after = torch.tensor([NAN, INF, 3.0, 1.0, -INF, 2.5], dtype=dtype)
    assert facts(compare("x.safetensors", tensors(w=before), tensors(w=after))) == {"w": ("3 of 6", INF)}


def test_tensors_that_are_gone_or_of_another_kind(compare):
    x = torch.zeros(2, 3)
    found = compare(
        "x.safetensors",
        tensors(a=x, kind=x, shape=x, scalar=x[0, 0]),
        tensors(b=x, kind=x.half(), shape=x.T, scalar=x[0, 0]),
    )
    assert (found.count, found.of) == (4, 5)
    assert facts(found) == {
        "a": ("F32 [2, 3] → nothing", None),
        "b": ("nothing → F32 [2, 3]", None),
        "kind": ("F32 [2, 3] → F16 [2, 3]", None),
        "shape": ("F32 [2, 3] → F32 [3, 2]", None),
    }


def test_a_dtype_that_numpy_does_not_know_is_compared_as_bytes(compare):
    before = torch.tensor([1.0, 2.0, 3.0]).to(torch.float8_e4m3fn)
    after = torch.tensor([1.0, 2.5, 3.0]).to(torch.float8_e4m3fn)
    (change,) = compare("x.safetensors", tensors(w=before), tensors(w=after)).changes
    assert (change.where, change.detail) == ("w", "1 of 3")


def test_equal_tensors_in_other_bytes(compare):
    x = {"w": torch.zeros(2)}
    found = compare("x.safetensors", lambda p: save_file(x, p, {"k": "a"}), lambda p: save_file(x, p, {"k": "b"}))
    assert (found.count, str(found)) == (0, "the same tensors in other bytes")


@pytest.fixture
def clip():
    y, x = np.mgrid[:32, :48]
    return np.stack([np.stack([x * 4, y * 4, np.full_like(x, 8 * t)], -1) for t in range(6)]).astype(np.uint8)


def shard(*clips, quality=90):
    def write(path):
        arrays = [(f"v{i}/{k}", array) for i, clip in enumerate(clips) for k, array in encode_frames(clip, quality).items()]
        write_shard(path, [name for name, _ in arrays], arrays)

    return write


def test_videos_of_a_shard_of_jpegs(compare, clip):
    changed = clip.copy()
    changed[2, :8, :8] = 255
    found = compare("x.safetensors", shard(clip, clip), shard(clip, changed))
    (change,) = found.changes
    assert (change.where, change.detail) == ("v1/jpeg", "1 of 6 frames")
    assert 100 < change.largest <= 255
    shorter = compare("x.safetensors", shard(clip), shard(clip[:4]))
    assert facts(shorter) == {"v0/jpeg": ("2 of 6 frames", 0)}


@pytest.fixture
def videos(tmp_path, clip):
    """Paths of a video and of one whose last two frames are others."""
    changed = clip.copy()
    changed[4:, :8, :8] = 255
    paths = [tmp_path / "before.mp4", tmp_path / "after.mp4"]
    for path, frames in zip(paths, (clip, changed), strict=True):
        write_mp4(path, frames)
    return paths


def content(data):
    return lambda path: path.write_bytes(data)


def test_frames_of_a_video(compare, videos):
    found = compare("x.mp4", *(content(path.read_bytes()) for path in videos))
    apart = np.abs(np.subtract(*(read_frames(path, 6).astype(int) for path in videos))).max((1, 2, 3))
    assert apart[4:].min() > 100
    assert facts(found) == {f"frame {t}": ("", apart[t]) for t in range(6) if apart[t]}
    assert (found.count, found.of, found.largest) == (np.count_nonzero(apart), 6, apart.max())


def test_a_shorter_video(compare, videos, clip):
    found = compare("x.mp4", content(videos[0].read_bytes()), lambda path: write_mp4(path, clip[:5]))
    assert facts(found)["frame 5"] == ("(32, 48, 3) → nothing", None)
    assert found.of == 6


def test_equal_pictures_in_other_bytes(compare, videos):
    data = videos[0].read_bytes()
    found = compare("x.mp4", content(data), content(data + b"\0\0\0\x08free"))  # an empty box
    assert (found.count, found.of, str(found)) == (0, 6, "the same frames in other bytes")


def test_values_of_json(compare):
    before = {"same": 1, "modes": {"full": {"n": [1, 2.5]}}, "gone": None, "word": "a", "flag": True, "bad": NAN}
    after = {"same": 1, "modes": {"full": {"n": [1, 2.75]}}, "new": [], "word": "b", "flag": 1, "bad": 1.0}
    found = compare("x.json", text(json.dumps(before)), text(json.dumps(after, indent=3)))
    assert (found.count, found.of) == (6, 8)
    assert facts(found) == {
        "modes.full.n.1": ("2.5 → 2.75", 0.25),
        "gone": ("null → nothing", None),
        "new": ("nothing → []", None),
        "word": ("a → b", None),
        "flag": ("true → 1", None),
        "bad": ("NaN → 1.0", INF),
    }
    assert str(compare("x.json", text("[1]"), text("[1 ]"))) == "the same values in other bytes"


def test_cells_of_a_table(compare):
    before = "video,scenario,full-0\na,Drop,0.5\nb,Roll,0.25\n"
    after = "video,scenario,full-0\nnew,Drop,0.1\na,Drop,0.5\nb,Link,0.75\n"
    found = compare("x.csv", text(before), text(after))
    assert facts(found) == {
        "b.scenario": ("Roll → Link", None),
        "b.full-0": ("0.25 → 0.75", 0.5),
        "new.video": ("nothing → new", None),
        "new.scenario": ("nothing → Drop", None),
        "new.full-0": ("nothing → 0.1", None),
    }


@pytest.mark.parametrize("chunk", [3, module.CHUNK])
@pytest.mark.parametrize("name", ["x.png", "x.mp4", "x.csv", "x.json", "x.safetensors"])
def test_bytes_of_anything_else(compare, monkeypatch, name, chunk):
    """Also of a file that is not what its name says."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    found = compare(name, text("<html>hello there"), text("<html>hallo where?!"))
    assert (found.unit, found.count, found.of) == ("bytes", 4, 19)
    assert str(found) == "4 of 19 bytes: from byte 7 on"
    longer = compare(name, text("<html>hello"), text("<html>hello!"))
    assert (longer.count, facts(longer)) == (1, {"from byte 11 on": ("", None)})


def test_rows_that_share_their_first_cell_are_no_table_of_ours(compare):
    assert compare("x.csv", text("a,b\n1,2\n1,3\n"), text("a,b\n1,2\n1,4\n")).unit == "bytes"
