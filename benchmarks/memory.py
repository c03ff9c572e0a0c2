"""Peak memory of whole trainings, `physion stage train-slotformer` in a process of its own, on slots of the published size:
python benchmarks/memory.py [GB]

The slots are zeros in sparse files: memory does not see what is in them, and the disk hardly has to hold them. They are read
from a local store, where every shard is hashed at its first use.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from physion.config.load import load_config
from physion.data.layout import Video
from physion.data.shards import in_groups, index_bytes, index_item, shard_name, write_shard
from physion.pipeline.graph import build_graph
from physion.store.artifacts import ArtifactWriter, Manifest
from physion.store.local import LocalStore

T, SLOTS, SIZE = 150, 6, 192
COMMON = ("heldout-every=1000000", "heldout-batches=1", "checkpoint-every=20")
SMALL = ("model.d-model=32", "model.layers=1", "model.heads=2", "model.ffn=64")
RUNS = {  # a CPU takes seconds a clip for the published model, so it gets few clips; and the small one many
    "published model, 5 batches of 4": ("optim.steps=5", "optim.batch-size=4", "micro-batch=1"),
    "one narrow layer, 100 batches of 128": ("optim.steps=100", "micro-batch=16", *SMALL),
    "the same, 2 loading processes": ("optim.steps=100", "micro-batch=16", "loader-workers=2", *SMALL),
}


def make(store, videos):
    """An artifact of slots where the preset `paper` expects it. Returns its bytes."""
    node = build_graph(load_config("paper"))["extract-slots-training"]
    writer = ArtifactWriter(store, node.stage.name, node.fingerprint)
    zeros = np.zeros((T, SLOTS, SIZE), np.float32)
    names = [Video(f"video{number:05d}", "", "", heldout=number % 100 == 0) for number in range(videos)]
    for number, group in enumerate(in_groups(names, 256)):
        path, name = writer.scratch / "shard", shard_name(number)
        write_shard(path, [f"{video.name}/slots" for video in group], ((f"{video.name}/slots", zeros) for video in group))
        subprocess.run(["fallocate", "--dig-holes", path], check=True)
        writer.add_part(f"{number:05d}", {name: path}, [index_item(video, name) for video in group])
    index = writer.scratch / "index"
    index.write_bytes(index_bytes(item for part in writer.parts().values() for item in part.items))
    writer.add_part("index", {"index.json": index})
    files = [record for part in writer.parts().values() for record in part.files]
    facts = {"stage": node.stage.name, "instance": node.name, "fingerprint": node.fingerprint, "code": "", "seconds": 0}
    writer.publish(Manifest(files=files, config={}, inputs={}, created="2026-01-01T00:00:00+00:00", **facts))
    writer.close()
    return sum(record.size for record in files)


def main():
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 16
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        size = make(store, round(gigabytes * 1e9 / (4 * T * SLOTS * SIZE)))
        print(f"{size / 1e9:.1f} GB of slots\n\n| training | peak memory, MB |\n|---|---|")
        for seed, (name, settings) in enumerate(RUNS.items()):  # with one seed the third would be the second, done already
            chosen = (*COMMON, *settings, f"seed={seed}")
            options = [word for setting in chosen for word in ("--set", f"train-slotformer.{setting}")]
            command = [sys.executable, "-m", "physion.cli", "stage", "train-slotformer", "-p", "paper", "-s", folder, *options]
            process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE)
            out = json.loads(process.stdout.read())["result"]
            assert out["published"]
            assert not out["cached"]
            _, status, usage = os.wait4(process.pid, 0)  # its own peak, or that of a process it loaded with, if that is higher
            assert status == 0
            print(f"| {name} | {usage.ru_maxrss * 1024 / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
