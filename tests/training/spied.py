"""The command line on a rank, with what tests want to see of a training: clip numbers, every loss, the final parameters."""

import hashlib
import os
from pathlib import Path

from ranks import physion


class LoggedClips:
    """Clips that write down, a line a batch, which ones were asked for; at a batch's number they may end the process."""

    def __init__(self, clips, path, end):
        self.clips, self.path, self.end, self.batches = clips, path, end, 0

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, chosen):
        with self.path.open("a") as log:
            print(*chosen, file=log)
        if self.end and self.batches == self.end[0]:
            os.kill(os.getpid(), self.end[1])
        self.batches += 1
        return self.clips[chosen]


def run(folder, arguments, end=None, synchronised=True):
    """Run a stage; `end` is (rank, batch, signal). Leaves clips.<rank> and parameters.<rank> in the folder."""
    from physion.training import engine

    rank = int(os.environ["RANK"])
    engine.LOOK_EVERY = 1
    if not synchronised:
        engine.synchronised = lambda module, ranks, **_: module
    train = engine.Training.run

    def spied(self):
        self.task.train = LoggedClips(
            self.task.train, Path(folder) / f"clips.{rank}", end[1:] if end and end[0] == rank else None
        )
        rows = train(self)
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.model.parameters())).hexdigest()
        (Path(folder) / f"parameters.{rank}").write_text(digest)
        return rows

    engine.Training.run = spied
    physion(*arguments)
