"""The processes of `physion run`: each is a `physion stage` command, forked from a server that has already imported torch."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from physion.progress import Output

CONTEXT = multiprocessing.get_context("forkserver")
# Modules that take seconds to import and that several stages need. physion.cli itself may be the main program, which every
# process imports anyway.
PRELOADED = [
    *(f"physion.commands.{module.name}" for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "commands")])),
    "physion.pipeline.runner",
    "physion.training.engine",
    "physion.training.distributed",
    "torch._dynamo",
    "torch.utils.tensorboard",
    *(f"sklearn.{part}" for part in ("decomposition", "ensemble", "linear_model", "model_selection", "preprocessing")),
]
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
ERROR = "error: "


class StageProcess:
    """A running `physion stage` command.

    arguments: for `physion`. environment: variables in addition to this process's. threads: torch's CPU threads.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], threads: int) -> None:
        CONTEXT.set_forkserver_preload(PRELOADED)
        self._output, writer = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_run, args=(writer, list(arguments), dict(environment), threads))
        resource_tracker.ensure_running()  # here, because starting it unblocks signals at the end
        with _signals_held():
            self._process.start()
        writer.close()
        os.set_blocking(self._output.fileno(), False)
        self._open, self._unfinished, self._error = True, b"", list[str]()

    @property
    def signs(self) -> list[Any]:
        """What becomes readable when it writes or ends."""
        return [self._process.sentinel, *([self._output] if self._open else [])]

    @property
    def code(self) -> int | None:
        """Its exit code, 128 + n for signal n; None while it runs."""
        code = self._process.exitcode
        return None if code is None else code if code >= 0 else 128 - code

    @property
    def error(self) -> str:
        """The error that it ended with, in its own words."""
        return "\n".join(self._error).removeprefix(ERROR)

    def listen(self, heard: Callable[[str], None]) -> None:
        """Pass on the lines that it wrote, except its error."""
        with suppress(BlockingIOError):
            while data := os.read(self._output.fileno(), 65536):
                *lines, self._unfinished = (self._unfinished + data).split(b"\n")
                for line in lines:
                    text = line.decode(errors="replace")
                    if self._error or text.startswith(ERROR):
                        self._error.append(text)
                    else:
                        heard(text)
            self._open = False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still running."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def close(self) -> None:
        """Kill it if it is still running."""
        self._process.kill()
        self._process.join()
        self._output.close()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Block signals. The server inherits this, so that a signal to the whole group does not end it before its children end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(output: Connection, arguments: list[str], environment: dict[str, str], threads: int) -> None:
    """In the new process: become the command. Ctrl-C stays blocked: `physion run` decides what it means."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)  # when the server ends, as it does with `physion run`
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    # The server's own are for what was here before, such as a file.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    Output.relayed = True

    import torch

    torch.set_num_threads(threads)
    sys.argv = ["physion", *arguments]
    importlib.import_module("physion.cli").main()
