"""Artifacts behind a cache: what is fetched ahead, what that costs, and files that come and go while they are read."""

import multiprocessing
import threading
import time

import numpy as np
import pytest

from physion.data.layout import Video
from physion.data.shards import Shards, in_groups, index_bytes, index_item, write_shard
from physion.errors import DataError, TransientError
from physion.job import Job
from physion.stages.bulk import map_shards
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest
from physion.store.cache import ShardCache
from physion.store.local import LocalStore

VIDEOS = [Video(f"v{n}", "", "Drop") for n in range(12)]
ARRAY = np.arange(50 * 40, dtype=np.float32).reshape(50, 40)
SHARD = 2 * ARRAY.nbytes + 1000


class RemoteStore(LocalStore):
    """Objects are copied through a cache, as those of an S3 store are; downloads are counted, and some fail."""

    def __init__(self, root, cache):
        super().__init__(root)
        self.cache, self.downloads, self.broken = cache, [], set()

    def fetch(self, key, *, size=None, sha256=None):
        def download(path):
            self.downloads.append(key.rpartition("/")[2])
            if key.rpartition("/")[2] in self.broken:
                raise TransientError("the network is gone")
            path.write_bytes((self.root / key).read_bytes())

        return self.cache.get(sha256, size, download)


@pytest.fixture
def remote(tmp_path):
    """An artifact of six shards of two videos, behind an empty cache with room for many."""
    writer = ArtifactWriter(LocalStore(tmp_path / "store"), "extract-slots", "f" * 20)
    items, files = [], {}
    for number, group in enumerate(in_groups(VIDEOS, 2)):
        path = files[f"{number}.safetensors"] = writer.scratch / str(number)
        arrays = [(f"{video.name}/slots", ARRAY + int(video.name[1:])) for video in group]
        write_shard(path, [name for name, _ in arrays], arrays)
        items += [index_item(video, f"{number}.safetensors") for video in group]
    files["index.json"] = writer.scratch / "index"
    files["index.json"].write_bytes(index_bytes(items))
    records = writer.add_part("all", files).files
    facts = {"stage": "extract-slots", "instance": "slots", "fingerprint": "f" * 20, "code": "", "seconds": 0}
    facts["created"] = "2026-01-01T00:00:00+00:00"
    manifest = writer.publish(Manifest(files=records, config={}, inputs={}, **facts))
    writer.close()
    return Artifact(RemoteStore(tmp_path / "store", ShardCache(tmp_path / "cache", 100 * SHARD)), manifest)


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def fetched(artifact):
    return {name for name in artifact.store.downloads if name != "index.json"}


def prefetching():
    return [thread for thread in threading.enumerate() if "bring" in thread.name]


def test_everything_is_fetched_before_it_is_read(remote):
    shards = Shards(remote)
    shards.prefetch_all()
    until(lambda: len(fetched(remote)) == 6 and not prefetching())
    for video in VIDEOS:
        np.testing.assert_array_equal(shards.read(video.name, "slots"), ARRAY + int(video.name[1:]))
    assert sorted(remote.store.downloads) == sorted(remote.names())  # each once


def read_all(root, cache, manifest, queue):
    artifact = Artifact(RemoteStore(root, ShardCache(cache, 100 * SHARD)), manifest)
    shards = Shards(artifact)
    shards.prefetch_all()
    right = all((shards.read(video.name, "slots") == ARRAY + int(video.name[1:])).all() for video in VIDEOS)
    until(lambda: not prefetching())
    queue.put((right, artifact.store.downloads))


def test_the_ranks_of_a_node_share_what_each_of_them_fetches(remote):
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    arguments = (remote.store.root, remote.store.cache.root, remote.manifest, queue)
    ranks = [spawn.Process(target=read_all, args=arguments, daemon=True) for _ in range(3)]
    for rank in ranks:
        rank.start()
    told = [queue.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert all(right for right, _ in told)
    assert sorted(name for _, downloads in told for name in downloads) == sorted(remote.names())


def test_what_does_not_fit_is_not_fetched_ahead(remote, capsys):
    remote.store.cache.limit = 4 * SHARD
    shards = Shards(remote)
    shards.prefetch_all()
    assert not prefetching()
    assert fetched(remote) == set()
    assert "slots: 99.4 kB are read in random order through a cache of 68 kB" in capsys.readouterr().err
    for video in VIDEOS:
        np.testing.assert_array_equal(shards.read(video.name, "slots", slice(3, 9, 2)), ARRAY[3:9:2] + int(video.name[1:]))
    assert sum(path.stat().st_size for path in (remote.store.cache.root / "objects").iterdir()) <= 4 * SHARD


def test_what_fails_ahead_fails_at_its_use(remote):
    remote.store.broken = {"3.safetensors"}
    shards = Shards(remote)
    shards.prefetch(VIDEOS)
    until(lambda: len(fetched(remote)) == 6 and not prefetching())
    shards.read("v0", "slots")
    with pytest.raises(TransientError, match="the network is gone"):
        shards.read("v6", "slots")
    remote.store.broken = set()
    np.testing.assert_array_equal(shards.read("v6", "slots"), ARRAY + 6)


def test_a_closed_artifact_fetches_no_further(remote):
    gate = threading.Event()
    get = remote.store.cache.get
    remote.store.cache.get = lambda *arguments: gate.wait() and get(*arguments)
    remote.prefetch(remote.names())
    remote.close()
    gate.set()
    until(lambda: not prefetching())
    assert len(remote.store.downloads) == 2  # those in flight


def test_a_bulk_stage_fetches_the_next_shard_while_it_computes_one(remote, tmp_path):
    """And not the whole artifact: it may be larger than the cache."""
    source = Shards(remote)
    seen = []

    def double(videos):
        coming = {"v0": {"0", "1"}, "v4": {"2", "3"}, "v8": {"4", "5"}}  # source shards of this part
        if (mine := coming[videos[0].name]) != {"4", "5"}:
            ahead = {str(int(number) + 2) for number in mine}
            until(lambda: {f"{n}.safetensors" for n in mine | ahead} <= fetched(remote))
        seen.append(len(fetched(remote)))
        for video in videos:
            yield video.name, 2 * source.read(video.name, "slots")

    output = ArtifactWriter(LocalStore(tmp_path / "out"), "rollout", "e" * 20)
    assert map_shards(Job("rollout-test", None, {}, output), source, 4, "slots", double) == {"videos": 12}
    assert seen == [4, 6, 6]
    assert len(remote.store.downloads) == 7


def test_a_local_store_fetches_nothing_ahead(remote):
    local = Shards(Artifact(LocalStore(remote.store.root), remote.manifest))
    local.prefetch_all()
    local.prefetch(VIDEOS)
    assert not prefetching()


def test_a_shard_that_is_damaged_in_the_cache_or_in_the_store(remote):
    shards = Shards(remote)
    shards.read("v0", "slots")
    shards.read("v2", "slots")
    path = remote.path("0.safetensors")
    remote.path("1.safetensors")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    np.testing.assert_array_equal(shards.read("v1", "slots"), ARRAY + 1)
    (remote.store.root / remote.prefix / "5.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is corrupt.*physion stage extract-slots --force"):
        shards.read("v11", "slots")
