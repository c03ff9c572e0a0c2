"""The shard cache, with processes that are killed at random instants."""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from physion.errors import ConfigError, TransientError
from physion.store.cache import ShardCache, WrongContent

SIZE = 100_000
SEED = int(os.environ.get("PHYSION_TEST_SEED", "20241"))
spawn = multiprocessing.get_context("spawn")


def content(number):
    return random.Random(number).randbytes(SIZE)


def key(number):
    return hashlib.sha256(content(number)).hexdigest()


class Source:
    """Objects by number; every download is noted in a file that processes share, and may be made to wait."""

    def __init__(self, folder, cache, limit):
        self.log, self.gate = folder / "log", folder / "gate"
        self.root, self.limit = cache, limit
        self.cache = ShardCache(cache, limit)

    def get(self, number):
        def download(path):
            with self.log.open("a") as log:
                log.write(f"{number}\n")
            data = content(number)
            with path.open("wb") as file:
                file.write(data[: SIZE // 2])
                file.flush()
                while self.gate.exists():
                    time.sleep(0.001)
                file.write(data[SIZE // 2 :])

        return self.cache.get(key(number), SIZE, download)

    def downloads(self):
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []

    def cached(self):
        return {path.name for path in self.root.glob("objects/*")}

    def used(self):
        return sum(path.stat().st_size for path in self.root.rglob("*/*") if path.is_file())


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path, tmp_path / "cache", round(3.2 * SIZE))


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def fetch(source, number, queue):
    queue.put(source.get(number).read_bytes() == content(number))


def start(source, number, queue):
    process = spawn.Process(target=fetch, args=(source, number, queue), daemon=True)
    process.start()
    return process


def test_an_object_is_downloaded_once(source):
    first = source.get(1)
    assert first.read_bytes() == content(1)
    assert source.get(1) == first
    assert ShardCache(source.root, SIZE).get(key(1), SIZE, pytest.fail) == first
    assert source.downloads() == [1]
    assert not list((source.root / "partial").iterdir())
    assert first.stat().st_mode & 0o777 == 0o600


def test_the_least_recently_used_goes_first(source):
    for number in (1, 2, 3, 1, 4):
        source.get(number)
    assert source.cached() == {key(1), key(3), key(4)}
    source.get(3)
    source.get(5)
    assert source.cached() == {key(3), key(4), key(5)}
    assert source.used() <= source.limit
    assert source.downloads() == [1, 2, 3, 4, 5]


def test_one_larger_than_the_limit_works_and_says_which_setting_to_raise(tmp_path, capsys):
    source = Source(tmp_path, tmp_path / "cache", SIZE // 2)
    for number in (1, 2):
        assert source.get(number).read_bytes() == content(number)
        assert source.cached() == {key(number)}
    warning = capsys.readouterr().err
    assert warning.count("PHYSION_CACHE_LIMIT=50 kB") == 1
    assert "an object of 100 kB does not fit" in warning


def test_the_newest_object_of_a_thread_stays_for_it(source):
    """However much the others fetch, until it asks for another one."""
    held, go = threading.Event(), threading.Event()

    def reader():
        source.get(0)
        held.set()
        go.wait()
        source.get(1)
        held.set()
        go.wait()

    thread = threading.Thread(target=reader)
    thread.start()
    held.wait()
    for number in range(10, 15):
        source.get(number)
    assert source.cached() == {key(0), key(13), key(14)}
    held.clear()
    go.set()
    thread.join()
    for number in range(20, 23):
        source.get(number)
    assert source.cached() == {key(20), key(21), key(22)}


def test_a_mapped_file_survives_its_eviction(source):
    with source.get(1).open("rb") as file:
        for number in (2, 3, 4, 5):
            source.get(number)
        assert key(1) not in source.cached()
        assert file.read() == content(1)


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"x" + d[1:], lambda d: b""])
def test_a_damaged_file_is_fetched_again(source, damage):
    path = source.get(1)
    source.get(2)
    path.chmod(0o644)
    path.write_bytes(damage(content(1)))
    assert source.get(1).read_bytes() == content(1)
    assert source.downloads() == [1, 2, 1]


def test_a_file_that_is_gone_is_fetched_again(source):
    source.get(1).unlink()
    assert source.get(1).read_bytes() == content(1)


def test_an_intact_file_with_another_stamp_is_hashed_not_fetched(source):
    """As after a boot, or when somebody copied the cache."""
    path = source.get(1)
    stamp = path.stat().st_mtime
    source.get(2)
    os.utime(path)
    assert source.get(1).stat().st_mtime == stamp
    assert source.downloads() == [1, 2]


def test_wrong_content_is_never_put_in_place(source):
    def flipped(path):
        path.write_bytes(b"x" + content(1)[1:])

    with pytest.raises(WrongContent, match="the store is corrupt: none of 3 downloads has"):
        source.cache.get(key(1), SIZE, flipped)
    assert source.cached() == set()
    assert not list((source.root / "partial").iterdir())


def test_a_bad_download_is_tried_again(source):
    tries = []

    def download(path):
        tries.append(path)
        path.write_bytes(content(1)[: SIZE // 2] if len(tries) == 1 else content(1))

    assert source.cache.get(key(1), SIZE, download).read_bytes() == content(1)
    assert len(tries) == 2


def test_what_a_download_raises_comes_through(source):
    def fails(path):
        path.write_bytes(b"half")
        raise TransientError("the network is gone")

    with pytest.raises(TransientError, match="the network is gone"):
        source.cache.get(key(1), SIZE, fails)
    assert source.used() == 0
    assert source.get(1).read_bytes() == content(1)


def test_the_second_asker_waits_for_the_first(source):
    source.gate.touch()
    queue = spawn.Queue()
    processes = [start(source, 1, queue) for _ in range(3)]
    until(lambda: sum(_waits_for_a_lock(process.pid) for process in processes) == 2)
    source.gate.unlink()
    assert [queue.get(timeout=30) for _ in processes] == [True] * 3
    assert source.downloads() == [1]
    for process in processes:
        process.join()


def test_when_the_first_is_killed_the_second_takes_over(source):
    source.gate.touch()
    queue = spawn.Queue()
    first = start(source, 1, queue)
    until(lambda: source.downloads())
    second = start(source, 1, queue)
    until(lambda: _waits_for_a_lock(second.pid))
    first.kill()
    first.join()
    source.gate.unlink()
    assert queue.get(timeout=30)
    second.join()
    assert source.downloads() == [1, 1]
    assert source.used() == SIZE


def _waits_for_a_lock(pid):
    return any("->" in line and line.split()[5] == str(pid) for line in Path("/proc/locks").read_text().splitlines())


def test_a_note_of_the_bytes_that_is_wrong_or_gone_mends_itself(source):
    for number, note in enumerate(["", "no number", "999999999", "0"]):
        source.get(number)
        (source.root / "lock").write_text(note)
    for number in range(10, 14):
        assert ShardCache(source.root, source.limit).get(key(number), SIZE, lambda p, n=number: p.write_bytes(content(n)))
        assert len(source.cached()) <= 3
    assert int((source.root / "lock").read_text()) == source.used()


def test_what_a_killed_process_left_makes_room_for_the_next_download(source):
    source.gate.touch()
    queue = spawn.Queue()
    processes = [start(source, number, queue) for number in (1, 2, 3)]
    until(lambda: len(source.downloads()) == 3)
    for process in processes:
        process.kill()
        process.join()
    source.gate.unlink()
    assert len(list((source.root / "partial").iterdir())) == 3
    source.get(4)
    assert [path.name for path in source.root.rglob("*") if path.is_file() and path.name != "lock"] == [key(4)]


def test_a_child_forked_during_a_download_holds_nothing_back(source):
    source.gate.touch()
    thread = threading.Thread(target=source.get, args=(1,))
    thread.start()
    until(lambda: source.downloads())
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        source.gate.unlink()
        thread.join()
        for number in range(2, 7):
            assert source.get(number).read_bytes() == content(number)
        (source.root / "objects" / key(1)).unlink(missing_ok=True)
        assert source.get(1).read_bytes() == content(1)  # the claim of the first download is free
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def storm(source, seed):
    draw = random.Random(seed)
    while True:
        number = draw.randrange(8)
        if source.get(number).open("rb").read() != content(number):
            os._exit(1)


def test_processes_killed_at_random_instants(tmp_path):
    """0 wrong reads, no reader finds its file gone, the limit holds, and what is left is whole."""
    source = Source(tmp_path, tmp_path / "cache", round(5.3 * SIZE))  # room for one each, and one more
    draw = random.Random(SEED)
    processes = []
    deadline = time.monotonic() + 6
    killed = 0
    while time.monotonic() < deadline:
        while len(processes) < 4:
            processes.append(spawn.Process(target=storm, args=(source, draw.random()), daemon=True))  # ends with a failed test
            processes[-1].start()
        time.sleep(draw.uniform(0, 0.5))
        victim = processes.pop(draw.randrange(len(processes)))
        assert all(process.exitcode is None for process in [*processes, victim])
        victim.kill()
        victim.join()
        killed += 1
    print(f"seed {SEED}: {killed} kills, {len(source.downloads())} downloads")
    for process in processes:
        process.kill()
        process.join()
    source.get(100)
    assert not list((source.root / "partial").iterdir())
    for name in source.cached():
        assert hashlib.sha256((source.root / "objects" / name).read_bytes()).hexdigest() == name
    assert source.used() <= source.limit


def test_a_full_disk(source):
    def fills(path):
        with path.open("wb") as file, Path("/dev/full").open("wb", buffering=0) as full:
            file.write(b"x")
            full.write(b"x")

    with pytest.raises(TransientError, match=r"no space left.*PHYSION_CACHE_LIMIT \(it is 320 kB\).*PHYSION_CACHE to another"):
        source.cache.get(key(1), SIZE, fills)
    assert source.used() == 0


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="point PHYSION_CACHE to another directory"):
        ShardCache(tmp_path / "file", SIZE).get(key(1), SIZE, pytest.fail)
