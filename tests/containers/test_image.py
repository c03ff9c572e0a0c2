"""The image: hardened, small where it can be, clean, and quick to make again."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile

from conftest import HARDENED, IMAGE, ROOT, build, docker

SITE = "opt/physion/lib/python3.11/site-packages"
SECRETS = re.compile(
    rb"-----BEGIN [A-Z ]*(PRIVATE KEY|CERTIFICATE)-----\s+[A-Za-z0-9+/=\s]{100}"
    rb"|\bAKIA[0-9A-Z]{16}\b|://[^/\s:@'\"]+:[^/\s:@'\"]{8,}@"
)
FORBIDDEN = re.compile(r"(^|/)(\.env|\.netrc|\.aws|\.ssh|\.git|pip\.conf|\.pypirc|id_rsa|uv\.toml|__pycache__/conftest.*)($|/)")


def inside(script):
    return docker("run", "--rm", *HARDENED, "--network", "none", "--entrypoint", "sh", IMAGE, "-c", script).stdout


def test_it_runs_hardened(image):
    ended = docker("run", "--rm", *HARDENED, "--network", "none", "--memory", "512m", IMAGE, "--version")
    assert ended.stdout == "physion 0.1.0\n"
    assert (
        docker("run", "--rm", *HARDENED, IMAGE, "stage", "nonsense", "-p", "smoke", "-s", "/scratch/x", check=False).returncode
        == 2
    )


def test_it_is_nobody_and_writes_to_scratch_only(image):
    assert image["Config"]["User"] == "10001:10001"
    assert inside("id -u").strip() == "10001"
    writable = inside("find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' 2> /dev/null; true").split()
    assert {path for path in writable if not path.startswith("/scratch")} <= {"/tmp", "/var/tmp", "/run/lock", "/var/lock"}
    docker("run", "--rm", *HARDENED, "--entrypoint", "touch", IMAGE, "/scratch/file")
    assert docker("run", "--rm", *HARDENED, "--entrypoint", "touch", IMAGE, "/opt/file", check=False).returncode == 1


def test_labels(image):
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.revision"] == "abc123"
    assert "PHYSION_COMMIT=abc123" in image["Config"]["Env"]


def test_doctor_sees_the_limits(image):
    options = (*HARDENED, "--network", "none", "--memory", "3g", "--cpus", "0.5", "--shm-size", "100m")
    found = json.loads(docker("run", "--rm", *options, IMAGE, "doctor", "--json", "-s", "/scratch/store").stdout)["result"]
    found = {finding["name"]: finding for finding in found}
    assert "3.0 GiB of the machine's" in found["memory"]["text"]
    assert "0.1 GiB" in found["shm"]["text"]
    assert found["shm"]["state"] == "warn"
    assert "limited to the time of 0.5" in found["cores"]["text"]
    assert found["store"]["state"] == found["gpu"]["state"] == "ok"
    refused = docker("run", "--rm", *HARDENED, IMAGE, "doctor", "-s", "/opt/store", check=False)
    assert refused.returncode == 2
    assert "will not work as it is: store" in refused.stderr


def test_no_layer_holds_secrets_or_certificates(image):
    """Of all layers above the base, hidden files too. What a wheel brought is fine if it is as its RECORD says."""
    base = json.loads(docker("image", "inspect", "debian:bookworm-slim").stdout)[0]["RootFS"]["Layers"]
    saving = subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE)
    suspicious, recorded, order, looked = {}, {}, [], 0
    with tarfile.open(fileobj=saving.stdout, mode="r|") as archive:
        for member in archive:
            if member.name == "manifest.json":
                order = json.load(archive.extractfile(member))[0]["Layers"]
            elif member.name.endswith("layer.tar") and member.isfile():
                suspicious[member.name] = {}
                with tarfile.open(fileobj=archive.extractfile(member), mode="r|") as layer:
                    for file in layer:
                        data = layer.extractfile(file).read() if file.isfile() and file.size < 2 << 20 else b""
                        looked += 1
                        if FORBIDDEN.search(file.name) or SECRETS.search(data):
                            suspicious[member.name][file.name] = hashlib.sha256(data).digest()
                        if file.name.endswith(".dist-info/RECORD"):
                            recorded |= {f"{SITE}/{row[0]}": row[1] for row in csv.reader(io.StringIO(data.decode())) if row}
    assert saving.wait() == 0
    assert looked > 10_000
    found = {name: digest for layer in order[len(base) :] for name, digest in suspicious[layer].items()}
    assert f"{SITE}/certifi/cacert.pem" in found  # the search finds what there is
    digests = {name: base64.urlsafe_b64encode(digest).rstrip(b"=").decode() for name, digest in found.items()}
    strange = [name for name in digests if recorded.get(name) != f"sha256={digests[name]}" and not name.endswith(".pyc")]
    assert strange == []


def test_a_change_of_the_source_makes_one_layer_anew(image, tmp_path):
    for name in ("images", "physion", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.lock", "requirements-build.lock", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    with (tmp_path / "physion/errors.py").open("a") as file:
        file.write("\n# changed\n")
    changed = build(tmp_path, "physion:test-changed")
    docker("image", "rm", "physion:test-changed")
    before, after = image["RootFS"]["Layers"], changed["RootFS"]["Layers"]
    assert len(before) == len(after)
    assert [one == two for one, two in zip(before, after, strict=True)] == [True] * (len(before) - 1) + [False]
