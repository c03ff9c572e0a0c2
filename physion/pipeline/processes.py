"""The processes of `physion run`: each is a `physion stage` command, forked from a server that has imported torch already."""

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
# What takes seconds to import and several stages need. physion.cli itself may be the main program, which every process
# imports for itself.
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
    """A `physion stage` command that runs.

    arguments: of `physion`. environment: variables beside this process's. threads: CPU threads of torch.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], threads: int) -> None:
        CONTEXT.set_forkserver_preload(PRELOADED)
        self._output, writer = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_run, args=(writer, list(arguments), dict(environment), threads))
        resource_tracker.ensure_running()  # here, since it ends by letting signals through
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
        """Pass on the lines that it wrote, but for its error."""
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
        """Send it a signal, if it still runs."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def close(self) -> None:
        """Kill it if it still runs."""
        self._process.kill()
        self._process.join()
        self._output.close()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back. The server inherits that: one to the whole group must not end it before its children have."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(output: Connection, arguments: list[str], environment: dict[str, str], threads: int) -> None:
    """In the new process: become the command. Ctrl-C stays held back: `physion run` decides what it means."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)  # when the server ends, and that ends with `physion run`
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    # Those of the server are for what stood here before, such as a file.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    Output.relayed = True

    import torch

    torch.set_num_threads(threads)
    sys.argv = ["physion", *arguments]
    importlib.import_module("physion.cli").main()
