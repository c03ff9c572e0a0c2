"""A whole study small enough to run inside a test: eleven frames of eight pixels that move, in Physion's own layout."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported: see physion/cli.py

import re
import shutil
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from physion.cli import main
from physion.config.schema import SUBSETS
from physion.data.layout import LABELS, label_key, video_path, write_labels
from physion.data.video import write_mp4
from physion.store.cache import ShardCache
from physion.store.server import Server
from physion.store.uri import open_store

FRAMES, SIZE = 12, 32
SCENARIOS = ("Collide", "Drop")
VIDEOS = {"training": 4, "readout": 4, "test": 3}  # of each scenario
OPTIM = {"lr": 1e-3, "batch-size": 4, "steps": 6}
TRAINING = {"optim": OPTIM, "heldout-every": 3, "heldout-batches": 2, "checkpoint-every": 2}


def moving_square(seed, frames=FRAMES, size=SIZE):
    """uint8 [T, size, size, 3]: a bright square crosses a dark noisy background."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(rng.integers(0, 90, (1, size, size, 3), np.uint8), frames, 0)
    row, speed = rng.integers(2, size - 10), rng.integers(1, 3)
    for number, frame in enumerate(clip):
        column = int(number * speed) % (size - 8)
        frame[row : row + 8, column : column + 8] = (230, 40, 30) if seed % 2 else (230, 220, 30)
    return clip


@dataclass(frozen=True)
class Dataset:
    """A folder in Physion's layout, to be damaged by a test."""

    root: Path

    def videos(self, subset):
        folder = "PhysionTestMP4s" if subset == "test" else f"PhysionTrainMP4s/*_{subset}_MP4s"
        return sorted(self.root.glob(f"{folder}/**/*.mp4"))

    def labels(self, subset):
        return self.root / LABELS[subset]


def make_dataset(root):
    for number, subset in enumerate(SUBSETS):
        rows = []
        for kind, scenario in enumerate(SCENARIOS):
            for index in range(VIDEOS[subset]):
                path = root / video_path(subset, scenario, f"pilot_{scenario.lower()}", index)
                write_mp4(path, moving_square(1000 * number + 100 * kind + index))
                rows.append((label_key(subset, path.stem), index % 2 == 0))
        if subset in LABELS:
            (root / LABELS[subset]).write_bytes(write_labels(rows))
    return Dataset(root)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def dataset(pristine, tmp_path):
    """A dataset of the test's own."""
    shutil.copytree(pristine.root, tmp_path / "dataset")
    return Dataset(tmp_path / "dataset")


def study(root):
    return {
        "dataset": "fetch",
        "fetch": {"root": str(root)},
        "simulate": {"videos": {"training": 16, "readout": 16, "test": 8}},
        "frames": {"image-size": SIZE, "frames": FRAMES, "heldout": 0.25, "videos-per-shard": 3, "workers": 1},
        "train-dvae": {"model": {"codes": 16, "channels": 4}, **TRAINING},
        "tokenize": {"videos-per-shard": 3},
        "train-steve": {
            "model": {
                "slots": 2,
                "slot-size": 8,
                "slot-iterations": 1,
                "slot-mlp": 8,
                "encoder-channels": 4,
                "predictor-layers": 1,
                "predictor-heads": 2,
                "predictor-ffn": 8,
                "predictor-lstm": 8,
                "decoder-layers": 1,
                "decoder-heads": 2,
            },
            "clip-frames": 2,
            **TRAINING,
        },
        "train-isa": {
            "model": {
                "slots": 2,
                "slot-size": 12,
                "slot-mlp": 8,
                "encoder-channels": 4,
                "predictor-heads": 2,
                "predictor-ffn": 8,
                "decoder-width": 8,
            },
            "clip-frames": 2,
            **TRAINING,
        },
        "extract-slots": {"videos-per-shard": 3},
        "train-slotformer": {
            "model": {"burn-in": 2, "stride": 2, "d-model": 8, "layers": 1, "heads": 2, "ffn": 8},
            "rollout-frames": 2,
            **TRAINING,
        },
        "rollout": {"observed": 4, "videos-per-shard": 3},
        "train-readout": {"frames": {"rollout": 6, "full": 12}, "seeds": [0, 1], **TRAINING},
        "evaluate": {"videos": 1, "shown-frames": 3, "resamples": 200},
    }


