"""A thread that ends the process if the training waits too long for one thing: data, other ranks, the store, the device."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from physion.errors import TransientError


class Watchdog:
    """Watches one rank, as a context; calling `doing` says what the rank is doing, and that it is alive."""

    def __init__(self, who: str, limit: float) -> None:
        self._who, self._limit = who, limit
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.doing("starting")

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def doing(self, what: str) -> None:
        """Begin another activity, which gets the full time limit; `what` completes the sentence "rank 1 is ..."."""
        self._now = what, time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._limit / 4)):
            what, since = self._now
            if time.monotonic() - since > self._limit:
                print(
                    f"error: {self._who} has been {what} for {self._limit:.0f} s and seems stuck; ending it. "
                    "The same command resumes from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(TransientError.exit_code)  # the main thread may be stuck in a call that never returns
