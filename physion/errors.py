"""What can go wrong, as the person at the keyboard sees it: one clear line and an exit code that a scheduler can act on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

SHOWN_PARTS = 20  # that an error names at most


class PhysionError(Exception):
    """An expected failure: its text says what was wrong, with which value, where, and what to do."""

    exit_code = 1
    quiet = False  # another rank reports it


class ConfigError(PhysionError):
    """The configuration or the command line is wrong, or the machine lacks what it asks for; retrying cannot help."""

    exit_code = 2


class DataError(PhysionError):
    """The input data is bad: unreadable videos, labels that do not match, an artifact that fails its checksum."""

    exit_code = 3


class TransientError(PhysionError):
    """The store, the disk or the network failed; the same command may succeed later."""

    exit_code = 75


class PartsMissing(TransientError):
    """This process's parts are done, but others are not; `missing` has their numbers, of `total`."""

    def __init__(self, instance: str, missing: Sequence[int], total: int) -> None:
        self.missing, self.total = list(missing), total
        shown = ", ".join(map(str, self.missing[:SHOWN_PARTS])) + (", ..." if len(missing) > SHOWN_PARTS else "")
        super().__init__(
            f"{instance}: {len(missing)} of {total} parts are not done: {shown}. Wait for whoever makes them, run "
            f"`--share {self.missing[0]}/{total}` for that one and so on, or the same command without --share for all of them"
        )


class Interrupted(PhysionError):
    """Ctrl-C: the work done so far is saved; the same command resumes."""

    exit_code = 130


class Preempted(PhysionError):
    """SIGTERM: the work done so far is saved; the same command resumes."""

    exit_code = 143


def of_exit_code(code: int, text: str) -> PhysionError:
    """The error that ends a command with this exit code."""
    kinds = (ConfigError, DataError, TransientError, Interrupted, Preempted)
    return next((kind for kind in kinds if kind.exit_code == code), PhysionError)(text)


def nearest(name: str, known: Sequence[str]) -> str:
    """`, did you mean '...'?` with the most similar known name; empty if none is similar."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f", did you mean '{match[0]}'?" if match else ""
