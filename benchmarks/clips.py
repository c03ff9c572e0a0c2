"""Random clips of slots, as a SlotFormer training reads them, from mapped shards and from one pickle of the same slots:
python benchmarks/clips.py [GB] [FOLDER]

Every row is a process of its own that starts with nothing of the files in memory.
"""

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from physion.data.clips import SlotClips, VideoClips
from physion.data.layout import Video
from physion.data.order import StepBatches
from physion.data.shards import Shards, in_groups, index_bytes, index_item, shard_name, write_shard
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest, read_manifest
from physion.store.cache import ShardCache
from physion.store.local import LocalStore

T, SLOTS, SIZE = 150, 6, 192
FRAMES, STRIDE, BATCH, STEPS, ROUNDS = 25, 3, 64, 100, 3
READERS = ("cache", "store", "safetensors", "pickle")


class CachedStore(LocalStore):
    """A store whose objects are used through a cache, as those of a remote one are."""

    def __init__(self, root, cache):
        super().__init__(root)
        self.cache = cache

    def fetch(self, key, *, size=None, sha256=None):
        return self.cache.get(sha256, size, lambda path: path.write_bytes((self.root / key).read_bytes()))


class KeptMaps(Shards):
    """The plain twin: safetensors' own slices, of maps that stay."""

    def read(self, video, kind, rows):
        files = self.__dict__.setdefault("files", {})
        shard = self._shard[video]
        if shard not in files:
            files[shard] = safe_open(self.artifact.path(shard), "np")
        return files[shard].get_slice(f"{video}/{kind}")[rows.start : rows.stop][:: rows.step]


class PickledClips(VideoClips):
    """As in the published code: everything is loaded, clips are sliced from it."""

    def __init__(self, path, frames, stride):
        with path.open("rb") as file:
            self.slots = pickle.load(file)
        super().__init__([Video(name, "", "") for name in self.slots], T, frames, stride)

    def __getitem__(self, clips):
        span = (self.frames - 1) * self.stride + 1
        rows = [self.slots[name][start : start + span : self.stride] for name, start in map(self.place, clips)]
        return {"slots": torch.from_numpy(np.stack(rows))}


def make(folder, videos):
    """The same random slots as an artifact of shards and as a pickle; the cache is filled."""
    names = [Video(f"video{number:05d}", "", "") for number in range(videos)]
    writer = ArtifactWriter(LocalStore(folder / "store"), "extract-slots", "f" * 20)
    rng = np.random.default_rng(0)
    everything, items = {}, []
    for number, group in enumerate(in_groups(names, 256)):
        slots = {video.name: rng.standard_normal((T, SLOTS, SIZE), np.float32) for video in group}
        path, name = writer.scratch / "shard", shard_name(number)
        write_shard(path, [f"{v}/slots" for v in slots], ((f"{v}/slots", array) for v, array in slots.items()))
        items += writer.add_part(f"{number:05d}", {name: path}, [index_item(video, name) for video in group]).items
        everything |= slots
    index = writer.scratch / "index"
    index.write_bytes(index_bytes(items))
    writer.add_part("index", {"index.json": index})
    with (folder / "slots.pkl").open("wb") as file:
        pickle.dump(everything, file, protocol=pickle.HIGHEST_PROTOCOL)
    files = [record for part in writer.parts().values() for record in part.files]
    facts = {
        "stage": "extract-slots",
        "instance": "slots",
        "fingerprint": "f" * 20,
        "code": "",
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": 0,
    }
    writer.publish(Manifest(files=files, config={}, inputs={}, **facts))
    writer.close()
    artifact = open_artifact(folder, "cache")
    for record in files:
        artifact.path(record.name)


def open_artifact(folder, reader):
    store = LocalStore(folder / "store")
    if reader == "cache":
        store = CachedStore(folder / "store", ShardCache(folder / "cache", 1 << 40))
    return Artifact(store, read_manifest(store, "extract-slots", "f" * 20))


def read(folder, reader):
    """Reads clips in this process and prints what it took."""
    memory("VmRSS")
    started = time.perf_counter()
    if reader == "pickle":
        clips = PickledClips(folder / "slots.pkl", FRAMES, STRIDE)
    else:
        shards = (KeptMaps if reader == "safetensors" else Shards)(open_artifact(folder, reader))
        clips = SlotClips(shards, shards.videos, T, FRAMES, STRIDE)
    batches = StepBatches(len(clips), BATCH, 0, 0, 2 * STEPS)
    total = clips[batches.at(0)]["slots"].double().sum().item()
    first = time.perf_counter() - started
    for step in range(1, STEPS):  # until what is read is in memory, and a little more
        clips[batches.at(step)]
    started = time.perf_counter()
    for step in range(STEPS, 2 * STEPS):
        total += clips[batches.at(step)]["slots"][0, 0, 0, 0].item()
    rate = BATCH * STEPS / (time.perf_counter() - started)
    print(json.dumps({"first": first, "rate": rate, "rss": memory("VmHWM"), "anon": memory("RssAnon"), "total": total}))


def memory(line):
    """Megabytes."""
    return int(Path("/proc/self/status").read_text().partition(f"{line}:")[2].split()[0]) / 1e3


def forget(folder):
    """Drop the files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main():
    if len(sys.argv) == 4:
        read(Path(sys.argv[2]), sys.argv[3])
        return
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 4
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        folder = Path(name)
        make(folder, round(gigabytes * 1e9 / (4 * T * SLOTS * SIZE)))
        rows = {reader: [] for reader in READERS}
        for _ in range(ROUNDS):
            for reader in READERS:
                forget(folder)
                command = [sys.executable, __file__, "read", name, reader]
                rows[reader].append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        assert len({row["total"] for some in rows.values() for row in some}) == 1
        print("| read from | first batch, s | clips/s | peak memory, MB | of it the process's own, MB |\n|---|---|---|---|---|")
        for reader, some in rows.items():
            first, rate, rss, anon = (statistics.median(row[key] for row in some) for key in ("first", "rate", "rss", "anon"))
            print(f"| {reader} | {first:.1f} | {rate:.0f} | {rss:.0f} | {anon:.0f} |")


if __name__ == "__main__":
    main()
