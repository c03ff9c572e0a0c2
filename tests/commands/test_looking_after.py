"""`physion store ls, get, put, verify, gc`, as a person meets them."""

import json
import os
import shutil
import time

import pytest

from physion.commands import parse_bytes
from physion.config.load import load_config, preset_names
from physion.errors import ConfigError
from physion.pipeline.graph import build_graph
from physion.store.artifacts import ArtifactWriter
from physion.store.local import LocalStore

OLD = time.time() - 30 * 86400


@pytest.fixture
def graph(preset):
    return build_graph(load_config(preset))


@pytest.fixture
def look(physion, store):
    """A store command on a copy of the finished study."""

    def command(*arguments):
        return physion("store", *arguments, "-s", store)

    return command


def folder(store, node):
    return store / "artifacts" / node.stage.name / node.fingerprint


def make_old(store):
    """As if the whole store had been written a month ago."""
    for path in store.rglob("*"):
        if path.name == "manifest.json":
            tree = json.loads(path.read_bytes())
            path.write_text(json.dumps(tree | {"created": "2020-01-01T00:00:00+00:00"}))
        os.utime(path, (OLD, OLD))


def content(store):
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", ["", "ls", "get", "put", "verify", "gc"])
def test_help_has_examples(physion, command):
    ended = physion("store", *command.split(), "--help")
    assert ended.code == 0
    assert not command or f"physion store {command} " in " ".join(ended.out.split())


def test_listing(look, graph):
    rows = {row["instance"]: row for row in json.loads(look("ls", "--json").out)["result"]}
    assert set(rows) == set(graph)
    assert all(row["published"] and row["bytes"] > 0 for row in rows.values())
    table = look("ls").out
    assert all(name in table and node.fingerprint[:12] in table for name, node in graph.items())


@pytest.mark.parametrize("name", ["frames-test", "{start}", "frames/{start}", "artifacts/frames/{start}"])
def test_an_artifact_has_several_names(look, graph, name):
    node = graph["frames-test"]
    (row,) = json.loads(look("ls", name.format(start=node.fingerprint[:6]), "--json").out)["result"]
    assert row["fingerprint"] == node.fingerprint
    assert {row["stage"] for row in json.loads(look("ls", "frames", "--json").out)["result"]} == {"frames"}


def test_a_name_that_nothing_has(look):
    for command in (["ls", "frame-tests"], ["verify", "frame-tests"], ["get", "frame-tests", "x"]):
        ended = look(*command)
        assert ended.code == 2
        assert "no artifact is called 'frame-tests'" in ended.err


def test_unfinished_work_is_listed(look, store, graph):
    (folder(store, graph["tokenize"]) / "manifest.json").unlink()
    assert "tokenize (unfinished)" in look("ls").out
    (row,) = (row for row in json.loads(look("ls", "--json").out)["result"] if not row["published"])
    assert row["stage"] == "tokenize"


def test_getting_an_artifact_and_a_file(look, store, graph, tmp_path):
    assert look("get", "train-dvae", tmp_path / "dvae").code == 0
    there = folder(store, graph["train-dvae"])
    assert content(tmp_path / "dvae") == {k: v for k, v in content(there).items() if k != "manifest.json"}
    _, key = look("ls", "evaluate", "--files").out.splitlines()[-1].rsplit(None, 1)
    (tmp_path / "folder").mkdir()
    for destination, path in ((tmp_path / "folder", tmp_path / "folder" / "report.html"), (tmp_path / "r", tmp_path / "r")):
        assert look("get", key.rpartition("/")[0] + "/report.html", destination).code == 0
        assert path.read_bytes() == (folder(store, graph["evaluate"]) / "report.html").read_bytes()
    assert look("get", "frames", tmp_path / "x").err.startswith("error: 'frames' means frames-")


def test_what_is_got_is_verified(look, store, graph, tmp_path):
    path = folder(store, graph["train-dvae"]) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for name in ("train-dvae", path.relative_to(store).as_posix()):
        ended = look("get", name, tmp_path / "out")
        assert ended.code == 3
        assert "weights.safetensors is corrupt" in ended.err
    assert not (tmp_path / "out" / "weights.safetensors").exists()


