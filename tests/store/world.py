"""Folders of ours among files of others, which nobody may change, remove or add to; and disks that lack something."""

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path


class World:
    """`place(name)` gives a path for a folder of ours; every folder on the way there holds others' files."""

    def __init__(self, root):
        self.root, self.ours, self.before = root, [], {}
        self.plant(root)

    def plant(self, folder, *names):
        """Put files of others into a folder, and below it."""
        self.check()
        for name in ("canary", ".hidden", "canary.json", "deep/er/canary", *names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{path} is not yours")
        self.before = self.others()
        return folder

    def place(self, name):
        around = self.root / f"around-{name.replace('/', '-')}"
        self.ours.append(around / name)
        self.plant(around)
        return around / name

    def others(self):
        """What there is that is not ours."""
        found = {}
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if Path(folder, name) not in self.ours]
            for path in (Path(folder, name) for name in names):
                if path not in self.ours and not any(str(path) == f"{ours}.lock" for ours in self.ours):
                    facts = path.lstat()
                    found[str(path)] = (path.read_bytes() if path.is_file() else None, facts.st_mode, facts.st_ino)
        return found

    def check(self):
        assert self.others() == self.before


# Of a disk that refuses, the kernel says so: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html
CALLS = {"x86_64": {"link": 86, "linkat": 265, "flock": 73}, "aarch64": {"linkat": 37, "flock": 32}}


def refuse(calls, error):
    """From now on these system calls of this process and its children fail with an error number, as on a disk without them."""
    numbers = [number for name, number in CALLS[platform.machine()].items() if name.startswith(tuple(calls))]
    program = [(0x20, 0, 0, 0)]  # load the call's number
    for number in numbers:
        program += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error)]  # where it is this one: return the error
    program.append((0x06, 0, 0, 0x7FFF0000))  # else allow it
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    libc = ctypes.CDLL(None, use_errno=True)
    prog = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, ctypes.create_string_buffer(prog), 0, 0) == 0, os.strerror(ctypes.get_errno())  # seccomp


if __name__ == "__main__":  # world.py CALLS ERROR ARGUMENTS...: physion on such a disk
    refuse(sys.argv[1].split(","), int(sys.argv[2]))
    from physion.cli import main

    sys.argv = ["physion", *sys.argv[3:]]
    main()
