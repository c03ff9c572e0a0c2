"""The whole study in a bucket: the same numbers as on plain files, by two runners at once, and with a server that is killed."""

import os
import subprocess
import sys
import time

import pytest

from physion.store.artifacts import Artifact, read_manifest
from physion.store.s3 import S3Store
from physion.store.server import Server

RESULTS = ("metrics.json", "predictions.csv")


def start(preset, uri):
    command = [sys.executable, "-m", "physion.cli", "run", "--preset", preset, "--store", uri]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(process):
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def same_results(store, finished):
    """Every artifact is whole, nothing else is there, and the results are those of plain files."""
    keys = store.list("artifacts")
    manifests = [key for key in keys if key.endswith("/manifest.json")]
    assert len(manifests) == 30
    named = set(manifests)
    for key in manifests:
        _, stage, fingerprint, _ = key.split("/")
        artifact = Artifact(store, read_manifest(store, stage, fingerprint))
        named |= {f"{artifact.prefix}/{name}" for name in artifact.names() if artifact.path(name)}
        if stage == "evaluate":
            for name in RESULTS:
                (plain,) = finished.glob(f"artifacts/evaluate/*/{name}")
                assert artifact.path(name).read_bytes() == plain.read_bytes()
    assert set(keys) == named


def test_two_runners_at_once_end_as_on_plain_files(preset, finished, s3, tmp_path):
    uri = "s3://tests/study"
    both = [ended(process) for process in [start(preset, uri) for _ in range(2)]]
    assert [code for code, _, _ in both] == [0, 0], "\n".join(err for _, _, err in both)
    assert both[0][1] == both[1][1]
    same_results(S3Store("tests", "study", scratch=tmp_path / "scratch"), finished)
    code, out, err = ended(start(preset, uri))
    assert (code, out) == (0, both[0][1])
    assert err.count(": cached") == 30


waits = pytest.mark.skipif(not os.environ.get("PHYSION_TEST_SLOW"), reason="waits a minute; PHYSION_TEST_SLOW=1")


@pytest.mark.parametrize("patient", [True, pytest.param(False, marks=waits)])
def test_a_server_that_is_killed_mid_run(preset, finished, s3, tmp_path, monkeypatch, patient):
    """Back soon, the run goes on as if nothing had been; else it ends with 75, and the same command goes on."""
    server = Server(tmp_path / "server", "tests")
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store = S3Store("tests", "study", scratch=tmp_path / "scratch")
    process = start(preset, "s3://tests/study")
    while not store.list("artifacts/train-dvae"):
        assert process.poll() is None
        time.sleep(0.05)
    server.process.kill()
    server.process.wait()
    if not patient:
        code, _, err = ended(process)
        assert code == 75, err
        assert "cannot be reached (Connection refused); check AWS_ENDPOINT_URL and that the server runs" in err
        server.start()
        process = start(preset, "s3://tests/study")
    else:
        server.start()
    code, _, err = ended(process)
    assert code == 0, err
    same_results(store, finished)
    os.kill(server.process.pid, 9)
    server.process.wait()
