"""The official videos under their true names, and the study from archives and folders as people have them to a report."""

import gzip
import html
import io
import itertools
import json
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_fetch import fetched, original, server, tar_of_the_rest, zip_of_test_videos  # noqa: F401 (a fixture)

from physion.config.schema import SUBSETS
from physion.data.layout import GLITCHY, label_key, write_labels
from physion.data.video import write_mp4
from physion.stages.fetch import GLITCHY_NAMES

COUNTS = {"training": 15_998, "readout": 8_005, "test": 1_174}


FRAMES, SIZE = 12, 32  # as tests/conftest.py has them


def stem(path):
    return path.rsplit("/", 1)[1].removesuffix(".mp4")


@pytest.fixture(scope="session")
def official(official_names, tmp_path_factory):
    """Physion.zip, PhysionTrainMP4s.tar.gz and readout_labels.csv as published, but for what is in the videos."""
    path = tmp_path_factory.mktemp("official") / "small.mp4"
    write_mp4(path, np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8))
    video = path.read_bytes()
    zipped, tarred = io.BytesIO(), io.BytesIO()
    outcome = itertools.cycle([True, False])
    with zipfile.ZipFile(zipped, "w") as file, gzip.GzipFile(fileobj=tarred, mode="w", compresslevel=1) as packed:
        test = [name for name in official_names if name.startswith("PhysionTestMP4s/")]
        rows = [(label_key("test", stem(name)), next(outcome)) for name in test]
        file.writestr("Physion/labels.csv", write_labels(rows))
        for name in test:
            _, scenario, folder, mp4 = name.split("/")
            seen_by_people = mp4.replace("-redyellow", "")
            file.writestr(f"Physion/{scenario}/{folder}/{mp4}", video)
            file.writestr(f"Physion/{scenario}/mp4s/{seen_by_people}", video)
            file.writestr(f"Physion/{scenario}/maps/{seen_by_people.removesuffix('.mp4')}_map.png", b"a map")
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in official_names:
                if name.startswith("PhysionTrainMP4s/"):
                    entry = tarfile.TarInfo(f"./all/{name.partition('/')[2]}")
                    entry.size = len(video)
                    tar.addfile(entry, io.BytesIO(video))
    readout = [(label_key("readout", stem(name)), next(outcome)) for name in official_names if "_readout_MP4s/" in name]
    return {
        "/Physion.zip": zipped.getvalue(),
        "/PhysionTrainMP4s.tar.gz": tarred.getvalue(),
        "/readout_labels.csv": write_labels(readout),
    }


@pytest.fixture
def cut(preset):
    """What makes the preset paper small enough for a test: sizes, steps, frames."""
    sections = {
        name: section for name, section in yaml.safe_load(Path(preset).read_text()).items() if name not in ("dataset", "fetch")
    }
    return [
        f"--set={name}={yaml.safe_dump(section, default_flow_style=True, width=10_000)}" for name, section in sections.items()
    ]


def sources(server):  # noqa: F811
    train = server.url("PhysionTrainMP4s.tar.gz")
    by_subset = {"training": [train], "readout": [train, server.url("readout_labels.csv")], "test": [server.url("Physion.zip")]}
    return ["--set", f"fetch.archives={yaml.safe_dump(by_subset, default_flow_style=True, width=10_000)}"]


@pytest.fixture
def quick(tmp_path):
    """A folder for 25,000 files, in memory where there is such a file system: a disk would be asked 75,000 times to write."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def test_all_official_videos(physion, official, server, quick, cut, monkeypatch):  # noqa: F811
    """The default path of the preset paper, with a connection that breaks, up to the frames of the test videos."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    server.files, server.breaks = official, 1
    where = ["-p", "paper", "-s", quick, *sources(server), *cut, "--set=frames.videos-per-shard=200"]
    ended = physion("stage", "fetch", "--json", *where)
    assert ended.code == 0, ended.err
    told = {row["artifact"].rsplit("/", 1)[1]: row["metrics"] for row in json.loads(ended.out)["result"]}
    manifests = [json.loads(path.read_bytes()) for path in quick.glob("artifacts/fetch/*/manifest.json")]
    assert {m["instance"].removeprefix("fetch-"): m["metrics"]["videos"] for m in manifests} == COUNTS
    assert all(told[m["fingerprint"]] == m["metrics"] for m in manifests)
    (test,) = (m["metrics"] for m in manifests if m["instance"] == "fetch-test")
    assert (test["left_out"], test["glitchy"]) == (26, "the authors' list, as shipped")
    names = [name for name, asked in server.asked]
    assert sorted(names) == sorted([*official, "/PhysionTrainMP4s.tar.gz"])  # which came in two pieces, for two subsets
    assert "fetch-test: 26 of 1,200 left out (the authors' list, as shipped)" in physion("plan", *where).out
    ended = physion("stage", "frames", "--subset", "test", *where)
    assert ended.code == 0, ended.err
    assert "videos 1,174" in ended.out


