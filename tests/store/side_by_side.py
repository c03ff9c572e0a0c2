"""Processes that make, read, erase, sweep up and pull beside each other: `python tests/store/side_by_side.py FAULTS SEED [s3]`.

Seeded faults are a process killed at any instant, damaged or foreign files wherever ours lie while nobody uses them, and, with
`s3`, requests to a real server that go wrong in all the ways of `faults.py`. Nothing wrong is ever read, no file or object of
others is touched, and what is published has all its files as its manifest says.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import boto3
from world import World

from physion.errors import PhysionError
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest, read_manifest
from physion.store.cache import ShardCache
from physion.store.local import LocalStore
from physion.store.pretrained import copy_weights, find_weights, publish_weights, remove_weights
from physion.store.s3 import S3Store
from physion.store.s3_requests import Patience
from physion.store.server import Server
from physion.store.survey import judge, remove, survey

MADE = ["a" * 20, "b" * 20]
PARTS, SECONDS, FAULTS = 3, 0.4, 5  # of an artifact; of a round in folders, and faults in it


class Cached(LocalStore):
    """Files behind a cache, as a remote store has one."""

    def __init__(self, root, cache):
        super().__init__(root)
        self.cache = ShardCache(cache, 200_000)

    def fetch(self, key, *, size=None, sha256=None):
        path = super().fetch(key)
        if sha256 is None:
            return path
        return self.cache.get(sha256, size, lambda place: shutil.copyfile(path, place) and False)


class Folders:
    """The stores, as folders."""

    seconds, harms = SECONDS, FAULTS  # of a round

    def __init__(self, world, seed):
        self.world = world
        self.places = {name: world.place(name) for name in ("store", "cache", "there", "here", "pulls")}

    def open(self, name):
        return Cached(self.places["store"], self.places["cache"]) if name == "store" else LocalStore(self.places[name])

    def join(self):
        """Said by a process that begins."""

    def put(self, key, data):
        """An object of others."""
        path = self.places["store"] / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def get(self, key):
        """An object's bytes; None where there is none."""
        path = self.places["store"] / key
        return path.read_bytes() if path.exists() else None

    def drop(self, key):
        shutil.rmtree(self.places["store"] / key, ignore_errors=True)

    def faults(self):
        """What went wrong by itself so far."""
        return Counter()

    def check(self):
        self.world.check()

    def close(self):
        """Nothing to end."""


