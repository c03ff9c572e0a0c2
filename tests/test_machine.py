"""What a container's limits leave of a machine, in file systems as cgroup v2 and v1 have them."""

import os

import pytest

from physion import machine

MEMORY_STAT = "anon 100\ninactive_file 300\ntotal_inactive_file 300\n"


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Files of the cgroup file system, and the cgroup that this process is said to be in."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))

    def write(own, **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_without_limits_it_is_what_the_machine_has(cgroups):
    cgroups("0::/\n", **{"cpu.max": "max 100000", "memory.max": "max"})
    assert (machine.cores(), machine.core_limit(), machine.memory_limit()) == (8, None, None)
    assert machine.free_memory() > 0


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"cpu.max": "250000 100000"}),  # a container, which sees its own cgroup as the root
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "250000 100000", "a/b/cpu.max": "400000 100000"}),
        ("3:cpu,cpuacct:/docker/1\n", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}),
        ("3:cpu:/a\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_quota_us": "25000", "cpu/a/cpu.cfs_period_us": "10000"}),
    ],
)
def test_the_narrowest_limit_of_time_counts_rounded_up(cgroups, own, files):
    cgroups(own, **files)
    assert (machine.core_limit(), machine.cores()) == (2.5, 3)


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/a\n", {"a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": MEMORY_STAT}),
        (
            "4:memory:/docker/1\n",
            {f"memory/{name}": text for name, text in (
                ("memory.limit_in_bytes", "1000"), ("memory.usage_in_bytes", "700"), ("memory.stat", MEMORY_STAT),
            )},
        ),
    ],
)  # fmt: skip
def test_memory_that_is_left_counts_the_cache_of_files_as_free(cgroups, own, files):
    cgroups(own, **files)
    assert (machine.memory_limit(), machine.free_memory()) == (1000, 600)


def test_a_system_without_affinity_and_proc_says_cores_and_memory_all_the_same(cgroups, monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "none")
    cgroups("")
    assert machine.cores() == os.cpu_count()
    assert machine.free_memory() == machine.total_memory() > 1e8


def test_gpus_have_the_names_that_others_know_them_by(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(machine.Path, "glob", lambda path, pattern: iter([path / "nvidia0"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc,5")
    assert machine.gpus() == ("GPU-abc", "5")
