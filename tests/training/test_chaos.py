"""A handful of the hundred seeded kills a model that `python tests/training/chaos.py` deals out."""

import os

import pytest
from chaos import STAGES, Chaos

from physion.store.server import Server

SEED = int(os.environ.get("PHYSION_TEST_SEED", "20241"))


@pytest.mark.parametrize("stage", STAGES)
def test_killed_again_and_again_it_ends_as_if_undisturbed(finished, preset, tmp_path, stage):
    disturbed(Chaos(finished, preset, stage, tmp_path, SEED))


def test_with_its_s3_server_killed_it_ends_as_if_undisturbed(finished, preset, tmp_path, s3, monkeypatch):
    server = Server(tmp_path / "server", "tests")
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        disturbed(Chaos(finished, preset, "train-slotformer", tmp_path, SEED, server=server, events=("store outage",)))
    finally:
        server.process.kill()
        server.process.wait()


def disturbed(chaos):
    for _ in range(20):  # the machine may be faster than when the undisturbed training was timed
        chaos.train(4)
        if chaos.happened:
            break
    print(f"seed {SEED}: {dict(chaos.happened)}")
    assert chaos.happened