class Bucket(Folders):
    """The stores in one bucket of a real server, behind a network on which every fifth request goes wrong."""

    seconds, harms = 6 * SECONDS, 2
    impatient = Patience(attempts=8, base=0.005, cap=0.02, connect=5.0, read=2.0)

    def __init__(self, world, seed):
        super().__init__(world, seed)
        self.server = Server(world.place("server"), "tests")
        self.server.start()
        os.environ.update(self.server.environment, AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
        port = self.server.endpoint.rpartition(":")[2]
        proxy = [sys.executable, str(Path(__file__).with_name("faults.py")), port, str(seed), "0.2"]
        self.proxy = subprocess.Popen(proxy, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self.proxy.stdout.readline().strip()
        self.places["scratch"] = world.place("scratch")
        self.raw = boto3.client("s3")
        for key in ("canary", "store-2/artifacts/frames/canary", "store/canary", "store/artifacts.canary", "here/files/canary"):
            self.raw.put_object(Bucket="tests", Key=key, Body=f"{key} is not yours".encode())
        self.before = self.others()

    def open(self, name):
        cache = ShardCache(self.places["cache"], 200_000) if name == "store" else None
        return S3Store("tests", name, scratch=self.places["scratch"], cache=cache, patience=self.impatient)

    def join(self):
        os.environ["AWS_ENDPOINT_URL"] = self.address

    def listed(self, prefix=""):
        pages = self.raw.get_paginator("list_objects_v2").paginate(Bucket="tests", Prefix=prefix)
        return {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", ())}

    def others(self):
        ours = ("store/artifacts/", "here/pretrained/", "there/pretrained/", "store/.", "here/.", "there/.")
        return {key: tag for key, tag in self.listed().items() if not key.startswith(ours)}

    def put(self, key, data):
        self.raw.put_object(Bucket="tests", Key=f"store/{key}", Body=data)

    def get(self, key):
        with contextlib.suppress(self.raw.exceptions.NoSuchKey):
            return self.raw.get_object(Bucket="tests", Key=f"store/{key}")["Body"].read()

    def drop(self, key):
        for each in self.listed(f"store/{key}/"):
            self.raw.delete_object(Bucket="tests", Key=each)

    def faults(self):
        self.proxy.stdin.write("\n")
        self.proxy.stdin.flush()
        return Counter({f"fault: {kind}": times for kind, times in json.loads(self.proxy.stdout.readline()).items()})

    def check(self):
        super().check()
        assert self.others() == self.before

    def close(self):
        self.proxy.kill()
        self.proxy.wait()
        self.server.stop()


class Process:
    """What one process does, drawn by a seed."""

    def __init__(self, stores, seed):
        self.folders, self.draw, self.stores = stores.places, random.Random(seed), stores
        self.store, self.there, self.here = (stores.open(name) for name in ("store", "there", "here"))

    def run(self, end):
        self.stores.join()
        done = Counter()
        actions = [
            self.make,
            self.make,
            self.make,
            self.read,
            self.read,
            self.pull,
            self.pull,
            self.erase,
            self.sweep,
            self.forget,
        ]
        while time.monotonic() < end:
            action = self.draw.choice(actions)
            try:
                action()
                done[action.__name__] += 1
            except PhysionError as error:
                done[f"{action.__name__}: {type(error).__name__}"] += 1
        return done

    def make(self):
        fingerprint = self.draw.choice(MADE)
        if read_manifest(self.store, "frames", fingerprint):
            return
        writer = ArtifactWriter(self.store, "frames", fingerprint)
        try:
            writer.begin({"frames": fingerprint}, {}, parts=True)
            there = writer.part_names()
            for number in range(PARTS):
                if str(number) in there:
                    continue
                path = writer.scratch / "file"
                path.write_bytes(
                    f"{fingerprint} {number} ".encode() * 2000 + os.urandom(4)
                )  # as floats that differ in the last bit
                writer.add_part(str(number), {f"{number}.txt": path})
            parts = [writer.keep(str(number)) for number in range(PARTS)]
            facts = {
                "stage": "frames",
                "instance": "frames",
                "fingerprint": fingerprint,
                "config": {},
                "inputs": {},
                "code": "1",
            }
            facts |= {"created": datetime.now(UTC).isoformat(), "seconds": 1.0}
            writer.publish(Manifest(**facts, files=[record for part in parts for record in part.files]))
        finally:
            writer.close()

    def read(self):
        manifest = read_manifest(self.store, "frames", self.draw.choice(MADE))
        if manifest is not None:
            artifact = Artifact(self.store, manifest)
            for record in manifest.files:
                require(artifact.path(record.name), record)

    def erase(self):
        ArtifactWriter(self.store, "frames", self.draw.choice(MADE)).erase()

    def sweep(self):
        days = self.draw.choice([0.0, 7.0])
        for verdict in judge(self.store, survey(self.store), self.draw.choice([None, {MADE[0]}]), days):
            if verdict.remove:
                remove(self.store, verdict, days)

    def pull(self):
        copy_weights(find_weights(self.there, "w"), self.here, self.folders["pulls"])
        artifact = find_weights(self.here, "w")
        (record,) = artifact.manifest.files
        require(artifact.path(record.name), record)

    def forget(self):
        remove_weights(self.here, "w")


def require(path, record):
    try:
        data = path.read_bytes()
    except FileNotFoundError:  # erased since
        return
    same(data, record)


def same(data, record):
    if (len(data), hashlib.sha256(data).hexdigest()) != (record.size, record.sha256):
        raise AssertionError(f"a wrong read of {record}")


def found(folder, pattern):
    """What is there; nothing if a folder goes while it is looked into."""
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:
        return []


def a_fault(draw, stores, children):
    """Do one harm. Returns its name."""
    folders = stores.places
    files = {
        "cache": found(folders["cache"] / "objects", "*"),
        "partial": [path for path in found(folders["cache"] / "partial", "*/*") if path.name != "lock"],
        "pull": [path for path in found(folders["pulls"], "*/*") if path.name != "lock"],
        "record": found(folders["store"], "artifacts/*/*/parts/*"),
        "study": found(folders["store"], "artifacts/*/*/study.json"),
        "ledger": [folders["cache"] / "lock"],
    }
    kind = draw.choice(["kill", "kill", "kill", "kill", "foreign", *files])
    if kind == "kill":
        alive = [child for child in children if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None]
        if not alive:
            return "none: nobody left to kill"
        os.kill(draw.choice(alive), signal.SIGKILL)
    elif kind == "foreign":
        place = ["artifacts/frames", draw.choice(MADE), *draw.choice([["parts"], ["checkpoints"], []])]
        stores.put("/".join([*place, draw.choice([".nfs0000000001", "x\x1b[31m", "evil"])]), b"x")
    elif files[kind]:
        path = draw.choice(files[kind])
        try:
            in_use = path.with_name("lock") if kind in ("partial", "pull") else path
            with in_use.open("r+b") as lock, path.open("r+b") as file:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.stat().st_nlink == 1:  # else it is an object of the store by now
                    how = draw.choice(["flip", "cut", "garbage"])
                    data = file.read()
                    file.seek(0)
                    if how == "cut":
                        file.truncate(len(data) // 2)
                    else:
                        file.write(bytes([data[0] ^ 1]) if how == "flip" and data else b"\xff[garbage")
        except OSError:
            return f"none: {kind} is in use or gone"
    else:
        return "none: nothing there to damage"
    return kind


def play(root, faults, seed, kind=Folders):
    """So many faults beside two or three processes; returns what was done. Raises AssertionError."""
    stores = kind(World(root / "world"), seed)
    try:
        return rounds(stores, root, faults, random.Random(seed))
    finally:
        stores.close()


def rounds(stores, root, faults, draw):
    done = Counter()
    weights = stores.open("there")
    path = weights.scratch() / "file"
    path.write_bytes(random.Random(0).randbytes(300_000))
    publish_weights(weights, "w", "train-dvae", {"weights": path}, {}, {"parameters": 1}, {})
    count = 0
    while count + sum(stores.faults().values()) < faults:
        end, children = time.monotonic() + stores.seconds, []
        for number in range(draw.choice([2, 3])):
            report, process = root / f"report-{count}-{number}", Process(stores, draw.random())
            if (child := os.fork()) == 0:
                try:
                    report.write_text(repr(dict(process.run(end))))
                except BaseException:
                    report.write_text("failed\n" + traceback.format_exc())
                os._exit(0)
            children.append(child)
        for _ in range(stores.harms):
            time.sleep(draw.uniform(0, 1.5 * stores.seconds / stores.harms))
            fault = a_fault(draw, stores, children)
            done[f"fault: {fault}"] += 1
            count += not fault.startswith("none")
        for child in children:
            os.waitpid(child, 0)
        for report in root.glob("report-*"):
            text = report.read_text()
            assert not text.startswith("failed"), text
            done.update(eval(text or "{}"))
            report.unlink()
        check(stores, done)
        stores.check()
    return done + stores.faults()


def check(stores, done):
    for fingerprint in MADE:
        place = f"artifacts/frames/{fingerprint}"
        manifest = read_manifest(stores.open("store"), "frames", fingerprint)
        for record in manifest.files if manifest else []:
            data = stores.get(f"{place}/{record.name}")
            assert data is not None, f"{place}/{record.name} is missing, and published"
            same(data, record)
        done["published, whole"] += manifest is not None
        if manifest is None:
            stores.drop(place)  # what was damaged on purpose makes no room for the next round


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        done = play(Path(folder), int(sys.argv[1]), int(sys.argv[2]), Bucket if sys.argv[3:] == ["s3"] else Folders)
    for what, times in sorted(done.items()):
        print(f"{times:6d}  {what}")
