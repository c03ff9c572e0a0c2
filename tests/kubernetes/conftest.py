import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import yaml
from stand_in import Namespace, kind_there, stand_in, until

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_cluster_unasked(request, monkeypatch, tmp_path):
    """Only tests that are marked so may reach a cluster, whatever goes wrong in the others."""
    if request.node.get_closest_marker("cluster") is None:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))


@pytest.fixture(scope="session")
def namespace():
    """A namespace in which only unprivileged pods are let in, gone after the tests."""
    if not os.environ.get("KUBECONFIG"):
        pytest.fail("KUBECONFIG names no cluster")
    space = Namespace(f"physion-test-{uuid.uuid4().hex[:6]}")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    space.apply(apiVersion="v1", kind="Namespace", metadata={"name": space.name, "labels": labels})
    yield space
    space.kubectl("delete", "namespace", space.name, "--wait=false")


@pytest.fixture(scope="session")
def trained(preset, tmp_path_factory):
    """A store with what train-dvae reads, and what it makes of it."""
    store = tmp_path_factory.mktemp("trained")
    for stage in (["fetch"], ["frames", "--subset", "training"], ["train-dvae"]):
        command = [sys.executable, "-m", "physion.cli", "stage", *stage, "-p", preset, "-s", store]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return store


class Training:
    """train-dvae of one test: a store of its own, so a job of its own, and the launchers that follow it."""

    def __init__(self, namespace, preset, trained, folder):
        self.namespace, self.preset, self.folder = namespace, preset, folder
        self._trained = trained
        self.store = folder / "store"
        shutil.copytree(trained, self.store, ignore=shutil.ignore_patterns("train-dvae"))
        self.jobs = folder / "jobs"
        self.jobs.mkdir()
        self.manifest(stand_in())
        self._launchers = []

    def manifest(self, documents):
        name = "training.yaml" if kind_there() == "pytorchjob" else "trainjob.yaml"
        (self.jobs / name).write_text(yaml.safe_dump_all(documents))

    def publish(self):
        """What the stand-in does not do: the artifact."""
        shutil.copytree(self._trained / "artifacts/train-dvae", self.folder / "whole")
        (self.folder / "whole").rename(self.store / "artifacts/train-dvae")

    def launch(self, *options, **environment):
        launcher = Launcher(self, options, environment)
        self._launchers.append(launcher)
        return launcher

    def running(self, *options, workers=1, **environment):
        """A launcher whose workers run, and the name of its job."""
        launcher = self.launch(*options, **environment)
        name = self.job_name()
        self.namespace.running(name, workers)
        return launcher, name

    def done(self, launcher, name):
        """The training ends well, and so does its launcher."""
        self.publish()
        for index in self.namespace.workers(name):
            self.namespace.end(name, index, 0)
        assert launcher.ends() == 0, launcher.err

    @property
    def job(self):
        """The job that there is, or None."""
        mine = f"file://{self.store}"
        found = self.namespace.objects(kind_there())
        return next((job for job in found if job["metadata"]["annotations"]["physion/store"] == mine), None)

    def job_name(self):
        return until(lambda: self.job, "the job")["metadata"]["name"]

    def close(self):
        for launcher in self._launchers:
            launcher.process.kill()
            launcher.process.wait()
        if job := self.job:
            self.namespace.kubectl("delete", kind_there(), job["metadata"]["name"], "--ignore-not-found", "--wait=false")


class Launcher:
    """`physion launch train-dvae`, a process of its own as in its pod."""

    def __init__(self, training, options, environment):
        self._out, self._err = (training.folder / f"{uuid.uuid4().hex}.{name}" for name in ("out", "err"))
        words = ["launch", "train-dvae", "-p", training.preset, "-s", training.store, "--jobs", training.jobs]
        words += ["-n", training.namespace.name, *options]
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "physion.cli", *map(str, words)],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self):
        return self._out.read_text()

    @property
    def err(self):
        return self._err.read_text()

    def says(self, words):
        """Wait for it."""

        def look():
            assert words in self.err or self.process.poll() is None, self.err
            return words in self.err

        until(look, lambda: f"{words!r} in:\n{self.err}")

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def ends(self):
        """Its exit code."""
        until(lambda: self.process.poll() is not None, lambda: f"the end of:\n{self.err}")
        return self.process.returncode

    def counted(self):
        """The numbers of the stand-in's lines."""
        return [int(line.removeprefix("line ")) for line in self.err.splitlines() if line.startswith("line ")]

    def result(self):
        return json.loads(self.out)["result"]


@pytest.fixture
def training(namespace, preset, trained, tmp_path):
    mine = Training(namespace, preset, trained, tmp_path)
    yield mine
    mine.close()
