"""`physion doctor` on this machine, with stores that do and do not work; in containers: tests/containers/test_image.py."""

import json

import pytest

CHECKS = ["gpu", "shm", "cores", "memory", "scratch"]


@pytest.fixture
def doctor(physion, tmp_path):
    """The command, with its scratch in a folder of the test's own."""

    def command(*options):
        return physion("--cache", tmp_path / "cache", "doctor", *options)

    return command


def states(ended):
    return {finding["name"]: finding["state"] for finding in json.loads(ended.out)["result"]}


def test_a_machine_that_will_do(doctor, tmp_path):
    ended = doctor("-s", tmp_path / "store")
    assert ended.code == 0, ended.out
    lines = [line.split(None, 2) for line in ended.out.splitlines()]
    assert [name for _, name, _ in lines] == [*CHECKS, "store", "clock"]
    assert {state for state, _, _ in lines} <= {"ok", "warn"}
    said = {name: (state, text) for state, name, text in lines}
    assert said["store"][0] == "ok"
    assert said["store"][1].startswith(f"{(tmp_path / 'store').as_uri()}: wrote, read and removed an object in ")
    assert said["clock"] == ("ok", "the store is a directory: one clock")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_store_only_the_machine_is_looked_at(doctor):
    ended = doctor("--json")
    assert ended.code == 0
    assert list(states(ended)) == CHECKS


def test_a_bucket_and_its_clock(doctor, s3):
    ended = doctor("-s", "s3://tests/doctor", "--json")
    assert ended.code == 0, ended.out
    assert (states(ended)["store"], states(ended)["clock"]) == ("ok", "ok")


def test_a_store_that_cannot_be_written(doctor, tmp_path):
    (tmp_path / "file").write_text("")
    ended = doctor("-s", tmp_path / "file")
    assert ended.code == 2
    assert ended.err == "error: will not work as it is: store\n"
    (line,) = [line for line in ended.out.splitlines() if line.startswith("fail")]
    assert line.split(None, 2)[1] == "store"
    assert "Not a directory" in line
    assert "choose another --store" in line


def test_a_bucket_that_is_not_there(doctor, s3):
    ended = doctor("-s", "s3://not-there/x", "--json")
    assert ended.code == 2
    assert json.loads(ended.err) == {"version": 1, "error": "will not work as it is: store, clock", "exit_code": 2}
    found = {finding["name"]: finding["text"] for finding in json.loads(ended.out)["result"]}
    assert "NoSuchBucket" in found["store"]
    assert "make the bucket, or correct --store" in found["store"]
    assert states(ended)["gpu"] == "ok"  # the rest is looked at all the same


def test_scratch_that_cannot_be_made(physion, tmp_path):
    (tmp_path / "file").write_text("")
    ended = physion("--cache", tmp_path / "file", "doctor", "--json")
    assert (ended.code, json.loads(ended.err)["error"]) == (2, "will not work as it is: scratch")
    assert states(ended)["scratch"] == "fail"


def test_little_room_is_a_warning_or_a_failure(physion, tmp_path, small_disk):
    ended = physion("--cache", small_disk / "cache", "doctor", "--json")
    assert (ended.code, states(ended)["scratch"]) == (2, "fail")
    (finding,) = [finding for finding in json.loads(ended.out)["result"] if finding["name"] == "scratch"]
    assert finding["text"] == f"0.0 GiB free in {small_disk / 'cache'}; set PHYSION_CACHE elsewhere"
