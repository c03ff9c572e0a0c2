"""`physion store serve`: an S3 server on this machine."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from physion.commands import folder
from physion.errors import TransientError
from physion.progress import say


def serve(
    directory: Annotated[
        Path, typer.Argument(parser=folder, metavar="[FOLDER]", help="Where to keep its data, credentials and ports.")
    ] = Path("runs/s3"),
    bucket: Annotated[str, typer.Option(help="Bucket to create.")] = "physion",
) -> None:
    """Run an S3 server (SeaweedFS) on loopback until Ctrl-C; the same directory brings the same data back."""
    from physion.store.server import ENVIRONMENT, LOG, Server

    server = Server(directory, bucket)

    def on_signal(*_: Any) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell that starts this in the background ignores it.
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.start()
        assert server.process is not None
        say(f"S3 at {server.endpoint}, bucket {bucket}; in another shell: . {server.root / ENVIRONMENT}; Ctrl-C stops it")
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        print(f"export PHYSION_STORE=s3://{bucket}/runs", flush=True)
        code = server.process.wait()
        raise TransientError(f"SeaweedFS ended with {code}; see {server.root / LOG}")
    except KeyboardInterrupt:
        say("stopping")
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)  # a second one must not cut the shutdown short
        server.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)
