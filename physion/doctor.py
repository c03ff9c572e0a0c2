"""Will it work here? One finding per line: GPU and driver, shared memory, cores, memory, disk, store, clock."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from physion.errors import PhysionError
from physion.machine import core_limit, memory_limit, seen_cores, total_memory
from physion.store.folders import locked
from physion.store.local import LocalStore
from physion.store.protocol import Store

State = Literal["ok", "warn", "fail"]
GiB = 2**30
SHM = Path("/dev/shm")  # noqa: S108 (it is looked at)
SKEW_WARNED, SKEW_REFUSED = 60.0, 15 * 60.0  # seconds; S3 refuses requests that are a quarter of an hour off


@dataclass(frozen=True)
class Finding:
    """What was checked, whether it will do, and what was found (and what to do)."""

    name: str
    state: State
    text: str


def examine(store: Store | None, scratch: Path) -> Iterator[Finding]:
    """Check everything, one finding at a time; a check that raises an error is itself a failure."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("gpu", gpu),
        ("shm", shared_memory),
        ("cores", cores),
        ("memory", memory),
        ("scratch", lambda: free_space(scratch)),
    ]
    if store is not None:
        checks += [("store", lambda: reachable(store)), ("clock", lambda: clock(store))]
    for name, check in checks:
        try:
            yield check()
        except PhysionError as error:
            yield Finding(name, "fail", str(error))
        except Exception as error:
            yield Finding(name, "fail", f"{type(error).__name__}: {error}")


def gpu() -> Finding:
    """Whether torch can use the machine's GPU."""
    import torch

    build = f"torch {torch.__version__}, CUDA build {torch.version.cuda or 'none'}"
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} ({device.total_memory / GiB:.0f} GiB)" for device in devices)
        torch.zeros(1, device="cuda").add_(1).item()  # a driver can be visible and still not run anything
        return Finding("gpu", "ok", f"{names}; {build}")
    driver = _driver()
    if driver is None and not list(Path("/dev").glob("nvidia[0-9]*")):
        return Finding("gpu", "ok", f"none: everything runs on the CPU; {build}")
    return Finding(
        "gpu",
        "fail",
        f"there is a GPU (driver {driver or 'not loaded'}), but {build} cannot use it: the driver is too old for it, or the "
        "container was started without the GPU (docker: --gpus all)",
    )


def shared_memory() -> Finding:
    """Data workers hand their batches over in /dev/shm."""
    size = shutil.disk_usage(SHM).total if SHM.is_dir() else 0
    text = f"{SHM} has {_gib(size)}"
    if size < GiB:
        advice = "data workers for a GPU need 1 GiB: docker run --shm-size 2g, or --set ...loader-workers=0"
        return Finding("shm", "warn", f"{text}; {advice}")
    return Finding("shm", "ok", text)


def cores() -> Finding:
    """Cores that this process may use, and its container's limit."""
    usable = seen_cores()
    limit = core_limit()
    if limit is not None and limit < usable:
        advice = "`physion stage` starts torch's threads for the cores seen (`physion run` does not): set OMP_NUM_THREADS"
        return Finding(
            "cores", "warn" if limit < usable / 2 else "ok", f"{usable} seen, limited to the time of {limit:g}; {advice}"
        )
    return Finding("cores", "ok", f"{usable}")


def memory() -> Finding:
    """Memory of the machine, and its container's limit."""
    total = total_memory()
    usable = min(total, memory_limit() or total)
    text = f"{_gib(usable)}" + (f" of the machine's {_gib(total)}" if usable < total else "")
    return Finding(
        "memory", "ok" if usable >= 2 * GiB else "warn", text + ("" if usable >= 2 * GiB else "; at least 2 GiB are needed")
    )


def free_space(scratch: Path) -> Finding:
    """Disk for the cache and for files in transit to the store."""
    scratch.mkdir(parents=True, exist_ok=True)
    probe = scratch / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"x")
        with locked(probe):  # raises if the disk has no file locks
            pass
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    free = shutil.disk_usage(scratch).free
    state: State = "ok" if free >= 10 * GiB else "warn" if free >= GiB else "fail"
    return Finding(
        "scratch", state, f"{_gib(free)} free in {scratch}" + ("" if state == "ok" else "; set PHYSION_CACHE elsewhere")
    )


def reachable(store: Store) -> Finding:
    """Write, read and remove an object."""
    key, data = f".physion/doctor-{uuid.uuid4().hex}", os.urandom(1024)
    started = time.monotonic()
    store.write(key, data)
    same = store.read(key) == data
    store.delete(key)
    seconds = time.monotonic() - started
    if not same:
        return Finding("store", "fail", f"{store.uri}: an object came back changed")
    text = f"{store.uri}: wrote, read and removed an object in {1000 * seconds:.0f} ms"
    if isinstance(store, LocalStore) and (missing := store.lacks()):
        advice = {
            "hard links": "commands that write at the same time take turns, using file locks",
            "file locks": "leftovers of killed processes stay in .staging",
        }
        if len(missing) > 1:
            return Finding("store", "fail", f"{text}, but its disk has no {' and no '.join(missing)}: choose another")
        return Finding("store", "warn", f"{text}; its disk has no {missing[0]}: {advice[missing[0]]}")
    return Finding("store", "ok", text)


def clock(store: Store) -> Finding:
    """This machine's clock compared with the store's: requests are signed with the time."""
    skew = store.clock_skew()
    if skew is None:
        return Finding("clock", "ok", "the store is a directory: one clock")
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store's"
    if abs(skew) >= SKEW_WARNED:
        state: State = "fail" if abs(skew) >= SKEW_REFUSED else "warn"
        return Finding("clock", state, f"{text}; S3 refuses requests at 15 minutes: set the time (ntp) on this machine")
    return Finding("clock", "ok", f"within {max(1.0, abs(skew)):.0f} s of the store's")


def _driver() -> str | None:
    words = _read(Path("/proc/driver/nvidia/version")).split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _gib(count: float) -> str:
    return f"{count / GiB:.1f} GiB"
