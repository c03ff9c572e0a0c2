"""Containers under a real Docker daemon: `make test-containers`. The image is built from this tree as it is."""

import json
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGE = "physion:test"
S3_IMAGE = "chrislusf/seaweedfs:4.48"  # as docker-compose.yml names it
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "10001:10001")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.containers)


def run(*command, check=True, **options):
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert not check or ended.returncode == 0, f"{command}: {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return ended


def docker(*arguments, **options):
    return run("docker", *arguments, **options)


def build(context, tag):
    options = ("--build-arg", "VERSION=0.1.0", "--build-arg", "REVISION=abc123")
    docker("build", "-f", Path(context) / "images/Dockerfile", "-t", tag, *options, context)
    return json.loads(docker("image", "inspect", tag).stdout)[0]


@pytest.fixture(scope="session", autouse=True)
def daemon():
    if shutil.which("docker") is None or docker("info", check=False).returncode:
        pytest.skip("there is no Docker daemon to reach (DOCKER_HOST)")


@pytest.fixture(scope="session")
def image(daemon):
    """What `docker image inspect` says of the image, built."""
    return build(ROOT, IMAGE)


@pytest.fixture(scope="session")
def s3_image(daemon):
    """SeaweedFS's image where it can be pulled or lies there; else a stand-in of the same name and program, from its wheel."""
    if docker("image", "inspect", S3_IMAGE, check=False).returncode and docker("pull", S3_IMAGE, check=False).returncode:
        stand_in = Path(__file__).with_name("seaweedfs.Dockerfile")
        docker("build", "-f", stand_in, "-t", S3_IMAGE, Path(sys.executable).parent)
    return S3_IMAGE


class Project:
    """A copy of the compose project with credentials of its own, on the CPU, with the smallest preset."""

    def __init__(self, folder):
        self.folder, self.name = folder, f"physion-test-{secrets.token_hex(4)}"
        for name in ("docker-compose.yml", "docker-compose.cpu.yml", "Makefile"):
            shutil.copy(ROOT / name, folder)
        run("make", "-s", "env", cwd=folder)
        text = (folder / ".env").read_text().replace("PHYSION_PRESET=gpu", "PHYSION_PRESET=smoke")
        (folder / ".env").write_text(text + f"PHYSION_IMAGE={IMAGE}\n")

    def command(self, *arguments):
        compose = Path(sys.executable).parent / "docker-compose"
        files = ("-f", "docker-compose.yml", "-f", "docker-compose.cpu.yml")
        return [str(compose), "-p", self.name, *files, *map(str, arguments)]

    def __call__(self, *arguments, **options):
        return run(*self.command(*arguments), cwd=self.folder, **options)

    def start(self, log):
        """`up`, in the background."""
        with log.open("w") as file:
            return subprocess.Popen(self.command("up", "--no-build"), cwd=self.folder, stdout=file, stderr=subprocess.STDOUT)

    def up(self):
        return self("up", "--no-build", check=False, timeout=1200)

    def metrics(self, folder):
        """metrics.json, fetched from the store as a user would."""
        self("run", "--rm", "--no-TTY", "physion", "store", "get", "evaluate", "/scratch/evaluate")
        self("cp", "physion:/scratch/evaluate/metrics.json", folder)
        return (Path(folder) / "metrics.json").read_bytes()


@pytest.fixture
def project(image, s3_image, tmp_path):
    made = Project(tmp_path)
    yield made
    made("down", "--volumes", "--remove-orphans", check=False)
