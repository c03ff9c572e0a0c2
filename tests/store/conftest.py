import socket
import subprocess
import sys
import time
import uuid

import boto3
import pytest

from physion.store.local import LocalStore
from physion.store.s3 import MiB, S3Store
from physion.store.s3_requests import Patience

PATIENCE = Patience(attempts=8, base=0.01, cap=0.1, connect=2.0, read=5.0)


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
    """Port of a second S3 server, so that nothing depends on what only the first one does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    while True:
        assert process.poll() is None
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket="tests")
    yield port
    process.kill()
    process.wait()


@pytest.fixture
def s3_store(s3, tmp_path):
    """Makes stores in a prefix of the test's own, on whatever server the environment names."""
    prefix = uuid.uuid4().hex

    def make(**options):
        return S3Store("tests", prefix, **{"scratch": tmp_path / "scratch", "patience": PATIENCE, "part": 5 * MiB} | options)

    return make


@pytest.fixture(params=["file", "seaweedfs", "moto"])
def store(request, tmp_path, monkeypatch):
    """Every kind of store in turn."""
    if request.param == "file":
        return LocalStore(tmp_path / "store")
    make = request.getfixturevalue("s3_store")
    if request.param == "moto":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{request.getfixturevalue('moto')}")
    return make()
