"""Named weights: shared and fetched between stores, and used in the place of trainings."""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import yaml

from physion.config.load import load_config
from physion.errors import ConfigError, TransientError
from physion.models.weights import load_model
from physion.pipeline.graph import build_graph
from physion.store import pretrained
from physion.store.local import LocalStore
from physion.store.pretrained import copy_weights, find_weights, role_of
from physion.store.uri import BUILTIN, open_store

MODES = ("observed", "rollout", "full")
READOUTS = [(mode, seed) for mode in MODES for seed in (0, 1)]
MODELS = ("dvae", "steve", "slotformer")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def shared(finished, preset, tmp_path_factory):
    """A store that holds every weights of the mini study by name. Read only."""
    root = tmp_path_factory.mktemp("shared")
    options = ["--to", str(root), "-p", preset, "-s", str(finished)]
    commands = [["push", f"train-{model}", "--name", f"mini-{model}", *options] for model in MODELS]
    for mode, seed in READOUTS:
        which = ["--features", mode, "--seed", str(seed)]
        commands.append(["push", "train-readout", *which, "--name", f"mini-{mode}-{seed}", *options])
    # One process for all of them: importing torch takes longer than the rest.
    program = "import sys, json\nfrom physion.cli import app\nfor c in json.loads(sys.argv[1]): app(c, standalone_mode=False)"
    pushes = [["weights", *command] for command in commands]
    ended = subprocess.run([sys.executable, "-c", program, json.dumps(pushes)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return root


def use(*models, readouts=False):
    overrides = [f"train-{model}.weights=pretrained/mini-{model}" for model in models]
    if readouts:
        overrides += [
            f"train-readout.weights.{mode}=pretrained/mini-{mode}-{{seed}}" for mode in ("observed", "rollout", "full")
        ]
    return overrides


def with_set(overrides):
    return [part for override in overrides for part in ("--set", override)]


def files_of(root, name):
    return sorted(Path(root).glob(f"artifacts/evaluate/*/{name}"))


def graph_with(preset, overrides, root):
    return build_graph(load_config(preset, overrides), LocalStore(Path(root)))


def test_given_weights_give_the_trained_study_without_training(physion, preset, finished, shared, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(shared, store)
    overrides = with_set(use(*MODELS, readouts=True))
    ended = physion("run", "-p", preset, "-s", store, *overrides)
    assert ended.code == 0, ended.err
    assert "take-weights-steve: take pretrained/mini-steve" in ended.err.splitlines()
    assert not any(path.name.startswith("train-") for path in (store / "artifacts").iterdir())
    (trained,), (given,) = files_of(finished, "predictions.csv"), files_of(store, "predictions.csv")
    assert given.read_bytes() == trained.read_bytes()
    one, two = (
        json.loads(path.read_text()) for path in (*files_of(finished, "metrics.json"), *files_of(store, "metrics.json"))
    )
    for key in ("headline", "modes", "comparisons"):
        assert one[key] == two[key]  # thresholds too: they are chosen again, on the same held-out videos
    made = {path.parent.name for path in (store / "artifacts").glob("*/*/manifest.json") for path in [path.parent]}
    assert not made & {"tokenize"}
    subsets = [json.loads(path.read_text())["instance"] for path in (store / "artifacts").glob("frames/*/manifest.json")]
    assert sorted(subsets) == ["frames-readout", "frames-test"]
    # a readout that was not trained here has no epochs: it is the only candidate of its seed
    assert one["paper_protocol"]["rollout"]["candidates"] > two["paper_protocol"]["rollout"]["candidates"] == 2 * 6
    assert all(protocol["selected_on_test"] for protocol in one["paper_protocol"].values())
    plan = json.loads(physion("plan", "-p", preset, "-s", store, *overrides, "--json").out)["result"]
    assert all(row["cached"] for row in plan)
    for stage in ("tokenize", "train-steve"):
        ended = physion("stage", stage, "-p", preset, "-s", store, *overrides)
        assert (ended.code, "the weights given take its place (stage take-weights)" in ended.err) == (2, True)


def test_fingerprints_follow_from_the_weights(preset, shared, tmp_path):
    plain = build_graph(load_config(preset))
    given = graph_with(preset, use("steve"), shared)
    assert "train-steve" not in given
    assert given["take-weights-steve"].fingerprint != plain["train-steve"].fingerprint
    assert given["evaluate"].fingerprint != plain["evaluate"].fingerprint
    assert given["train-dvae"].fingerprint == plain["train-dvae"].fingerprint
    assert "tokenize" not in given
    # another name for the same weights is the same study; how they would have been trained does not matter
    store = tmp_path / "store"
    shutil.copytree(shared, store)
    again = find_weights(LocalStore(store), "mini-steve")
    copy = pretrained.publish_weights(
        LocalStore(store),
        "other",
        "train-steve",
        {role: Path(shutil.copy(role_of(again, role), tmp_path / role)) for role in ("weights", "frozen")},
        again.manifest.config,
        again.manifest.metrics,
        {},
    )
    assert copy.files == again.manifest.files
    changed = ["train-steve.weights=other", "train-steve.optim.lr=0.5", "train-steve.seed=9"]
    assert graph_with(preset, changed, store)["evaluate"].fingerprint == given["evaluate"].fingerprint


def changed(preset, shared, overrides, more):
    """Names of the instances whose fingerprints another override changes."""
    before, after = (graph_with(preset, given, shared) for given in (overrides, [*overrides, more]))
    assert before.keys() == after.keys()
    return {name for name in before if before[name].fingerprint != after[name].fingerprint}


def test_what_given_readouts_depend_on(preset, shared):
    """On the frames that they see, for their thresholds are chosen on these; on nothing that only a training reads."""
    given = use(*MODELS, readouts=True)
    for mode, frames in (("rollout", 7), ("full", 11)):
        readouts = {f"take-weights-readout-{mode}-{seed}" for seed in (0, 1)}
        followed = {f"regress-slots-{mode}", "evaluate"}
        assert changed(preset, shared, given, f"train-readout.frames.{mode}={frames}") == readouts | followed
    rollouts = {name for name in graph_with(preset, given, shared) if name.startswith("rollout-")}
    observed = {f"take-weights-readout-observed-{seed}" for seed in (0, 1)}
    rolled_out = {f"take-weights-readout-rollout-{seed}" for seed in (0, 1)}
    followed = {f"regress-{on}" for on in ("observed-frames", "tokens-observed", "slots-observed", "slots-rollout")} | {
        "evaluate"
    }
    assert changed(preset, shared, given, "rollout.observed=5") == rollouts | observed | rolled_out | followed
    for training in ("train-readout.optim.lr=0.5", "train-readout.seed=3", "train-dvae.optim.steps=7"):
        assert changed(preset, shared, given, training) == set()


def test_a_given_readout_is_told_by_the_frames_it_sees(physion, preset, shared, tmp_path):
    """As `plan` shows it, and as its manifest says."""
    shutil.copytree(shared, tmp_path / "store")
    where = ["-p", preset, "-s", tmp_path / "store", *with_set(use(*MODELS, readouts=True))]
    for stage in (["fetch", "--subset", "readout"], ["frames", "--subset", "readout"], ["take-weights", "--model", "dvae"],
                  ["take-weights", "--model", "steve"], ["extract-slots", "--subset", "readout"]):  # fmt: skip
        ended = physion("stage", *stage, *where)
        assert ended.code == 0, ended.err
    made = []
    for frames in (12, 6):
        which = ["--model", "readout", "--features", "full", "--seed", "1", "--json"]
        told = json.loads(physion("stage", "take-weights", *which, *where, "--set", f"train-readout.frames.full={frames}").out)[
            "result"
        ]
        assert (told["cached"], told["metrics"]["frames"]) == (False, frames)
        made.append(told["artifact"])
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "stage take-weights has 9 instances; say which: --model dvae|steve|slotformer|readout --features "),
        (["--model", "stev"], "stage take-weights has no model 'stev'; it has dvae, readout, slotformer, steve"),
        (["--model", "steve", "--seed", "0"], "stage take-weights has no instance with model 'steve' and seed '0'"),
        (["--model", "steve"], "run `physion stage take-weights --model dvae` with the same preset"),
        (["--model", "readout", "--features", "rollout", "--seed", "0"], "run `physion stage rollout --subset readout` with"),
    ],
)
def test_which_weights_are_to_be_taken(physion, preset, shared, tmp_path, options, message):
    shutil.copytree(shared, tmp_path / "store")
    overrides = with_set(use(*MODELS, readouts=True))
    ended = physion("stage", "take-weights", *options, "-p", preset, "-s", tmp_path / "store", *overrides)
    assert ended.code == 2
    assert message in ended.err


