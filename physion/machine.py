"""What this process may use of the machine: cores, memory and GPUs, within the limits of its affinity and its container."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUS = Path("/proc/cpuinfo")
MEMORY = Path("/proc/meminfo")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Machine:
    """The resources to distribute: cores, bytes of memory, GPUs by their names in CUDA_VISIBLE_DEVICES."""

    cores: int
    memory: float
    gpus: tuple[str, ...] = ()


def this_machine() -> Machine:
    """What this process can use now."""
    return Machine(cores(), free_memory(), gpus())


def cores() -> int:
    """Cores that this process may keep busy."""
    seen = seen_cores()
    return min(seen, math.ceil(core_limit() or seen))


def seen_cores() -> int:
    """Cores that this process may run on, regardless of limits on CPU time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity


def total_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def core_limit() -> float | None:
    """CPU time, in cores, that the cgroups around this process allow (version 2 or 1); None without a limit."""
    limits = []
    for group in _cgroups("cpu"):
        quota, period = [*_read(group / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = (_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit() -> int | None:
    """Bytes of memory that the cgroups around this process allow; None without a limit."""
    return min((limit for limit, _ in _memory_limits()), default=None)


def free_memory() -> int:
    """Bytes of memory that this process and its children may still use."""
    available = _fields(MEMORY).get("MemAvailable:")
    free = total_memory() if available is None else available * 1024  # macOS does not say
    return max(0, min([free, *(limit - used for limit, used in _memory_limits())]))


def gpus() -> tuple[str, ...]:
    """The GPUs that torch can use."""
    devices = Path("/dev")
    if not any(devices.glob("nvidia[0-9]*")) and not any((devices / name).exists() for name in ("dxg", "kfd")):
        return ()  # importing torch takes seconds, only to learn that there is none
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(visible.split(",")[:count] if visible else map(str, range(count)))


def device_name() -> str:
    """This machine's GPU or, if torch can use none, its CPU."""
    if not gpus():
        return cpu_name()
    import torch

    return torch.cuda.get_device_name()


def cpu_name() -> str:
    """The CPU's model, and how many of its cores this process may use, such as `AMD EPYC, 2 cores`."""
    names = [line.partition(":")[2].strip() for line in _read(CPUS).splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores()} cores"


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Limits of the cgroups around this process, with the use of each; file cache does not count, because it gives way."""
    for group in _cgroups("memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            if (most := _read(group / limit)).isdigit():
                taken = _read(group / used)
                yield int(most), int(taken or 0) - _fields(group / "memory.stat").get(cache, 0)


def _cgroups(controller: str) -> list[Path]:
    """The cgroup of this process and those around it. A container may see its own as the root."""
    groups = [CGROUP, CGROUP / controller]
    for line in _read(OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = CGROUP / controller if controllers else CGROUP
            group = root / path.lstrip("/")
            groups += [each for each in (group, *group.parents) if each != root and each.is_relative_to(root)]
    return groups


def _fields(path: Path) -> dict[str, int]:
    return {words[0]: int(words[1]) for line in _read(path).splitlines() if len(words := line.split()) > 1}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