def as_published(root, pristine):
    """Physion.zip unpacked to a folder named PhysionTestMP4s, the labels put into PhysionTrainMP4s: the published page."""
    shutil.copytree(pristine.root, root)


def as_unpacked(root, pristine):
    """Both archives unpacked where they lie; the labels beside what came out."""
    root.mkdir()
    with zipfile.ZipFile(zip_of_test_videos(root / "Physion.zip", pristine.root)) as file:
        file.extractall(root)
    shutil.copytree(pristine.root / "PhysionTrainMP4s", root / "train")
    (root / "train" / "readout_labels.csv").rename(root / "readout_labels.csv")
    (root / "Physion" / "manual_stim_evaluation_glitchy_test_stims.txt").write_text("pilot_drop_0002\r\nnobody\r\n")


def one_in_the_other(root, pristine):
    """The folder of the archive left inside the one that it was to be."""
    shutil.copytree(pristine.root / "PhysionTestMP4s", root / "PhysionTestMP4s" / "Physion")
    shutil.copytree(pristine.root / "PhysionTrainMP4s", root / "PhysionTrainMP4s")


def linked(root, pristine):
    """Every folder elsewhere, behind links; no folder above the scenarios' own; names from a camera."""
    elsewhere = root.with_name("elsewhere")
    shutil.copytree(pristine.root, elsewhere)
    root.mkdir()
    for path in [*elsewhere.glob("PhysionTrainMP4s/*"), *elsewhere.glob("PhysionTestMP4s/*")]:
        (root / path.name).symlink_to(path)
    for path in elsewhere.glob("PhysionTestMP4s/*/mp4s-redyellow/*.mp4"):
        path.rename(path.with_suffix(".MP4"))
    (root / "again").symlink_to(root)
    (root / "A").mkdir()
    for path in [elsewhere, *elsewhere.glob("PhysionTrainMP4s/*_MP4s")]:  # by a name that says nothing, and comes first
        (root / "A" / path.name.replace("_MP4s", "")).symlink_to(path)


def archived(root, pristine):
    """Not unpacked, under any name."""
    root.mkdir()
    zip_of_test_videos(root / "a.bin", pristine.root, zipfile.ZIP_DEFLATED)
    with (root / "b").open("wb") as file:
        tar_of_the_rest(file, pristine.root, top="./any/thing")
    shutil.copy(pristine.labels("readout"), root / "c.csv")


@pytest.mark.parametrize("shape", [as_published, as_unpacked, one_in_the_other, linked, archived])
def test_the_study_from_videos_to_a_report(physion, pristine, cut, tmp_path, shape):
    root, store = tmp_path / "videos", tmp_path / "store"
    shape(root, pristine)
    given = ["--set", f"fetch.root={root}"]
    if shape is archived:
        given = [f"--set=fetch.archives.{subset}=[{root / 'b'}, {root / 'c.csv'}]" for subset in ("training", "readout")]
        given.append(f"--set=fetch.archives.test={root / 'a.bin'}")
    few = ["--set=train-readout.seeds=[0]", "--set=train-readout.features=[observed, rollout]"]
    ended = physion("run", "-p", "paper", "-s", store, *given, *cut, *few, "--report", tmp_path / "report.html")
    assert ended.code == 0, ended.err
    left_out, named = (1, root / "Physion" / GLITCHY_NAMES[1]) if shape is as_unpacked else (0, "the authors' list, as shipped")
    report = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"{left_out} of 6 left out ({named})" in report
    found = fetched(store)
    for subset in SUBSETS:
        expected = original(pristine, subset)
        if shape is as_unpacked and subset == "test":
            expected[GLITCHY] = b"pilot_drop_0002\r\nnobody\r\n"
        assert found[subset] == expected
