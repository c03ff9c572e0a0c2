"""docker compose: the chain to its report, and again after the pipeline, the S3 server and the daemon were killed."""

import contextlib
import os
import re
import signal
import stat
import time
from pathlib import Path

from conftest import HARDENED, IMAGE, ROOT, Project, docker, run

DAEMON_UP = ROOT.parent / "shared" / "docker" / "up"


def kill_daemon():
    """As an init system does when it kills the service: dockerd and its containerd; the containers' own processes stay."""
    state = Path(os.environ["DOCKER_HOST"].removeprefix("unix://")).parent
    for file in (state / "pid", state / "exec" / "containerd" / "containerd.pid"):
        pid = int(file.read_text())
        with contextlib.suppress(ProcessLookupError):  # containerd goes with dockerd, on its own
            os.kill(pid, signal.SIGKILL)
        # A new dockerd would take a containerd that nobody has reaped yet for a living one.
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.1)


def wait_for(log, text, process):
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)


def container(project, service):
    return project("ps", "--all", "--quiet", service).stdout.strip()


def test_images_may_be_named_by_digest(tmp_path):
    digest = "@sha256:" + "0123456789abcdef" * 4
    project = Project(tmp_path)
    with (tmp_path / ".env").open("a") as file:
        file.write(f"PHYSION_IMAGE=registry.example/physion{digest}\nSEAWEEDFS_IMAGE=chrislusf/seaweedfs{digest}\n")
    images = project("config", "--images").stdout.split()
    assert set(images) == {f"registry.example/physion{digest}", f"chrislusf/seaweedfs{digest}"}


def test_the_chain_and_the_same_after_kills(project, tmp_path):
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    undisturbed = project.up()
    assert undisturbed.returncode == 0, undisturbed.stdout[-3000:]
    assert "report: /scratch/report.html" in undisturbed.stdout
    assert project("ps", "--quiet").stdout == ""  # everything stopped
    project("cp", "physion:/scratch/report.html", tmp_path)
    assert "<html" in (tmp_path / "report.html").read_text()[:500]
    wanted = project.metrics(tmp_path)
    project("down")  # the volumes stay
    again = project.up()
    assert again.returncode == 0
    assert again.stderr.count(": cached") == 36
    (secret,) = re.findall("AWS_SECRET_ACCESS_KEY=(.+)", (tmp_path / ".env").read_text())
    assert secret not in undisturbed.stdout + undisturbed.stderr + project("logs").stdout

    project("down", "--volumes")
    log = tmp_path / "up.log"
    process = project.start(log)
    wait_for(log, "train-dvae: train", process)
    docker("kill", "--signal", "KILL", container(project, "physion"))
    assert process.wait(timeout=120) != 0
    process = project.start(log)
    wait_for(log, "train-steve: train", process)
    docker("kill", "--signal", "KILL", container(project, "s3"))
    process.wait(timeout=600)
    process = project.start(log)
    wait_for(log, "train-slotformer: train", process)
    if os.environ.get("PHYSION_KILL_DAEMON"):
        kill_daemon()
        process.wait(timeout=120)
        run(DAEMON_UP)
    else:
        project("kill")
        process.wait(timeout=120)
    ended = project.up()
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "train-dvae: cached" in ended.stderr
    assert project.metrics(tmp_path) == wanted


LISTENING = """
rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").read().splitlines()[1:]]
print(*sorted({int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}))
"""
OPEN = """
import socket, sys
for port in map(int, sys.argv[2:]):
    with socket.socket() as probe:
        probe.settimeout(5)
        if probe.connect_ex((sys.argv[1], port)) == 0:
            print(port)
"""


def test_another_container_reaches_the_s3_port_alone(project):
    """Tried on every port that something listens on in the server's network, and on those that SeaweedFS would take."""
    project("up", "--no-build", "--detach", "--wait", "door", "s3")
    ports = {int(port) for port in project("exec", "--no-TTY", "door", "python", "-c", LISTENING).stdout.split()}
    assert {8333, 8334, 8888, 9333} <= ports
    ports |= {18333, 18334, 18888, 19333, 9340, 19340, 23646, 33646, 7333, 8181, 9101}
    network = ("--network", f"{project.name}_default", "--entrypoint", "python")
    found = docker("run", "--rm", *HARDENED, *network, IMAGE, "-c", OPEN, "s3", *sorted(ports)).stdout.split()
    assert found == ["8333"]