def test_weights_of_another_dvae_are_refused(physion, preset, shared, store, tmp_path):
    """STEVE was trained with the mini study's dVAE; the one in use has another seed."""
    shutil.copytree(shared / "pretrained", store / "pretrained")
    other = with_set([*use("steve"), "train-dvae.seed=5"])
    assert physion("stage", "train-dvae", "-p", preset, "-s", store, *other).code == 0
    ended = physion("stage", "take-weights", "-p", preset, "-s", store, *other)
    assert ended.code == 2
    assert (
        "pretrained/mini-steve and the train-dvae in use do not belong together: the dvae of one is not the dvae" in ended.err
    )
    assert physion("stage", "take-weights", "-p", preset, "-s", store, *with_set(use("steve"))).code == 0
    # both given by name: said before anything runs
    pushed = ("weights", "push", "train-dvae", "--name", "other-dvae", "-p", preset, "-s", store)
    assert physion(*pushed, "--set", "train-dvae.seed=5").code == 0
    both = with_set([*use("steve", "slotformer"), "train-dvae.weights=pretrained/other-dvae"])
    ended = physion("plan", "-p", preset, "-s", store, *both)
    assert ended.code == 2
    assert "do not belong together" in ended.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train-steve.weights=pretrained/mini-stev"], "no weights 'mini-stev' in"),
        (["train-steve.weights=pretrained/mini-stev"], "did you mean 'mini-steve'?"),
        (
            ["train-steve.weights=pretrained/mini-dvae"],
            "pretrained/mini-dvae is for train-dvae, so it cannot be",
        ),
        ([*use("steve"), "train-steve.model.slots=3"], "does not fit the configured steve model: slots is 2, configured 3"),
        ([*use("dvae"), "frames.image-size=64", *use("steve")], "image_size is 32, configured 64"),
        (["train-readout.weights.rollout=pretrained/mini-rollout-0"], "names one readout for 2 seeds: put {seed} into it"),
        (["train-readout.weights.rolout=pretrained/x"], "rolout"),
        (["train-steve.weights=s3:/bucket/x"], "a name has letters, digits"),
    ],
)
def test_weights_that_cannot_be_used(physion, preset, shared, overrides, message):
    ended = physion("plan", "-p", preset, "-s", shared, *with_set(overrides))
    assert ended.code == 2
    assert message in ended.err


