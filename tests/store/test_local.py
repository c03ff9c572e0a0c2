import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from physion.errors import ConfigError, TransientError
from physion.store.local import STAGING, LocalStore
from physion.store.uri import open_store


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def staged(store):
    return list((store.root / STAGING).iterdir())


def put(store, key, data):
    path = store.scratch() / "file"
    path.write_bytes(data)
    return store.upload(key, path)


def test_an_upload_from_another_file_system(store):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == store.root.parent.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    path = other / f"physion-test-{os.getpid()}"
    path.write_bytes(b"far away")
    assert store.upload("a/b", path)
    assert store.read("a/b") == b"far away"
    assert not path.exists()


@pytest.mark.parametrize("name", ["a b", "100%", "a%20b", "ünï", "#1?x=2"])
def test_any_folder_name_survives_its_uri(tmp_path, name):
    plain = open_store(str(tmp_path / name))
    plain.write("a/b", b"data")
    assert (tmp_path / name / "a" / "b").read_bytes() == b"data"
    assert open_store(plain.uri).read("a/b") == b"data"
    assert open_store(plain.uri).uri == plain.uri


def test_a_relative_store_is_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("runs/x").write("a", b"1")
    assert (tmp_path / "runs/x/a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://Bucket", "'Bucket' is not a valid bucket name"),
        ("s3://", "not a valid bucket name"),
        ("s3://b", "not a valid bucket name"),
        ("s3://bucket/a//b", "a prefix must not have an empty part"),
        ("s3://bucket/../b", "a prefix must not have an empty part"),
        ("gs://bucket", "unknown scheme 'gs'; use s3://bucket/prefix or file:///path"),
        ("file://tmp/x", "three slashes"),
        ("file:x", "three slashes"),
        ("file://", "three slashes"),
    ],
)
def test_uris_that_are_none(uri, said):
    with pytest.raises(ConfigError, match=said):
        open_store(uri)


def test_a_store_below_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "store"):
        store = LocalStore(root)
        assert store.read("a/b") is None
        for write in (store.scratch, lambda store=store: store.write("a/b", b"")):
            with pytest.raises(ConfigError, match=r"Not a directory.*choose another --store"):
                write()


def test_a_file_where_a_folder_should_be_is_not_taken_for_an_older_object(store):
    store.write("artifacts", b"a file")
    with pytest.raises(ConfigError, match="choose another --store"):
        store.write("artifacts/simulate/x/manifest.json", b"{}", if_absent=True)
    with pytest.raises(ConfigError, match="choose another --store"):
        put(store, "artifacts/simulate/x/shard", b"")


@pytest.mark.skipif(os.geteuid() != 0 and not Path("/sys/kernel").is_dir(), reason="needs /sys")
def test_a_store_nobody_can_write(tmp_path):
    store = LocalStore(Path("/sys/kernel/physion"))
    with pytest.raises(ConfigError, match="cannot make a scratch directory"):
        store.scratch()
    with pytest.raises(ConfigError, match="cannot write a/b"):
        store.write("a/b", b"")


def test_a_full_disk(small_disk):
    store = LocalStore(small_disk)
    store.write("a/small", b"fits")
    with pytest.raises(TransientError, match=r"cannot write a/big: no space left on the disk; free some"):
        store.write("a/big", bytes(2_000_000))
    assert store.read("a/big") is None
    assert store.list("a") == ["a/small"]
    assert staged(store) == []


def test_a_delete_leaves_no_empty_folders(store):
    for key in ("a/b/c/one", "a/b/two"):
        store.write(key, b"")
    store.delete("a/b/c/one")
    assert [path.name for path in (store.root / "a" / "b").iterdir()] == ["two"]
    store.delete("a/b/two")
    store.delete("a/b/two")
    assert [path.name for path in store.root.iterdir() if not path.name.startswith(STAGING)] == []
    store.write("last", b"")
    store.delete("last")
    assert store.root.is_dir()


def test_writers_and_listings_do_not_mind_folders_that_come_and_go(store):
    def work(name):
        for number in range(40):
            assert store.write(f"a/b/{name}", b"") if number % 2 else put(store, f"a/b/{name}", b"")
            assert f"a/b/{name}" in store.list("a")
            store.delete(f"a/b/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "wxyz"))
    assert store.list("a") == []


def write_for_ever(root, ready):
    store = LocalStore(root)
    ready.set()
    number = 0
    while True:
        store.write("a/object", str(number % 10).encode() * 3_000_000)
        put(store, f"b/{number:05d}", b"x" * 3_000_000)
        number += 1


def test_a_kill_while_writing_leaves_whole_objects_only(store):
    context = multiprocessing.get_context("spawn")
    for delay in (0.0, 0.013, 0.037, 0.071):
        ready = context.Event()
        process = context.Process(target=write_for_ever, args=(store.root, ready), daemon=True)
        process.start()
        assert ready.wait(60)
        while not store.list("b"):
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
    data = store.read("a/object")
    assert len(data) == 3_000_000
    assert len(set(data)) == 1
    assert {store.size(key) for key in store.list("b")} == {3_000_000}
    mine = store.scratch()
    assert staged(store) == [mine]  # what the dead left is gone, what is in use is not


def test_readers_never_see_half_an_object(store):
    store.write("a", b"0" * 500_000)
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            data = store.read("a")
            seen.append(len(data) == 500_000 and len(set(data)) == 1)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        store.write("a", str(number % 10).encode() * 500_000)
    stop.set()
    reader.join()
    assert all(seen)
    assert seen
