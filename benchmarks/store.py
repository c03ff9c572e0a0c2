"""Shards of 256 MB to an S3 server and back: `S3Store` against boto3's own transfers and `aws s3 cp`.

The server is SeaweedFS on the same machine, a fresh one for every GiB. Everybody moves the same four shards in turns; what
`S3Store` does to check what it sends and reads is part of its time. CPU seconds are client's and server's together: other jobs
on the machine disturb them less. Needs 7 GB on the disk.
"""

import argparse
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import boto3
import psutil
from boto3.s3.transfer import TransferConfig

from physion.store.artifacts import ArtifactWriter
from physion.store.checksums import sha256_of
from physion.store.s3 import MiB, S3Store
from physion.store.server import Server

SHARD = 256 * MiB
GROUP = 4
BUCKET = "physion"


class Ours:
    """As stages do: a part of an artifact, with the SHA-256 of every file taken before and checked after."""

    def __init__(self, folder):
        self.store = S3Store(BUCKET, "ours", scratch=folder / "scratch")

    def up(self, folder):
        files = {path.name: path for path in sorted(folder.iterdir())}
        self.part = ArtifactWriter(self.store, "frames", folder.name).add_part("0", files)

    def down(self, folder):
        for record in self.part.files:
            key = f"artifacts/frames/{folder.name}/{record.name}"
            self.store.fetch(key, size=record.size, sha256=record.sha256).rename(folder / record.name)


class Boto:
    def __init__(self, name, config):
        self.name, self.config, self.client = name, config, boto3.session.Session().client("s3")

    def up(self, folder):
        for path in sorted(folder.iterdir()):
            self.client.upload_file(str(path), BUCKET, f"{self.name}/{folder.name}/{path.name}", Config=self.config)

    def down(self, folder):
        for number in range(GROUP):
            key = f"{self.name}/{folder.name}/{number}"
            self.client.download_file(BUCKET, key, str(folder / str(number)), Config=self.config)


class AWS:
    def copy(self, source, target):
        aws = Path(sysconfig.get_path("scripts")) / "aws"
        subprocess.run([aws, "s3", "cp", "--recursive", "--only-show-errors", source, target], check=True)

    def up(self, folder):
        self.copy(str(folder), f"s3://{BUCKET}/aws/{folder.name}")

    def down(self, folder):
        self.copy(f"s3://{BUCKET}/aws/{folder.name}", str(folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=4)
    size = parser.parse_args().gib
    spent = defaultdict(float)
    for group in range(-1, size):
        if group == 0:
            spent.clear()  # the first one is for the machine to warm up
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            server = Server(root / "server", BUCKET)
            server.start()
            try:
                os.environ.update(server.environment)
                measure(root, group, psutil.Process(server.process.pid), spent)
            finally:
                server.process.kill()
                server.process.wait()
    total = size * GROUP * SHARD / 1e6
    print("| way | by | MB/s | vs. best other | CPU s | vs. best other |\n|---|---|---|---|---|---|")
    for way in ("up", "down"):
        names = [name for key, name, kind in spent if key == way and kind == "wall"]
        best, least = (min(spent[way, name, kind] for name in names if name != "S3Store") for kind in ("wall", "cpu"))
        for name in sorted(names):
            wall, cpu = spent[way, name, "wall"], spent[way, name, "cpu"]
            print(f"| {way} | {name} | {total / wall:.0f} | {best / wall:.2f} | {cpu:.1f} | {least / cpu:.2f} |")


def measure(root, group, server, spent):
    """Add the seconds of one group of shards to `spent`."""
    shard = root / "shard"
    with shard.open("wb") as file:
        for _ in range(SHARD // MiB):
            file.write(os.urandom(MiB))
    sha256 = sha256_of(shard)
    tuned = TransferConfig(multipart_threshold=16 * MiB, multipart_chunksize=16 * MiB)
    ways = [
        ("S3Store", Ours(root)),
        ("boto3", Boto("boto3", TransferConfig())),
        ("boto3, 16 MiB parts", Boto("tuned", tuned)),
        ("aws s3 cp", AWS()),
    ]
    folder = root / "files"

    def timed(way, name, move):
        wall, cpu = time.perf_counter(), cpu_seconds(server)
        move()
        spent[way, name, "wall"] += time.perf_counter() - wall
        spent[way, name, "cpu"] += cpu_seconds(server) - cpu

    turns = [*ways[group % 4 :], *ways[: group % 4]]
    warm = root / "warm"
    for _, way in turns:  # so that nobody pays for making connections, nor for the server's first files
        warm.mkdir()
        for number in range(GROUP):
            (warm / str(number)).write_bytes(bytes(MiB))
        way.up(warm)
        shutil.rmtree(warm)
    for name, way in turns:
        folder.mkdir()
        for number in range(GROUP):
            os.link(shard, folder / str(number))
        timed("up", name, lambda way=way: way.up(folder))
        shutil.rmtree(folder)
    os.sync()  # what was written last is not to disturb who reads first
    for name, way in turns:
        folder.mkdir()
        timed("down", name, lambda way=way: way.down(folder))
        assert [sha256_of(path) for path in folder.iterdir()] == [sha256] * GROUP
        shutil.rmtree(folder)
    print(f"GiB {group + 1}:", {f"{way} {name}, {kind}": round(s, 1) for (way, name, kind), s in spent.items()}, flush=True)


def cpu_seconds(server):
    mine, theirs = os.times(), server.cpu_times()
    return sum(mine[:4]) + theirs.user + theirs.system


if __name__ == "__main__":
    main()