@pytest.fixture(scope="session")
def preset(pristine, tmp_path_factory):
    """Path of a preset that runs the whole study on the pristine dataset in seconds."""
    path = tmp_path_factory.mktemp("presets") / "mini.yaml"
    path.write_text(yaml.safe_dump(study(pristine.root), sort_keys=False))
    return str(path)


@pytest.fixture(scope="session")
def official_names():
    """The paths of all 25,203 official videos, sorted, in the published code's layout."""
    # A line for each folder and stem; bit n of the hexadecimal number after it says whether there is a video n.
    lines = map(str.split, (Path(__file__).parent / "official_names.txt").read_text().splitlines())
    numbers = [(stem, int(bits, 16)) for stem, bits in lines]
    return sorted(f"{stem}_{n:04d}_img.mp4" for stem, bits in numbers for n in range(bits.bit_length()) if bits >> n & 1)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def physion(capsys, monkeypatch):
    """The command line, in this process."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["physion", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ended(ended.value.code or 0, out, err)

    return command


@pytest.fixture(scope="session")
def finished(preset, tmp_path_factory):
    """A store that holds the finished mini study. Read only: a test that changes it copies it first."""
    root = tmp_path_factory.mktemp("finished")
    ended = subprocess.run(
        [sys.executable, "-m", "physion.cli", "run", "-p", preset, "-s", str(root)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return root


def _keys(value, path=""):
    """The keys of metrics.json as docs/metrics.md writes them: an interval is one, the entries of a list end in []."""
    if isinstance(value, dict):
        interval = ("value", "low", "high", "n", "spread") if {"value", "low", "high"} <= value.keys() else ()
        if interval:
            yield path
        for key, inner in ((key, inner) for key, inner in value.items() if key not in interval):
            yield from _keys(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from _keys(inner, f"{path}[]")
    else:
        yield path


@pytest.fixture(scope="session")
def undocumented():
    """Of a metrics.json those keys that docs/metrics.md has no row for, and those rows that it has no key for."""
    rows = re.findall(r"^\| `([^`]+)` \|", (Path(__file__).parents[1] / "docs/metrics.md").read_text(), re.MULTILINE)
    # <name> stands for any one, {one,other} for either.
    either = re.compile(r"\\{(.+?)\\}")
    patterns = {
        row: re.compile(either.sub(lambda found: f"({found[1].replace(',', '|')})", re.sub("<.+?>", "[^.]+", re.escape(row))))
        for row in rows
    }

    def compare(metrics):
        keys = set(_keys(metrics))
        return (
            sorted(key for key in keys if not any(pattern.fullmatch(key) for pattern in patterns.values())),
            [row for row, pattern in patterns.items() if not any(map(pattern.fullmatch, keys))],
        )

    return compare


@pytest.fixture
def store(finished, tmp_path):
    """A copy of the finished study."""
    shutil.copytree(finished, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory):
    """A real S3 server with a bucket `tests`."""
    server = Server(tmp_path_factory.mktemp("seaweedfs"), "tests")
    server.start()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def s3(seaweedfs, monkeypatch, tmp_path):
    """An environment in which s3://tests is on that server; nothing of the caller's own settings is left."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HOME", "PHYSION_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    return seaweedfs


@pytest.fixture(params=["file", "s3"])
def study_store(request, finished, tmp_path):
    """The finished study in a store of the test's own, of either kind."""
    if request.param == "file":
        return open_store(str(request.getfixturevalue("store")))
    request.getfixturevalue("s3")
    target = open_store(f"s3://tests/{uuid.uuid4().hex}", ShardCache(tmp_path / "cache", 10**9))
    keys = [path.relative_to(finished).as_posix() for path in finished.glob("artifacts/**/*") if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: target.write(key, (finished / key).read_bytes()), keys))
    return target


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    root = tmp_path / "disk"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield root
    subprocess.run(["umount", "-l", root], check=True)