def test_putting_a_file(look, store, tmp_path):
    (tmp_path / "mine").write_bytes(b"one")
    assert look("put", tmp_path / "mine", "files/mine").code == 0
    assert (store / "files" / "mine").read_bytes() == (tmp_path / "mine").read_bytes() == b"one"
    (tmp_path / "mine").write_bytes(b"two")
    ended = look("put", tmp_path / "mine", "files/mine")
    assert (ended.code, "is there already, and nothing was written" in ended.err) == (2, True)
    for key in ("artifacts/x", ".staging/x", "a//b", "../x"):
        assert look("put", tmp_path / "mine", key).code == 2
    assert (store / "files" / "mine").read_bytes() == b"one"
    assert look("get", "files/mine", tmp_path / "back").code == 0
    assert (tmp_path / "back").read_bytes() == b"one"
    assert not list((store / ".staging").iterdir())


def test_runs_says_what_was_changed_and_what_came_out(physion, preset, store, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "400")
    (row,) = json.loads(physion("runs", "-s", store, "--json").out)["result"]
    assert row["preset"] in preset_names()
    assert row["changed"]["train-steve.optim.steps"] == 6
    assert row["done"] == row["total"] == 30
    assert row["metrics"]["headline"] in physion("runs", "-s", store).out
    changed = ["--set", "train-readout.seeds=[0]", "--set", "evaluate.resamples=100"]
    assert physion("run", "-p", preset, "-s", store, *changed).code == 0
    newest, older = json.loads(physion("runs", "-s", store, "--json").out)["result"]
    assert newest["created"] >= older["created"]
    assert (older["changed"]["evaluate.resamples"], newest["changed"]["evaluate.resamples"]) == (200, 100)
    assert (older["total"], newest["total"]) == (30, 27)
    both = newest["fingerprint"], older["fingerprint"][:8]
    found = json.loads(physion("compare", *both, "-s", store, "--json").out)["result"]
    assert found["options"] == {"evaluate.resamples": [100, 200]}
    (accuracy, before) = (each["accuracy"] for each in found["modes"]["rollout"]["overall"])
    _, apart = found["modes"]["rollout"]["difference"]
    assert apart["value"] == pytest.approx(before["value"] - accuracy["value"])
    assert apart["low"] <= apart["value"] <= apart["high"]
    assert "accuracy, rollout" in physion("compare", *both, "-s", store).out
    assert "matches 0 reports" in physion("compare", "zz", both[0], "-s", store).err
    elsewhere = shutil.copytree(store, tmp_path / "elsewhere")
    page = tmp_path / "page.html"
    runs = both[0], f"{elsewhere}@{both[1]}", f"{elsewhere}@", f"{elsewhere}@{row['preset']}"
    found = json.loads(physion("compare", *runs, "-s", store, "--report", page, "--json").out)["result"]
    assert [run["fingerprint"][:8] for run in found["runs"]] == [both[0][:8], both[1], both[0][:8], both[0][:8]]
    assert found["options"] == {"evaluate.resamples": [100, 200, 100, 100]}
    assert [apart and apart["value"] for apart in found["modes"]["full"]["difference"]][::2] == [None, 0]
    assert found["links"].keys() == {"video", "tokens", "slots", "dynamics", "answer"}
    words = page.read_text()
    assert all(run in words for run in (both[0], both[1], "evaluate.resamples", "Where each chain breaks"))
    for arguments, said in (([both[0]], "two runs or more"), ([both[0], "a"], "or add --store")):
        ended = physion("compare", *arguments)
        assert (ended.code, said in ended.err) == (2, True)
    assert "another readout-observed-1" in physion("store", "ls", "evaluate", "-s", store).out


def test_a_sweep_runs_every_combination_and_shares_what_it_can(physion, preset, store):
    options = ["-p", preset, "-s", store, "--sweep", "evaluate.resamples=100,200", "--sweep", "train-readout.seeds=[0,1],[0]"]
    ended = physion("run", *options, "--json")
    results = json.loads(ended.out)["result"]
    assert [result["overrides"] for result in results] == [
        [f"evaluate.resamples={count}", f"train-readout.seeds={seeds}"] for count in (100, 200) for seeds in ("[0,1]", "[0]")
    ]
    assert len({result["fingerprint"] for result in results}) == 4
    assert ended.err.count(": done in") == 3  # the fixture's own is one of the four
    assert {row["fingerprint"] for row in json.loads(physion("runs", "-s", store, "--json").out)["result"]} == {
        result["fingerprint"] for result in results
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sweep", "train-steve.optim.lr"], "not of the form stage.key=value,value"),
        (["--sweep", "evaluate.resamples=100,many"], "evaluate.resamples"),
        (["--sweep", "evaluate.resamples=100", "--report", "x.html"], "several reports"),
    ],
)
def test_a_sweep_with_a_mistake_runs_nothing(physion, preset, tmp_path, options, words):
    ended = physion("run", "-p", preset, "-s", tmp_path / "store", *options)
    assert (ended.code, words in ended.err, (tmp_path / "store").exists()) == (2, True, False)


