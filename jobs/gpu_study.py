"""A study in pieces, on a machine with a GPU that comes and goes and has no network: `make gpu-study`.

    python jobs/gpu_study.py --out OUT [--in IN] [--store STORE] [--seconds 530] [OPTIONS of physion run]

A piece puts into the store what an earlier one brought out, lets `physion run` work until the time is over, and brings out
what the next machine cannot make again in minutes: the weights of trainings, the checkpoint of one that was stopped,
regressions and the report. Videos, frames, tokens, slots, rollouts and readouts stay behind; the same code makes the same
bytes again.

OUT gets files `study.00`, `study.01`, ... of at most 15 MiB. Exit code 0: the study is done. 75: another piece has to follow.
"""

from __future__ import annotations

import argparse
import io
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

PART = 15 << 20
MOST = 60_000_000  # bytes
OTHERS = ("regress", "evaluate")


def main() -> int:
    """One piece."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--in", type=Path, dest="brought", metavar="IN", help="OUT of the piece before")
    parser.add_argument("--store", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--seconds", type=float, default=530)
    given, options = parser.parse_known_args()
    if given.brought is not None and given.brought.is_dir():
        print(f"brought: {unpack(given.brought, given.store)} files", flush=True)
    command = [sys.executable, "-m", "physion.cli", "run", "--store", str(given.store), *(options or ["--preset", "gpu"])]
    study = subprocess.Popen(command)
    try:
        code = study.wait(given.seconds)
    except subprocess.TimeoutExpired:
        study.terminate()  # it saves its progress
        code = study.wait()
    print(f"brought out: {pack(given.store, given.out) / 1e6:.1f} MB", flush=True)
    return 75 if code == 128 + signal.SIGTERM else code


def pack(store: Path, out: Path) -> int:
    """Write what is worth bringing out, the most precious first and no more than MOST bytes; returns how many they are."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for folder, paths in _precious(store):  # whole ones: a manifest without its files would be a broken artifact
            size = sum(path.stat().st_size + 2 * tarfile.BLOCKSIZE for path in paths)
            if data.tell() + size > MOST - tarfile.RECORDSIZE:
                print(f"left behind: {folder.relative_to(store)}, as more than {MOST / 1e6:.0f} MB would come out", flush=True)
                continue
            for path in paths:
                tar.add(path, path.relative_to(store))
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("study.*"):
        old.unlink()
    for number, first in enumerate(range(0, data.tell(), PART)):
        (out / f"study.{number:02}").write_bytes(data.getbuffer()[first : first + PART])
    return data.tell()


def unpack(brought: Path, store: Path) -> int:
    """Put what an earlier piece brought out into the store, but for what is there already; returns the number of new files."""
    data = io.BytesIO(b"".join(path.read_bytes() for path in sorted(brought.glob("study.*"))))
    with tarfile.open(fileobj=data) as tar:
        new = [member for member in tar.getmembers() if not (store / member.name).exists()]
        # A manifest comes last: without it, an artifact counts as unfinished.
        tar.extractall(store, sorted(new, key=lambda member: member.name.endswith("manifest.json")), filter="data")
    return len(new)


def _precious(store: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders with their files: trainings that ended, regressions and reports; then what a stopped training left, with its last
    checkpoint only.
    """
    from physion.models.kinds import MODELS

    names = [*(stage for stage in MODELS.trainings() if stage != "train-readout"), *OTHERS]
    folders = [folder for name in names for folder in sorted((store / "artifacts" / name).glob("*"))]
    done = [folder for folder in folders if (folder / "manifest.json").exists()]
    for folder in [*done, *(folder for folder in folders if folder not in done)]:
        older = sorted((folder / "checkpoints").glob("*"))[:-1]
        yield folder, [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in older]


if __name__ == "__main__":
    sys.exit(main())
