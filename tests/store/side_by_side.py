"""Processes that make, read, erase, sweep up and pull beside each other: `python tests/store/side_by_side.py FAULTS [SEED]`.

Seeded faults are a process killed at any instant, and damaged or foreign files wherever ours lie while nobody uses them.
Nothing wrong is ever read, no file of others is touched, and what is published has all its files as its manifest says.
"""

import fcntl
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from world import World

from physion.errors import PhysionError
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest, read_manifest
from physion.store.cache import ShardCache
from physion.store.local import LocalStore
from physion.store.pretrained import copy_weights, find_weights, publish_weights, remove_weights
from physion.store.survey import judge, remove, survey

MADE = ["a" * 20, "b" * 20]
PARTS, SECONDS, FAULTS = 3, 0.4, 5  # of an artifact; of a round, and faults in it


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


class Process:
    """What one process does, drawn by a seed."""

    def __init__(self, folders, seed):
        self.folders, self.draw = folders, random.Random(seed)
        self.store = Cached(folders["store"], folders["cache"])
        self.there, self.here = LocalStore(folders["there"]), LocalStore(folders["here"])

    def run(self, end):
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
    if (len(data), hashlib.sha256(data).hexdigest()) != (record.size, record.sha256):
        raise AssertionError(f"a wrong read of {record}")


def a_fault(draw, folders, children):
    """Do one harm. Returns its name."""
    files = {
        "cache": list((folders["cache"] / "objects").glob("*")),
        "partial": [path for path in (folders["cache"] / "partial").glob("*/*") if path.name != "lock"],
        "pull": [path for path in folders["pulls"].glob("*/*") if path.name != "lock"],
        "record": list(folders["store"].glob("artifacts/*/*/parts/*")),
        "study": list(folders["store"].glob("artifacts/*/*/study.json")),
        "ledger": [folders["cache"] / "lock"],
    }
    kind = draw.choice(["kill", "kill", "kill", "kill", "foreign", *files])
    if kind == "kill":
        alive = [child for child in children if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None]
        if not alive:
            return "none: nobody left to kill"
        os.kill(draw.choice(alive), signal.SIGKILL)
    elif kind == "foreign":
        folder = folders["store"] / "artifacts" / "frames" / draw.choice(MADE) / draw.choice(["parts", "checkpoints", "."])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / draw.choice([".nfs0000000001", "x\x1b[31m", "evil"])).write_bytes(b"x")
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


def play(root, faults, seed):
    """So many faults beside two or three processes; returns what was done. Raises AssertionError."""
    world, draw, done = World(root / "world"), random.Random(seed), Counter()
    folders = {name: world.place(name) for name in ("store", "cache", "there", "here", "pulls")}
    weights = LocalStore(folders["there"])
    path = weights.scratch() / "file"
    path.write_bytes(random.Random(0).randbytes(300_000))
    publish_weights(weights, "w", "train-dvae", {"weights": path}, {}, {"parameters": 1}, {})
    count = 0
    while count < faults:
        end, children = time.monotonic() + SECONDS, []
        for number in range(draw.choice([2, 3])):
            report, process = root / f"report-{count}-{number}", Process(folders, draw.random())
            if (child := os.fork()) == 0:
                try:
                    report.write_text(repr(dict(process.run(end))))
                except BaseException:
                    report.write_text("failed\n" + traceback.format_exc())
                os._exit(0)
            children.append(child)
        for _ in range(FAULTS):
            time.sleep(draw.uniform(0, 1.5 * SECONDS / FAULTS))
            fault = a_fault(draw, folders, children)
            done[f"fault: {fault}"] += 1
            count += not fault.startswith("none")
        for child in children:
            os.waitpid(child, 0)
        for report in root.glob("report-*"):
            text = report.read_text()
            assert not text.startswith("failed"), text
            done.update(eval(text or "{}"))
            report.unlink()
        check(folders, done)
        world.check()
    return done


def check(folders, done):
    store = LocalStore(folders["store"])
    for fingerprint in MADE:
        manifest = read_manifest(store, "frames", fingerprint)
        for record in manifest.files if manifest else []:
            path = folders["store"] / "artifacts" / "frames" / fingerprint / record.name
            assert path.exists(), f"{path} is missing, and published"
            require(path, record)
        done["published, whole"] += manifest is not None
    for place in folders["store"].glob("artifacts/*/*"):  # what was damaged on purpose makes no room for the next round
        if not (place / "manifest.json").exists():
            shutil.rmtree(place)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for what, times in sorted(play(Path(folder), int(sys.argv[1]), int((sys.argv[2:] or ["20241"])[0])).items()):
            print(f"{times:6d}  {what}")