def test_a_study_at_work_says_how_far_it_is(physion, store, graph):
    report = graph["evaluate"]
    writer = ArtifactWriter(LocalStore(store), "evaluate", report.fingerprint)
    writer.erase()
    writer.begin({node.name: node.fingerprint for node in graph.values()}, {})
    (row,) = json.loads(physion("runs", "-s", store, "--json").out)["result"]
    assert (row["fingerprint"], row["done"], row["total"]) == (None, 29, 30)
    assert "29 of 30" in " ".join(physion("runs", "-s", store).out.split())


def test_verifying_nothing_is_an_error(physion, tmp_path):
    ended = physion("store", "verify", "-s", tmp_path / "nowhere")
    assert (ended.code, "there are no artifacts in" in ended.err) == (2, True)


def test_a_mistyped_artifact_gets_the_nearest_name(look):
    assert "did you mean 'frames-test'?" in look("ls", "frames-tset").err


def test_verifying(look, store, graph):
    assert look("verify").out.startswith(f"{len(files_of(store))} files of {len(graph)} artifacts match their manifests")
    (bad,) = folder(store, graph["tokenize"]).glob("00001-*.safetensors")
    gone = folder(store, graph["evaluate"]) / "report.html"
    bad.write_bytes(bad.read_bytes()[:-1] + b"x")
    gone.unlink()
    (folder(store, graph["fetch-test"]) / "manifest.json").write_text("{")
    ended = look("verify")
    assert ended.code == 3
    lines = ended.err.splitlines()
    assert "files are bad:" in lines[0]
    assert len(lines) == 4
    assert sum("tokenize/" in line and f"{bad.name} is corrupt" in line and "--force" in line for line in lines) == 1
    assert sum("report.html is missing" in line and "options of evaluate" in line for line in lines) == 1
    assert sum("fetch/" in line and "is not a manifest" in line for line in lines) == 1
    assert look("verify", "frames", "train-dvae").code == 0
    assert len(json.loads(look("verify", "--json").out)["result"]["problems"]) == 3


def test_what_cannot_be_read_is_one_bad_file_of_others(look, store, graph):
    report = folder(store, graph["evaluate"]) / "report.html"
    (shard,) = folder(store, graph["tokenize"]).glob("00001-*.safetensors")
    report.unlink()
    report.mkdir()
    shard.unlink()
    ended = look("verify")
    assert ended.code == 3
    assert "report.html" in ended.err
    assert f"{shard.name} is missing" in ended.err


def files_of(store):
    return [path for path in store.rglob("artifacts/*/*/**/*") if path.is_file() and path.name != "manifest.json"]


def removed(ended):
    assert ended.code == 0, ended.err
    return {
        (row["stage"], row["fingerprint"]): row
        for row in json.loads(ended.out)["result"]
        if row["action"] in ("removed", "would remove")
    }


def test_nothing_is_removed_from_a_clean_store(look, store):
    before = content(store)
    assert removed(look("gc", "--delete", "--days", "0", "--json")) == {}
    assert content(store) == before


def test_a_dry_run_removes_nothing_and_says_so(look, store, graph):
    make_old(store)
    left = folder(store, graph["frames-test"]) / "parts" / "00000.json"
    left.parent.mkdir(exist_ok=True)
    left.write_text("{}" * 500)
    before = content(store)
    ended = look("gc")
    start = graph["frames-test"].fingerprint[:12]
    assert ended.out.splitlines()[0] == f"would remove     1 kB  frames-test {start}: left beside a published artifact"
    assert ended.out.endswith(f" in {len(graph)} artifacts; --delete would free 1 kB\n")
    assert content(store) == before


def test_leftovers_and_forgotten_work_go_and_recent_work_stays(look, store, graph):
    make_old(store)
    beside = folder(store, graph["train-dvae"]) / "checkpoints" / "00000004-aa.safetensors"
    beside.parent.mkdir(exist_ok=True)
    beside.write_bytes(b"x")
    forgotten, recent = folder(store, graph["tokenize"]), folder(store, graph["rollout-test"])
    for path in (forgotten, recent):
        (path / "manifest.json").unlink()
    os.utime(next(recent.glob("00000-*.safetensors")))
    (store / ".staging" / ("9" * 32)).mkdir(parents=True)
    before = content(store)
    assert removed(look("gc", "--delete", "--json")).keys() == {
        (node.stage.name, node.fingerprint) for node in (graph["train-dvae"], graph["tokenize"])
    }
    assert before.keys() - content(store).keys() == {
        key for key in before if "checkpoints/" in key or f"/{graph['tokenize'].fingerprint}/" in key
    }
    assert look("verify").code == 0
    assert not list((store / ".staging").iterdir())