def test_sizes_that_only_training_knows_may_differ(preset, shared):
    dvae = graph_with(preset, [*use("dvae", "steve"), "train-dvae.model.initial-logit-scale=7"], shared)["take-weights-dvae"]
    steve = graph_with(preset, [*use("steve"), "train-steve.model.dropout=0.5"], shared)["take-weights-steve"]
    assert dvae.weights
    assert steve.weights


def test_push_pull_list(physion, preset, shared, tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    assert physion("weights", "push", "pretrained/mini-steve", "--to", there, "-s", shared).code == 0
    ended = physion("weights", "pull", "mini-steve", "--from", there, "-s", here)
    assert ended.code == 0
    assert "use it with: --set train-steve.weights=pretrained/mini-steve" in ended.out
    one, two = (find_weights(LocalStore(root), "mini-steve") for root in (shared, here))
    assert one.manifest == two.manifest
    assert all(one.path(name).read_bytes() == two.path(name).read_bytes() for name in one.names())
    assert physion("weights", "pull", "mini-steve", "--from", there, "-s", here).code == 0  # again: nothing to do
    (row,) = json.loads(physion("weights", "list", "-s", here, "--json").out)["result"]
    assert (row["stage"], row["origin"]["stage"]) == ("train-steve", "train-steve")
    assert "mini-steve" in physion("weights", "list", "-s", here).out
    assert "no named weights" in physion("weights", "list", "-s", tmp_path / "empty").out
    ended = physion("weights", "pull", "mini-steve", "--from", tmp_path / "empty", "-s", here)
    assert (ended.code, "no weights 'mini-steve'" in ended.err) == (2, True)
    option = "--set train-readout.weights.full=pretrained/mini-full-1"
    assert option in physion("weights", "pull", "mini-full-1", "--from", shared, "-s", here).out
    assert option in (here / "pretrained" / "mini-full-1" / "README.md").read_text()
    for arguments, message in {
        ("push", "train-steve"): "give train-steve a name to share it under: --name my-steve",
        ("push", "pretrained/mini-steve", "--name", "x"): "has a name already",
        ("push", "pretrained/mini-steve", "--license", "mit"): "has a model card already",
        ("push", "simulate", "--name", "x"): "neither pretrained/<name>, builtin/<name> nor a trained stage",
        ("push", "train-readout", "--name", "x"): "has 6 instances; say which: --features",
        ("push", "train-dvae", "--name", "x"): "train-dvae of preset",
    }.items():
        ended = physion("weights", *arguments, "-p", preset, "-s", shared, *(["--to", here] if "push" in arguments else []))
        assert ended.code == 2, arguments
        assert message in ended.err


def test_a_model_card_lies_beside_them(physion, shared, tmp_path):
    """Where they come from, what was measured, and two lines that load them; a copy carries the same."""
    folder = shared / "pretrained" / "mini-steve"
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {
        "weights",
        "frozen",
        "manifest.json",
        "README.md",
        "config.json",
    }
    text, manifest = (folder / "README.md").read_text(), find_weights(LocalStore(shared), "mini-steve").manifest
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "physion",
        "license": "unknown",
        "tags": ["physion", "slotformer", "video"],
    }
    assert manifest.origin["answers"] in body
    assert f"| held-out loss | {manifest.origin['metrics']['heldout_loss']:.4g} |" in body
    code = re.findall(r"^    (.*(?:import|load_model).*)$", body, re.M)
    loaded = {}
    exec("\n".join(code).replace('Path("', f'Path("{folder}/'), {}, loaded)
    assert sum(parameter.numel() for parameter in loaded["model"].parameters()) == manifest.metrics["parameters"]
    assert json.loads((folder / "config.json").read_text())["model"] == manifest.config
    assert physion("weights", "pull", "mini-steve", "--from", shared, "-s", tmp_path).code == 0
    for name in ("README.md", "config.json"):
        assert (tmp_path / "pretrained" / "mini-steve" / name).read_bytes() == (folder / name).read_bytes()
    assert physion("weights", "remove", "mini-steve", "-s", tmp_path).code == 0
    assert not (tmp_path / "pretrained" / "mini-steve").exists()


