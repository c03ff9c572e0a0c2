"""The whole chain on really simulated video, undisturbed, interrupted at random instants, and twice at once."""

import html
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from physion.store.artifacts import sha256_of

SEED = int(os.environ.get("PHYSION_TEST_SEED", "20241"))
ONE_PROCESS = "SIGKILL to one of its processes"
SIGNALS = [signal.SIGKILL, signal.SIGINT, ONE_PROCESS, signal.SIGTERM, ONE_PROCESS, signal.SIGKILL]
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143, ONE_PROCESS: 75}
TWO_RANKS = ("--ranks", "2")


def start(preset, store, *options):
    """`physion run` in a process group of its own."""
    command = [sys.executable, "-m", "physion.cli", "run", "--preset", preset, "--store", str(store), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def run(preset, store, *options):
    process = start(preset, store, *options)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, err


def result(store, name):
    (path,) = store.glob(f"artifacts/evaluate/*/{name}")
    return path.read_bytes()


def verify(store):
    """Every file of every artifact is what its manifest says, and there is nothing else."""
    manifests = list(store.glob("artifacts/*/*/manifest.json"))
    for path in manifests:
        records = {record["name"]: record["sha256"] for record in json.loads(path.read_bytes())["files"]}
        files = {file.relative_to(path.parent).as_posix(): file for file in path.parent.rglob("*") if file.is_file()}
        del files["manifest.json"]
        assert {name: sha256_of(file) for name, file in files.items()} == records
    assert not list((store / ".staging").rglob("*"))
    return len(manifests)


def kill_one(process, draw):
    """Kill a stage's process, or one of its ranks, as soon as there is any."""
    while process.poll() is None:
        servers = [child for child in psutil.Process(process.pid).children() if "forkserver" in " ".join(child.cmdline())]
        if at_work := [child for server in servers for child in server.children()]:
            draw.choice(at_work).kill()
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    out, err = run("smoke", store, *TWO_RANKS)
    return store, out, err, time.monotonic() - started


def test_from_nothing_to_a_report(undisturbed, undocumented):
    store, out, err, _ = undisturbed
    assert verify(store) == 36
    report = result(store, "report.html").decode()
    assert out.splitlines()[-1] == f"report: {next(store.glob('artifacts/evaluate/*/report.html')).as_uri()}"
    assert "data:video/mp4;base64," in report
    assert "http://" not in report.replace("http://www.w3.org", "")  # self-contained
    metrics = json.loads(result(store, "metrics.json"))
    assert set(metrics["modes"]) == {"observed", "rollout", "full"}
    for mode in metrics["modes"].values():
        accuracy = mode["overall"]["accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    for measured in (metrics["slots"][name] for name in ("test", "heldout")):
        assert measured["truth"]
        assert len(measured["norm"]) == 150
        for name in ("ari", "ari_frames", "miou", "miou_frames", "own_agent", "own_patient", "kept_places"):
            low, value, high = (round(measured[name][part], 12) for part in ("low", "value", "high"))
            assert low <= value <= high <= 1
    missing, not_there = undocumented(metrics)
    assert missing == []
    # Hardly trained slots may hold no body, and nobody was asked.
    assert [row for row in not_there if not any(word in row for word in ("kept_object", "people."))] == []
    kinds, poolings, scopes = ("logistic", "trees"), ("pooled", "concatenated"), ("all", "each")
    variants = {f"{kind}-{pooling}-{scope}" for kind in kinds for pooling in poolings for scope in scopes}
    assert set(metrics["regressions"]["states-full"]["variants"]) == variants
    assert [row["link"] for row in metrics["verdicts"]] == ["video", "tokens", "slots", "dynamics", "answer"]
    assert all(row["verdict"] in html.unescape(report) for row in metrics["verdicts"])
    dynamics = metrics["dynamics"]
    assert (dynamics["videos"], dynamics["observed"], dynamics["watched"]) == (8, 45, 75)
    assert [row["frame"] for row in dynamics["error"]["rollout_ordered"]["at"]] == [45, 59, 74, 111, 149]
    for body in ("agent", "patient"):
        curves = dynamics["places"][body]["room"]
        assert curves["rollout"]["frames"] == list(range(45, 150, 5))
        assert {way: curve["at"][0]["n"] > 0 for way, curve in curves.items()} == dict.fromkeys(
            ("rollout", "copied", "true", "mean"), True
        )
    assert "Distance of a body" in report
    (history,) = (json.loads(path.read_bytes()) for path in store.glob("artifacts/train-steve/*/history.json"))
    assert all({"ari", "miou", "kept_places", "norm_last"} <= row.keys() for row in history)
    assert "Foreground ARI and kept places of the slots during train-steve" in report
    assert metrics["headline"] in out
    assert "Traceback" not in err


def test_trainings_learn_something(undisturbed):
    store, *_ = undisturbed
    for stage in ("train-dvae", "train-steve", "train-slotformer"):
        (path,) = store.glob(f"artifacts/{stage}/*/manifest.json")
        metrics = json.loads(path.read_bytes())["metrics"]
        assert metrics["heldout_loss"] < metrics["heldout_loss_before"], stage


def test_running_it_again_takes_seconds_and_changes_nothing(undisturbed):
    store, out, _, took = undisturbed
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    started = time.monotonic()
    again, err = run("smoke", store, *TWO_RANKS)
    assert again == out
    assert err.count(": cached") == 36
    assert time.monotonic() - started < max(10, took / 4)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_interrupted_again_and_again_it_ends_as_if_undisturbed(undisturbed, tmp_path):
    reference, _, _, _ = undisturbed
    draw = random.Random(SEED)
    stopped = 0
    for number in SIGNALS:
        process = start("smoke", tmp_path, *TWO_RANKS)
        # From the first line on the command knows what to do with a signal.
        lines = [process.stderr.readline()]
        assert lines[0].startswith("physion "), lines
        reader = threading.Thread(target=lambda lines=lines, pipe=process.stderr: lines.extend(pipe), daemon=True)
        reader.start()
        # So many stages later and a moment more: the machine may be faster or slower than before.
        stages, delay = draw.randint(0, 4), draw.uniform(0, 2)
        while process.poll() is None and sum(": done" in line for line in lines) < stages:
            time.sleep(0.01)
        deadline = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        if number == ONE_PROCESS:
            kill_one(process, draw)
        else:  # Ctrl-C goes to the whole group; SIGKILL and SIGTERM to the one process, whose children must notice
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        process.wait(60)
        reader.join(10)
        where = [line for line in lines if ": done" not in line and ": cached" not in line][-1].strip()
        when = f"{delay:.1f} s after {stages} stages"
        print(f"seed {SEED}: {number!s} {when}, exit code {process.returncode}, at '{where}'")
        # A worker that was just starting looks for its parent once it has imported torch, which takes a busy machine its time.
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, "workers outlive the command"
        # A worker that was just starting when its parent was killed cannot but complain that nobody tells it what to do.
        assert number == signal.SIGKILL or "Traceback" not in "".join(lines), "".join(lines)
        if process.returncode == 0:
            break
        assert process.returncode == CODES[number], "".join(lines)
        stopped += 1
    assert stopped >= 2
    run("smoke", tmp_path, *TWO_RANKS)
    for name in ("metrics.json", "predictions.csv"):
        assert result(tmp_path, name) == result(reference, name), name
    assert verify(tmp_path) == 36


def test_two_at_once_on_one_store(preset, finished, tmp_path):
    both = [start(preset, tmp_path) for _ in range(2)]
    outs = []
    for process in both:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        outs.append(out)
    assert outs[0] == outs[1]
    for name in ("metrics.json", "predictions.csv"):
        assert result(tmp_path, name) == result(finished, name)
    assert verify(tmp_path) == 30
