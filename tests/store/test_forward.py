"""The one door to an S3 server: what goes through it, and that SeaweedFS, as compose and cluster start it, has no other."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from physion.store.forward import forward, listening
from physion.store.server import GRPC, PORTS, _free_ports
from physion.store.uri import open_store

ROOT = Path(__file__).parents[2]
ELSEWHERE = "127.0.0.2"  # what listens on 127.0.0.1 alone does not answer there; what listens everywhere does
PATIENCE = 60


@pytest.fixture
def door():
    """A door to a port; its own port."""

    def open_to(port):
        listener = listening(0)
        threading.Thread(target=forward, args=(listener, port), daemon=True).start()
        return listener.getsockname()[1]

    return open_to


@pytest.fixture
def server():
    """A server on loopback that sends back what it gets once it has all of it; its port."""

    def answer(listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # the test is over
                return
            with client, client.makefile("rb") as incoming:
                client.sendall(incoming.read())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def test_what_is_sent_arrives_and_an_end_is_an_end(door, server):
    data = os.urandom(5_000_000)
    for host in (ELSEWHERE, "127.0.0.1"):
        with socket.create_connection((host, door(server)), timeout=PATIENCE) as client:
            threading.Thread(target=lambda client=client: (client.sendall(data), client.shutdown(socket.SHUT_WR))).start()
            with client.makefile("rb") as incoming:
                assert incoming.read() == data


def test_many_at_once(door, server):
    port = door(server)
    clients = [socket.create_connection((ELSEWHERE, port), timeout=PATIENCE) for _ in range(50)]
    client = clients[-1]
    client.sendall(b"the others wait")
    for idle in clients[:-1]:
        idle.close()
    client.shutdown(socket.SHUT_WR)
    with client, client.makefile("rb") as incoming:
        assert incoming.read() == b"the others wait"


def test_no_server_is_a_closed_connection(door):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()[1]
    port = door(nobody)
    for _ in range(2):
        with socket.create_connection((ELSEWHERE, port), timeout=PATIENCE) as client:
            assert client.recv(1) == b""


def test_it_ends_when_it_is_told_to(server):
    command = [sys.executable, "-m", "physion.store.forward", "0", str(server)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not listened_to(process.pid):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert (process.wait(PATIENCE), process.stderr.read()) == (0, b"")
    process.stderr.close()


def listened_to(pid):
    """The TCP ports that a process listens on."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    own = {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in own}


def in_compose():
    """The options that compose starts SeaweedFS with."""
    script = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["s3"]["command"][0]
    return shlex.split(re.search(r"weed (-logtostderr mini .*?) &$", script, re.MULTILINE | re.DOTALL)[1].replace("\\\n", ""))


def in_the_cluster():
    documents = yaml.safe_load_all((ROOT / "k8s/components/s3/server.yaml").read_text())
    (pod,) = (each["spec"]["template"]["spec"] for each in documents if each["kind"] == "StatefulSet")
    return next(each["args"] for each in pod["containers"] if each["name"] == "weed")


@pytest.mark.parametrize("options", [in_compose, in_the_cluster])
def test_seaweedfs_has_no_port_that_others_reach(options, door, tmp_path, monkeypatch):
    weed, first = shutil.which("weed", path=Path(sys.executable).parent), _free_ports()
    ours = [option for option in options() if not option.startswith(("-dir=", "-s3.port="))]
    ports = [f"-{name}={first + offset}" for name, offset in PORTS.items()]
    keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "who-has-the-key"}
    environment = {"HOME": str(tmp_path), "PATH": os.defpath, **keys}
    with (tmp_path / "log").open("wb") as log:
        command = [weed, *ours, f"-dir={tmp_path}", *ports]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        port = door(first)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{ELSEWHERE}:{port}")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        store = open_store("s3://bucket/x")
        store.create()
        store.write("a", b"through the door")
        assert store.read("a") == b"through the door"
        wanted = {first, first + GRPC, *(first + PORTS[f"{part}.port"] for part in ("master", "volume", "filer"))}
        deadline = time.monotonic() + 60
        while not wanted <= (there := listened_to(process.pid)):  # the last one opens after S3 answers
            assert time.monotonic() < deadline, wanted - there
            time.sleep(0.05)
        for port in sorted(there):
            with socket.socket() as probe:
                assert probe.connect_ex((ELSEWHERE, port)) != 0, f"port {port} is open to others"
    finally:
        process.kill()
        process.wait()