def test_those_that_come_with_the_package(physion, shared, tmp_path):
    """Listed, loaded, given to a study by name, and copied into a store; nothing is written beside them."""
    listed = json.loads(physion("weights", "list", "builtin", "--json").out)["result"]
    names = {row["instance"]: row["stage"] for row in listed}
    assert {"cpu-isa", "cpu-slotformer"} <= names.keys()
    weights = build_graph(load_config("demo"), LocalStore(tmp_path / "none"))
    assert {name for name in weights if name.startswith("train-")} == {
        f"train-readout-{mode}-{seed}" for mode in MODES for seed in load_config("demo").train_readout.seeds
    }
    for name in names:
        artifact = find_weights(open_store(BUILTIN), f"builtin/{name}")
        assert (
            sum(p.numel() for p in load_model(role_of(artifact, "weights")).parameters())
            == artifact.manifest.metrics["parameters"]
        )
        assert artifact.manifest.origin["license"] == "mit"
    ended = physion("weights", "push", "builtin/cpu-isa", "--to", tmp_path / "store", "-s", tmp_path / "store")
    assert (ended.code, "--set train-isa.weights=pretrained/cpu-isa" in ended.out) == (0, True)
    ended = physion("weights", "push", "pretrained/mini-steve", "--to", "builtin:", "-s", shared)
    assert (ended.code, "is read-only: name another --store" in ended.err) == (2, True)
    ended = physion("weights", "list")
    assert (ended.code, "`physion weights list builtin`, or --store" in ended.err) == (2, True)
    ended = physion("plan", "-p", "demo", "-s", tmp_path / "none", "--set", "train-isa.weights=builtin/cpu-iza")
    assert (ended.code, "did you mean 'cpu-isa'" in ended.err) == (2, True)


def test_through_a_bucket(physion, preset, shared, s3, tmp_path):
    """To a bucket, used there by a study, and back."""
    bucket, here = "s3://tests/weights", tmp_path / "here"
    for model in MODELS:
        assert physion("weights", "push", f"pretrained/mini-{model}", "--to", bucket, "-s", shared).code == 0
    listed = json.loads(physion("weights", "list", "-s", bucket, "--json").out)["result"]
    assert [row["instance"] for row in listed] == ["mini-dvae", "mini-slotformer", "mini-steve"]
    for model in ("dvae", "steve"):
        arguments = ["stage", "take-weights", "--model", model, "-p", preset, "-s", bucket, *with_set(use(*MODELS))]
        assert physion(*arguments).code == 0
    assert physion("weights", "pull", "mini-steve", "--from", bucket, "-s", here).code == 0
    one, two = (find_weights(LocalStore(root), "mini-steve") for root in (shared, here))
    assert all(one.path(name).read_bytes() == two.path(name).read_bytes() for name in one.names())


