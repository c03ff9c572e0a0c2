import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import physion as physion_package
from physion import __version__
from physion.config.load import load_config, preset_names, study_class
from physion.data.video import write_mp4
from physion.pipeline.graph import build_graph
from physion.stages import STAGES


def plain(text):
    """Without a terminal's colors and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).replace("│", " ").split())


def test_version(physion):
    assert physion("--version").out == f"physion {__version__}\n"


@pytest.mark.parametrize("command", ["", "run", "stage", "plan", "config", "config show", "contact-sheet"])
def test_help_says_what_it_does_and_how(physion, command):
    ended = physion(*command.split(), "--help")
    assert ended.code == 0
    text = plain(ended.out)
    assert "Usage: physion" in text
    if command not in ("", "config"):
        assert "Example" in text
        assert f"physion {command} " in text
    if command == "":
        assert "Exit codes: 0 done, 2 configuration or usage, 3 bad data, 75 try again later" in text


def test_short_help(physion):
    assert "Usage: physion store ls" in plain(physion("store", "ls", "-h").out)


def test_bash_completes_commands(physion, monkeypatch):
    """What the script of `physion --show-completion` asks."""
    for name, value in {"_PHYSION_COMPLETE": "complete_bash", "COMP_WORDS": "physion sto", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    assert physion().out.split() == ["store"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "-p", "tinny", "-s", "x"], "did you mean 'tiny'?"),
        (["plan", "-p", "tiny"], "Missing option"),
        (["plan", "--no-such-option"], "No such option"),
    ],
)
def test_with_json_an_error_is_json_too(physion, arguments, words):
    ended = physion(*arguments, "--json")
    error = json.loads(ended.err)
    assert (ended.code, error["version"], error["exit_code"], ended.out) == (2, 1, 2, "")
    assert words in error["error"]


@pytest.mark.parametrize("command", [["plan", "-p", "smoke"], ["store", "ls"]])
def test_a_narrow_terminal_folds_tables_and_cuts_nothing(physion, monkeypatch, preset, finished, command):
    monkeypatch.setenv("COLUMNS", "60")
    out = physion(*command, "-s", finished).out
    assert "…" not in out
    assert max(map(len, out.splitlines()[1:])) <= 60


def test_names_in_tables_stay_whole(physion, monkeypatch, finished):
    monkeypatch.setenv("COLUMNS", "80")
    listed = physion("weights", "list", "builtin").out
    assert max(map(len, listed.splitlines())) <= 80
    included = Path(physion_package.__file__).parent / "builtin" / "pretrained"
    assert all(f"builtin/{folder.name} " in listed for folder in included.iterdir())
    monkeypatch.setenv("COLUMNS", "60")
    planned = physion("plan", "-p", "smoke", "-s", finished).out
    assert set(build_graph(load_config("smoke"))) <= set(planned.splitlines())


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_no_width_breaks_a_word(physion, monkeypatch, preset, finished, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for command in (["plan", "-p", preset], ["runs"], ["store", "ls"]):
        out = physion(*command, "-s", finished).out
        assert max(map(len, out.splitlines()[1:])) <= int(columns)
        words = {"plan": ["cached", "fingerprint"], "runs": ["created", "guessing"], "store": ["evaluate", "fingerprint"]}
        assert set(words[command[0]]) <= set(re.findall(r"\w+", out.partition("\n")[2]))


def test_the_plan_as_json(physion, tmp_path):
    ended = physion("plan", "-p", "smoke", "-s", tmp_path / "none", "--json")
    rows = {row["name"]: row for row in json.loads(ended.out)["result"]}
    assert {row["stage"] for row in rows.values()} == set(STAGES) - {"fetch", "take-weights", "train-isa"}
    assert not any(row["cached"] for row in rows.values())
    assert all(source in rows for row in rows.values() for source in row["inputs"].values())
    assert rows["train-steve"]["flops"] > rows["tokenize"]["flops"] > 0
    assert not (tmp_path / "none").exists()  # looking costs nothing


@pytest.mark.parametrize("preset", preset_names())
def test_the_plan_for_people(physion, tmp_path, preset):
    ended = physion("plan", "-p", preset, "-s", tmp_path)
    assert ended.code == 0, ended.err
    assert "rollout-test" in ended.out
    assert "to do" in ended.out


def test_the_plan_knows_what_is_done(physion, preset, finished):
    rows = json.loads(physion("plan", "-p", preset, "-s", finished, "--json").out)["result"]
    assert all(row["cached"] for row in rows)
    rows = json.loads(physion("plan", "-p", preset, "-s", finished, "--json", "--set", "train-slotformer.seed=4").out)["result"]
    assert {row["stage"] for row in rows if not row["cached"]} == {
        "train-slotformer",
        "rollout",
        "train-readout",
        "regress",
        "evaluate",
    }
    assert "cached" in physion("plan", "-p", preset, "-s", finished).out


def test_config_show_is_a_preset_again(physion, tmp_path):
    ended = physion("config", "show", "-p", "tiny", "--set", "evaluate.videos=3")
    assert ended.out.startswith("# tiny")
    path = tmp_path / "tiny.yaml"
    path.write_text(ended.out)
    assert load_config(str(path)) == load_config("tiny", ["evaluate.videos=3"])
    tree = json.loads(physion("config", "show", "-p", "tiny", "--json").out)["result"]
    assert tree == load_config("tiny").model_dump(mode="json")


def test_config_schema_names_every_key(physion):
    schema = json.loads(physion("config", "schema").out)
    assert set(schema["properties"]) == {field.alias for field in study_class().model_fields.values()}
    assert schema["$defs"]["STEVEModel"]["properties"]["slot-size"]["default"] == 192
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "-p", "tinny", "-s", "x"], "unknown preset 'tinny', did you mean 'tiny'?"),
        (["run", "-p", "tiny", "-s", "s3://Bucket/x"], "'Bucket' is not a valid bucket name"),
        (["run", "-p", "tiny", "-s", "x", "--set", "train-dvae.optim.lr=high"], "'train-dvae.optim.lr': input should be"),
        (["run", "-p", "tiny", "-s", "x", "--set", "train-dvae.optim.lrr=1"], "'train-dvae.optim.lrr', did you mean 'lr'?"),
        (["stage", "train-dvea", "-p", "tiny", "-s", "x"], "unknown stage 'train-dvea', did you mean 'train-dvae'?"),
        (["stage", "fetch", "-p", "tiny", "-s", "x"], "stage fetch is not part of this study: set dataset=fetch"),
        (
            ["stage", "frames", "-p", "tiny", "-s", "x"],
            "stage frames has 3 instances; say which: --subset training|readout|test",
        ),
        (
            ["stage", "frames", "-p", "tiny", "-s", "x", "--subset", "val"],
            "stage frames has no subset 'val'; it has readout, test",
        ),
        (["stage", "rollout", "-p", "tiny", "-s", "x", "--subset", "training"], "stage rollout has no subset 'training'"),
        (["stage", "train-dvae", "-p", "tiny", "-s", "x", "--subset", "test"], "stage train-dvae has no subset 'test'"),
        (
            ["stage", "train-readout", "-p", "tiny", "-s", "x", "--seed", "0"],
            "stage train-readout has 9 instances; say which: --features observed|full|rollout --seed 0|1|2",
        ),
        (
            ["stage", "take-weights", "-p", "tiny", "-s", "x"],
            "no weights are given; --set train-steve.weights=pretrained/<name>",
        ),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_two(physion, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    ended = physion(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["run"], ["run", "-p", "tiny"], ["sprint"], ["run", "--fast"]])
def test_usage_mistakes_end_with_two_as_well(physion, arguments):
    assert physion(*arguments).code == 2


def test_a_finished_study_is_told_again(physion, preset, finished):
    ended = physion("run", "-p", preset, "-s", finished)
    assert ended.code == 0, ended.err
    report = ended.out.splitlines()[-1].removeprefix("report: file://")
    assert os.path.getsize(report) > 10_000
    assert ended.err.count(": cached") == 30
    assert "[30 of 30 stages]" in ended.err.splitlines()[-1]
    result = json.loads(physion("run", "-p", preset, "-s", finished, "--json").out)["result"]
    assert result["report"] == f"file://{report}"
    assert set(result["metrics"]) >= {"headline", "accuracy_observed", "accuracy_rollout", "accuracy_full"}


def test_a_run_says_how_far_it_is_and_how_long_the_rest_takes(physion, preset, store):
    ended = physion("run", "-p", preset, "-s", store, "--set", "train-readout.optim.lr=3e-3")
    assert ended.code == 0, ended.err
    lines = [line for line in ended.err.splitlines() if ": done in" in line]
    *before, last = [re.search(r"\[(\d+) of 30 stages(?:; about (.+) left)?\]$", line) for line in lines]
    assert len(before) > 3
    assert [int(found[1]) for found in (*before, last)] == list(range(31 - len(lines), 31))
    assert all(found[2] for found in before)
    assert last[2] is None


def test_a_stage_tells_where_its_artifact_is(physion, preset, finished):
    arguments = ["stage", "train-readout", "--features", "rollout", "--seed", "1", "-p", preset, "-s", finished]
    ended = physion(*arguments)
    assert ended.out.startswith("train-readout-rollout-1: cached")
    result = json.loads(physion(*arguments, "--json").out)["result"]
    assert result["cached"] is True
    assert ended.out.splitlines()[-1] == result["artifact"]
    assert os.path.isfile(result["artifact"].removeprefix("file://") + "/weights.safetensors")


def cached(physion, *options):
    """The names of the instances that the plan says are done."""
    return {row["name"] for row in json.loads(physion("plan", *options, "--json").out)["result"] if row["cached"]}


def test_force_says_that_what_follows_stays_where_the_bytes_are_the_same(physion, preset, store):
    where = ["-p", preset, "-s", store]
    before = cached(physion, *where)
    ended = physion("stage", "frames", "--subset", "test", "--force", *where)
    assert ended.out.startswith("frames-test: done")
    (same,) = (line for line in ended.err.splitlines() if line.startswith("frames-test has the same bytes as before"))
    for name in ("extract-slots-test", "rollout-test", "regress-first-frame", "evaluate"):
        assert name in same.partition("everything built on it stays")[2]
    assert cached(physion, *where) == before
    assert "everything built on it" not in physion("stage", "evaluate", "--force", *where).err  # nothing does


def test_force_says_what_is_made_again_where_the_bytes_are_others(physion, preset, dataset, tmp_path):
    where = ["-p", preset, "-s", tmp_path / "store", "--set", f"fetch.root={dataset.root}"]
    for stage in (["fetch"], ["frames", "--subset", "test"], ["frames", "--subset", "readout"]):
        assert physion("stage", *stage, *where).code == 0
    before = cached(physion, *where)
    write_mp4(dataset.videos("test")[0], np.zeros((12, 32, 32, 3), np.uint8))
    err = physion("stage", "fetch", "--force", *where).err.splitlines()
    assert "fetch-test has different bytes than before: everything built on it will be made again (frames-test)" in err
    assert "fetch-readout has the same bytes as before: everything built on it stays (frames-readout)" in err
    assert before - cached(physion, *where) == {"frames-test"}
    ended = physion("stage", "frames", "--subset", "test", *where)
    assert "frames-test: an input was made again with different bytes, so this is made again too" in ended.err.splitlines()
    assert ended.out.startswith("frames-test: done")
    assert cached(physion, *where) == before


@pytest.mark.parametrize("damage", ["{", '{"format": 1}'])
def test_force_makes_again_what_has_a_damaged_manifest(physion, preset, store, damage):
    where = ["-p", preset, "-s", store]
    for stage in ("tokenize", "train-steve"):
        (manifest,) = store.glob(f"artifacts/{stage}/*/manifest.json")
        manifest.write_text(damage)
    assert "run `physion stage tokenize --force` to make it again" in physion("stage", "tokenize", *where).err
    ended = physion("stage", "tokenize", "--force", *where)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("tokenize: done")


def test_options_come_from_the_environment_as_well(physion, preset, finished, monkeypatch):
    monkeypatch.setenv("PHYSION_PRESET", preset)
    monkeypatch.setenv("PHYSION_STORE", str(finished))
    assert physion("stage", "tokenize").out.startswith("tokenize: cached")


def test_a_learning_rate_that_breaks_the_training(physion, preset, store):
    ended = physion("stage", "train-dvae", "-p", preset, "-s", store, "--set", "train-dvae.optim.lr=1e38")
    assert ended.code == 3
    assert re.search(r"error: train-dvae: the .*loss is (nan|inf) at step \d+; last good checkpoint: ", ended.err)
    assert "Traceback" not in ended.err


def start(*arguments):
    command = [sys.executable, "-m", "physion.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(path, pattern, process):
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_asked_to_stop_saves_and_goes_on(physion, preset, study_store, number, code):
    arguments = ["stage", "train-dvae", "-p", preset, "-s", study_store.uri]
    for setting in ("optim.steps=80", "checkpoint-every=4", "heldout-every=40"):
        arguments += ["--set", f"train-dvae.{setting}"]
    process = start(*arguments)

    def checkpoints():
        return [key for key in study_store.list("artifacts/train-dvae") if "/checkpoints/" in key]

    while not checkpoints():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.endswith("progress is saved, and the same command resumes from there\n")
    assert "Traceback" not in err
    saved = max(int(key.rpartition("/")[2][7:15]) for key in checkpoints())
    ended = physion(*arguments)
    assert ended.code == 0, ended.err
    assert f"train-dvae: resumes at step {saved} of 80" in ended.err


def test_a_second_ctrl_c_ends_at_once(preset, store):
    shutil.rmtree(store / "artifacts" / "frames")
    process = start("stage", "frames", "--subset", "training", "-p", preset, "-s", store)
    wait_for(store, ".staging/*", process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_no_worker_and_no_noise(preset, store, number):
    """As a terminal sends Ctrl-C: also to workers that are only just starting."""
    shutil.rmtree(store / "artifacts" / "frames")
    process = start("stage", "frames", "--subset", "training", "-p", preset, "-s", store)
    wait_for(store, ".staging/*", process)
    parent = psutil.Process(process.pid)
    while not (children := parent.children(recursive=True)):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], err
    assert "Traceback" not in err
    psutil.wait_procs(children, timeout=5)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not list((store / ".staging").iterdir())
