"""Ranks as real processes, forked from a server in which torch is imported already (which takes ten seconds a process)."""

import multiprocessing.connection
import os
import signal
import socket
import sys
import time
from pathlib import Path

from physion.errors import PhysionError

PRELOADED = [
    "physion.cli", "physion.pipeline.runner", "physion.store.s3", "physion.stages.train_dvae", "physion.stages.train_steve",
    "physion.stages.train_slotformer", "physion.stages.train_readout", "torch._dynamo", "torch.utils.tensorboard",
]  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Ranks:
    """`count` processes that run the same function, with the environment that torchrun would give them."""

    def __init__(self, count, function, *arguments, log):
        self.log = Path(log)
        port = free_port()
        self.processes = []
        for rank in range(count):
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": count,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            Path(f"{log}.{rank}").touch()
            process = CONTEXT.Process(target=_rank, args=(environment, f"{log}.{rank}", function, arguments), daemon=True)
            process.start()
            self.processes.append(process)

    def wait(self, seconds=120):
        """Exit codes of all ranks; those that do not end are killed, and have None."""
        for process in self.processes:
            process.join(seconds)
            if process.is_alive():
                process.kill()
        return [process.exitcode for process in self.processes]

    def clear_away(self, patience=2):
        """As torchrun does when a rank has died: SIGTERM to those that have not noticed, and later SIGKILL."""
        sentinels = [process.sentinel for process in self.processes]
        multiprocessing.connection.wait(sentinels, 120)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.wait_running(patience) and any(process.exitcode for process in self.processes):
                self.signal(number)

    def wait_running(self, seconds):
        """Let time pass, as long as a rank runs. Tells whether one still does."""
        deadline = time.monotonic() + seconds
        while any(process.is_alive() for process in self.processes) and time.monotonic() < deadline:
            time.sleep(0.002)
        return any(process.is_alive() for process in self.processes)

    def signal(self, number, ranks=None):
        for rank in range(len(self.processes)) if ranks is None else ranks:
            if self.processes[rank].is_alive():
                os.kill(self.processes[rank].pid, number)

    def said(self, rank=0):
        return Path(f"{self.log}.{rank}").read_text()


def physion(*arguments):
    """The command line, as a function for `Ranks`."""
    sys.argv = ["physion", *map(str, arguments)]
    from physion.cli import main

    main()


def _rank(environment, log, function, arguments):
    os.environ |= {key: str(value) for key, value in environment.items()}
    # The server is one for the whole process: `physion run` in an earlier test may have started it, with signals held back.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        function(*arguments)
    except PhysionError as error:  # ends as the command line does
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