def test_artifacts_of_no_kept_preset_go(look, physion, preset, store, graph):
    """A second study shares all but its last stages with the first one."""
    other = build_graph(load_config(preset, ["train-slotformer.seed=7"]))
    for name in ("train-slotformer", "rollout-test", "rollout-readout"):
        shutil.copytree(folder(store, graph[name]), folder(store, other[name]))
        path = folder(store, other[name]) / "manifest.json"
        tree = json.loads(path.read_bytes()) | {"fingerprint": other[name].fingerprint}
        for role, source in other[name].inputs.items():
            tree["inputs"][role]["fingerprint"] = other[source].fingerprint
        path.write_text(json.dumps(tree))
    fresh = json.loads(look("gc", "--keep", preset, "--json").out)["result"]
    assert all(row["action"] == "keep" for row in fresh)  # all of it is of this week
    make_old(store)
    gone = removed(look("gc", "--keep", preset, "--delete", "--json"))
    assert {fingerprint for _, fingerprint in gone} == {
        other[n].fingerprint for n in ("train-slotformer", "rollout-test", "rollout-readout")
    }
    assert physion("plan", "-p", preset, "-s", store, "--json").out.count('"cached": true') == len(graph)
    # Overrides of what is kept: now the first study's end goes.
    gone = removed(look("gc", "--keep", preset, "--set", "train-dvae.seed=9", "--json"))
    assert {stage for stage, _ in gone} >= {"train-dvae", "tokenize", "evaluate"}
    assert not {"fetch", "frames"} & {stage for stage, _ in gone}


def test_a_running_study_keeps_all_it_still_needs(look, store, preset, graph):
    """Its stage in flight reads little of what the study will read later, and all that is a month old."""
    make_old(store)
    running = folder(store, graph["tokenize"])
    shutil.rmtree(running)
    (running / "parts").mkdir(parents=True)
    (running / "parts" / "00000.json").write_text("{}")
    study = {name: node.fingerprint for name, node in graph.items()}
    (running / "study.json").write_text(json.dumps({"study": study, "inputs": {}}))
    assert removed(look("gc", "--keep", "smoke", "--json")) == {}
    make_old(store)
    assert len(removed(look("gc", "--keep", "smoke", "--json"))) == len(graph)


def test_a_damaged_manifest_is_kept_and_named(look, store, graph):
    path = folder(store, graph["fetch-test"]) / "manifest.json"
    make_old(store)
    path.write_text("{")
    os.utime(path, (OLD, OLD))
    rows = json.loads(look("gc", "--delete", "--json").out)["result"]
    (row,) = (row for row in rows if row["fingerprint"] == graph["fetch-test"].fingerprint)
    assert row["action"] == "keep"
    assert "is not a manifest" in row["reason"]


def test_the_inputs_of_a_fresh_artifact_stay_that_a_newer_version_made(look, store, preset, graph):
    """Its manifest cannot be read here, so nobody knows what it still needs."""
    make_old(store)
    path = folder(store, graph["train-slotformer"]) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": 99}))

    def count():
        ended = look("gc", "--keep", "smoke", "--json")
        assert (ended.code, "update physion" in ended.err) == (3, True)
        return sum(row["action"] != "keep" for row in json.loads(ended.out)["result"])

    assert count() == 0
    os.utime(path, (OLD, OLD))
    assert count() == len(graph) - 1


@pytest.mark.parametrize(
    ("text", "size"), [("50GB", 50 * 10**9), ("1.5 TB", 1_500_000_000_000), ("123", 123), ("7kB", 7000), ("2m", 2_000_000)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "50 apples", "1e9"])
def test_no_sizes(text):
    with pytest.raises(ConfigError, match="not a size such as 50GB"):
        parse_bytes(text)


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_limit_comes_from_the_command_line_or_the_environment(physion, monkeypatch, how):
    options = []
    if how == "option":
        options = ["--cache-limit", "lots"]
    else:
        monkeypatch.setenv("PHYSION_CACHE_LIMIT", "lots")
    ended = physion(*options, "store", "ls", "-s", "s3://bucket/prefix")
    assert ended.code == 2
    assert "cache limit 'lots': not a size such as 50GB" in ended.err
