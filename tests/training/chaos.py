"""Trainings under seeded kills, ended again and again at random instants until they are done.

    python tests/training/chaos.py --kills 100
    python tests/training/chaos.py --kills 100 --s3

With --s3 the store is a real server, and its outages are SIGKILLs of that.
Every run must end with the weights of the undisturbed run on as many ranks, and no checkpoint may ever be unreadable.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import Ranks, physion

from physion.store.cache import ShardCache
from physion.store.server import Server
from physion.store.uri import open_store

STAGES = ("train-dvae", "train-steve", "train-slotformer", "train-readout")
EVENTS = ("SIGKILL of one rank", "SIGKILL of all", "SIGTERM to one rank", "SIGTERM to all", "store outage", "zombie")
SETTINGS = {"optim.steps": 60, "heldout-every": 15, "checkpoint-every": 5, "threads": 1, "stuck-after": 60}
ENDS = {0, 75, 143, -signal.SIGTERM, -signal.SIGKILL}  # SIGTERM kills who has not yet begun to listen


def run(outage, environment, *arguments):
    """`physion` on a rank, for which a store of plain files fails while the file `outage` is there."""
    os.environ.update(environment)
    from physion.errors import TransientError
    from physion.store.local import LocalStore

    path = LocalStore._path

    def failing(self, key):
        if os.path.exists(outage):
            raise TransientError(f"store {self.uri}: does not answer")
        return path(self, key)

    LocalStore._path = failing
    physion(*arguments)


class Chaos:
    """One training stage in a store of its own, and what is done to it."""

    def __init__(self, finished, preset, stage, folder, seed, count=2, server=None, events=EVENTS):
        self.stage, self.folder, self.count, self.server, self.events = stage, Path(folder), count, server, events
        self.environment = server.environment if server else {}
        self.store = open_store(f"s3://{server.bucket}/{stage}" if server else str(self.folder / "store"), self.cache())
        self.outage = self.folder / "outage"
        self.draw = random.Random(f"{seed} {stage}")
        for path in Path(finished).glob("artifacts/*/*/**/*"):
            key = path.relative_to(finished).as_posix()
            if path.is_file() and key.split("/")[1] not in (stage, "evaluate", "train-readout"):
                self.store.write(key, path.read_bytes())
        which = ["--features", "rollout", "--seed", "0"] if stage == "train-readout" else []
        settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{stage}.{key}={value}")]
        cache = ["--cache", str(self.folder / "cache")]
        self.arguments = [*cache, "stage", stage, *which, "-p", preset, "-s", self.store.uri, *settings]
        self.happened, self.started = Counter(), 0
        started = time.monotonic()
        ranks = self.start()
        assert self.ended(ranks) == [0] * count, ranks.said()
        self.took = time.monotonic() - started
        self.undisturbed = self.weights()

    def start(self):
        self.started += 1
        log = self.folder / f"log{self.started}"
        return Ranks(self.count, run, str(self.outage), self.environment, *self.arguments, log=log)

    def cache(self):
        return ShardCache(self.folder / "cache", 10**9) if self.server else None

    def train(self, kills):
        """Train once more from nothing, disturbed at most `kills` times."""
        for key in self.store.list(f"artifacts/{self.stage}"):
            self.store.delete(key)
        zombie = None
        for number in range(kills + 1):
            ranks = self.start()
            frozen = number < kills and self.disturb(ranks)
            if zombie:  # thought dead, replaced, and now it wakes, beside or after its successor
                zombie.signal(signal.SIGCONT)
                self.ended(zombie)
            zombie = ranks if frozen else None
            if not frozen and self.ended(ranks) == [0] * self.count:
                assert self.weights() == self.undisturbed
                return
        raise AssertionError(f"{self.stage} did not end undisturbed:\n{ranks.said()}")

    def disturb(self, ranks):
        """Do something to the ranks at a random instant, unless they are done. Tells whether they are frozen."""
        event, one = self.draw.choice(self.events), [self.draw.randrange(self.count)]
        if not ranks.wait_running(self.draw.uniform(0, 1.1) * self.took):
            return False
        self.happened[event] += 1
        if event == "SIGKILL of one rank":
            ranks.signal(signal.SIGKILL, one)
        elif event == "SIGKILL of all":
            ranks.signal(signal.SIGKILL)
        elif event == "SIGTERM to one rank":
            ranks.signal(signal.SIGTERM, one)
        elif event == "SIGTERM to all":
            ranks.signal(signal.SIGTERM)
        elif event == "store outage" and self.server:
            self.server.process.kill()
            self.server.process.wait()
            deadline = time.monotonic() + 30
            while not any("trying again" in ranks.said(rank) for rank in range(self.count)) and time.monotonic() < deadline:
                if not ranks.wait_running(0.05):
                    break
            ranks.wait_running(self.draw.uniform(0, 0.5) * self.took)
            self.server.start()
        elif event == "store outage":
            self.outage.touch()
            ranks.wait_running(self.draw.uniform(0, 0.5) * self.took)
            self.outage.unlink()
        else:
            ranks.signal(signal.SIGSTOP)
        return event == "zombie"

    def ended(self, ranks):
        """Exit codes of ranks, when they have ended as they should."""
        ranks.clear_away()
        codes = ranks.wait()
        said = "".join(ranks.said(rank) for rank in range(self.count))
        assert set(codes) <= ENDS, (codes, said)
        assert "Traceback" not in said, said
        self.verify_checkpoints()
        return codes

    def verify_checkpoints(self):
        for key in self.store.list(f"artifacts/{self.stage}"):
            if "/checkpoints/" in key:
                assert hashlib.sha256(self.store.read(key)).hexdigest()[:16] == Path(key).stem.split("-")[2], key

    def weights(self):
        """SHA-256 of the published weights, and of the best ones."""
        (manifest,) = (key for key in self.store.list(f"artifacts/{self.stage}") if key.endswith("/manifest.json"))
        records = {record["name"]: record["sha256"] for record in json.loads(self.store.read(manifest))["files"]}
        for name, digest in records.items():
            assert hashlib.sha256(self.store.read(f"{Path(manifest).parent}/{name}")).hexdigest() == digest
        return records["weights.safetensors"], records.get("best.safetensors"), records["history.json"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of each stage's trainings together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--s3", action="store_true", help="store in SeaweedFS, which is killed and restarted")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finished, preset = prepare(Path(folder))
        server = None
        if options.s3:
            server = Server(Path(folder) / "server", "chaos")
            server.start()
            os.environ.update(server.environment)
        try:
            deal(finished, preset, Path(folder), options, server)
        finally:
            if server:
                server.stop()


def deal(finished, preset, folder, options, server):
    """Every stage's trainings in turn, until enough has been done to them."""
    for stage in options.stages:
        (folder / stage).mkdir()
        chaos = Chaos(finished, preset, stage, folder / stage, options.seed, options.ranks, server)
        trainings = 0
        while (left := options.kills - sum(chaos.happened.values())) > 0:
            chaos.train(left)
            trainings += 1
        events = ", ".join(f"{count} x {event}" for event, count in sorted(chaos.happened.items()))
        print(
            f"{stage}: {trainings} trainings, {sum(chaos.happened.values())} disturbances ({events}): all as undisturbed",
            flush=True,
        )


def prepare(folder):
    """A finished study of a few tiny videos, and its preset."""
    from conftest import make_dataset, study

    preset, store = folder / "mini.yaml", folder / "finished"
    preset.write_text(json.dumps(study(make_dataset(folder / "dataset").root)))
    command = [sys.executable, "-m", "physion.cli", "run", "-p", str(preset), "-s", str(store)]
    subprocess.run(command, check=True)
    return store, str(preset)


if __name__ == "__main__":
    main()
