"""The command line on a rank, with what tests want to see of a training: clip numbers, every loss, the final parameters."""

import hashlib
import os
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
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


@contextmanager
def in_float64(model):
    """Inside, a model trains in float64, where rounding is too small to turn a ReLU on: all that differs is a mistake."""
    from physion.training import engine

    single, move = torch.Tensor.float, engine._to

    def doubled(batch, where):
        return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in move(batch, where).items()}

    torch.Tensor.float, engine._to = torch.Tensor.double, doubled
    torch.set_default_dtype(torch.float64)
    model.double()
    yield
    torch.set_default_dtype(torch.float32)
    torch.Tensor.float, engine._to = single, move
    model.float()


def run(folder, arguments, end=None, synchronised=True, float64=False):
    """Run a stage; `end` is (rank, batch, signal). Leaves clips.<rank> and parameters.<rank> in the folder."""
    from physion.training import engine

    rank = int(os.environ["RANK"])
    engine.LOOK_EVERY = 1
    if not synchronised:
        engine.data_parallel = lambda module, ranks, **_: module
    train = engine.Training.run

    def spied(self):
        self.task.train = LoggedClips(
            self.task.train, Path(folder) / f"clips.{rank}", end[1:] if end and end[0] == rank else None
        )
        with in_float64(self.model) if float64 else nullcontext():
            rows = train(self)
            digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.model.parameters())).hexdigest()
        (Path(folder) / f"parameters.{rank}").write_text(digest)
        return rows

    engine.Training.run = spied
    physion(*arguments)