class Hub(http.server.SimpleHTTPRequestHandler):
    """A file server that breaks the first connection to each file before its first byte, the second to weights midway."""

    broken: list[str]
    ranges = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        start, end = (int(asked[1]), min(int(asked[2]) + 1, len(data))) if asked and self.ranges else (0, len(data))
        self.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        body = data[start:end]
        before = self.broken.count(path.name)
        if before < (2 if path.suffix == ".safetensors" else 1):
            self.broken.append(path.name)
            body = body[: before * len(body) // 2]
        self.wfile.write(body)


@pytest.mark.parametrize("ranges", [True, False])
def test_from_a_folder_and_from_the_web(physion, shared, tmp_path, ranges):
    """As a model hub keeps them: without a store around them."""
    plain = tmp_path / "hub" / "some-folder"
    shutil.copytree(shared / "pretrained" / "mini-steve", plain)
    handler = type("Mine", (Hub,), {"broken": [], "ranges": ranges})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(plain.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        for number, place in enumerate((plain, f"{address}/some-folder", f"{address}/some-folder/")):
            ended = physion("weights", "pull", place, "-s", tmp_path / str(number))
            assert (ended.code, "--set train-steve.weights=pretrained/mini-steve" in ended.out) == (0, True), ended.err
            copy, one = (find_weights(LocalStore(root), "mini-steve") for root in (tmp_path / str(number), shared))
            assert copy.manifest == one.manifest
            assert all(copy.path(name).read_bytes() == one.path(name).read_bytes() for name in one.names())
        assert set(handler.broken) == {*one.names(), "manifest.json"}
        ended = physion("weights", "pull", f"{address}/other", "-s", tmp_path / "none")
        assert (ended.code, f"no manifest.json of named weights at {address}/other" in ended.err) == (2, True)
        for other in (plain.as_uri(), "ftp://127.0.0.1/some-folder", "s3://bucket/some-folder"):
            ended = physion("weights", "pull", other, "-s", tmp_path / "none")
            assert (ended.code, "not a web address (http or https)" in ended.err) == (2, True)
        (plain / "manifest.json").write_text("{}")
        for place in (plain, f"{address}/some-folder"):
            ended = physion("weights", "pull", place, "-s", tmp_path / "none")
            assert (ended.code, "manifest.json is not a manifest; get it again" in ended.err) == (3, True)
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / "none" / "pretrained").exists()


class Breaking(LocalStore):
    """A store whose connection breaks after a few reads, and which counts the bytes it gave."""

    def __init__(self, root, reads):
        super().__init__(root)
        self.reads, self.given = reads, 0

    def read_range(self, key, start, length):
        if self.reads == 0:
            raise TransientError("the connection broke")
        self.reads -= 1
        data = super().read_range(key, start, length)
        self.given += len(data)
        return data


def test_a_broken_download_goes_on(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "CHUNK", 1000)
    total = sum(record.size for record in find_weights(LocalStore(shared), "mini-steve").manifest.files)
    assert total > 10_000
    source, target = Breaking(shared, 4), LocalStore(tmp_path / "here")
    with pytest.raises(TransientError):
        copy_weights(find_weights(source, "mini-steve"), target, tmp_path / "partial")
    assert target.list("pretrained") == []
    assert source.given == 4000
    source.reads = -1
    copied = copy_weights(find_weights(source, "mini-steve"), target, tmp_path / "partial")
    assert source.given == total
    assert copied == find_weights(LocalStore(shared), "mini-steve").manifest
    assert not list((tmp_path / "partial").iterdir())


class Damaging(LocalStore):
    """A store of whose first reads a bit of each is flipped on its way, always another one."""

    def __init__(self, root, reads):
        super().__init__(root)
        self.reads = reads

    def read_range(self, key, start, length):
        data = bytearray(super().read_range(key, start, length))
        if self.reads:
            self.reads -= 1
            data[self.reads] ^= 1
        return bytes(data)


def test_what_comes_damaged_is_read_again(shared, tmp_path):
    target = LocalStore(tmp_path / "here")
    with pytest.raises(TransientError, match="arrived damaged twice"):
        copy_weights(find_weights(Damaging(shared, 2), "mini-steve"), target, tmp_path / "partial")
    assert target.list("pretrained") == []
    copied = copy_weights(find_weights(Damaging(shared, 1), "mini-steve"), target, tmp_path / "partial")
    assert copied == find_weights(LocalStore(shared), "mini-steve").manifest


def test_a_killed_download_goes_on(shared, tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from physion.store import pretrained\n"
        "from physion.store.local import LocalStore\n"
        "class Dying(LocalStore):\n"
        "    left = int(sys.argv[4])\n"
        "    def read_range(self, *arguments):\n"
        "        if self.left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        self.left -= 1\n"
        "        return super().read_range(*arguments)\n"
        "pretrained.CHUNK = 5000\n"
        "source = pretrained.find_weights(Dying(Path(sys.argv[1])), 'mini-steve')\n"
        "pretrained.copy_weights(source, LocalStore(Path(sys.argv[2])), Path(sys.argv[3]))\n"
    )
    here, killed = tmp_path / "here", 0
    while True:
        arguments = [str(shared), str(here), str(tmp_path / "partial"), "3"]
        ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert LocalStore(here).list("pretrained") == []
        killed += 1
    assert killed >= 2
    one, two = (find_weights(LocalStore(root), "mini-steve") for root in (shared, here))
    assert all(one.path(name).read_bytes() == two.path(name).read_bytes() for name in one.names())


def test_a_damaged_or_half_uploaded_object(physion, shared, preset, tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    shutil.copytree(shared, there)
    (weights,) = (there / "pretrained/mini-steve").glob("weights-*")
    whole = weights.read_bytes()
    for damaged, message in {
        whole[:-7]: "is shorter than its manifest says",
        whole[:-1] + bytes([whole[-1] ^ 1]): "is corrupt (its SHA-256 is not the manifest's)",
    }.items():
        weights.unlink()
        weights.write_bytes(damaged)
        ended = physion("weights", "pull", "mini-steve", "--from", there, "-s", here)
        assert (ended.code, message in ended.err) == (3, True)
        assert LocalStore(here).list("pretrained") == []
        ended = physion("stage", "take-weights-steve", "-p", preset, "-s", there, *with_set(use("dvae", "steve")))
        assert ended.code in (2, 3)  # 2: its dVAE is not made yet
    weights.unlink()
    ended = physion("weights", "pull", "mini-steve", "--from", there, "-s", here)
    assert (ended.code, "is missing" in ended.err) == (3, True)
    (there / "pretrained/mini-steve/manifest.json").unlink()  # an upload that was killed before its end
    ended = physion("weights", "pull", "mini-steve", "--from", there, "-s", here)
    assert (ended.code, "no weights 'mini-steve'" in ended.err) == (2, True)
    assert "mini-steve" not in physion("weights", "list", "-s", there).out
    assert physion("weights", "push", "pretrained/mini-steve", "--to", there, "-s", shared).code == 0
    assert physion("weights", "pull", "mini-steve", "--from", there, "-s", here).code == 0
    (there / "pretrained/mini-dvae/manifest.json").write_text("{")
    ended = physion("weights", "pull", "mini-dvae", "--from", there, "-s", here)
    assert (ended.code, "physion weights remove mini-dvae" in ended.err) == (3, True)
    assert physion("weights", "remove", "mini-dvae", "-s", there).code == 0


def test_a_damaged_file_of_given_weights(physion, preset, shared, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(shared, store)
    overrides = with_set(use(*MODELS, readouts=True))
    (weights,) = (store / "pretrained/mini-dvae").glob("weights-*")
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    ended = physion("stage", "take-weights-dvae", "-p", preset, "-s", store, *overrides)
    assert ended.code == 3
    assert "is corrupt" in ended.err
    assert "physion weights remove mini-dvae" in ended.err
    assert not list((store / "artifacts").glob("take-weights/*/manifest.json"))


def test_a_name_keeps_its_meaning(shared, tmp_path):
    store = LocalStore(tmp_path / "store")
    shutil.copytree(shared, store.root)
    renamed = find_weights(store, "mini-observed-0")
    renamed.manifest.instance = "mini-observed-1"
    with pytest.raises(ConfigError, match="holds other weights"):
        copy_weights(renamed, store, tmp_path / "partial")
    assert os.listdir(tmp_path / "store/pretrained/mini-observed-1") == os.listdir(shared / "pretrained/mini-observed-1")
