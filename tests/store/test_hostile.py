"""What others wrote into a shared store, or left where our folders are: nothing let in, nothing deleted that is not ours."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from world import World

from physion.commands.tensorboard import _named
from physion.config.load import load_config
from physion.errors import ConfigError, DataError, TransientError
from physion.models.published import load_copies, read_published
from physion.models.weights import load_model
from physion.pipeline.graph import build_graph
from physion.pipeline.why import why
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest, read_manifest
from physion.store.cache import ShardCache
from physion.store.local import LocalStore
from physion.store.pretrained import copy_weights, find_weights, publish_weights
from physion.store.s3 import S3Store
from physion.store.survey import judge, remove, survey
from physion.training.checkpoints import Checkpoints, History, State, read_state

FINGERPRINT = "f" * 20
PREFIX = f"artifacts/frames/{FINGERPRINT}"
ESC = "\x1b]0;mine\x07"
OLD = time.time() - 30 * 86400


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path / "world")
    monkeypatch.setenv("HOME", str(world.place("home")))
    monkeypatch.setenv("PHYSION_CACHE", str(world.place("cache")))
    yield world
    world.check()


@pytest.fixture
def store(world):
    """A store with one artifact and one set of named weights."""
    store = LocalStore(world.place("store"))
    publish(store, a=b"alpha")
    publish_weights(store, "good", "train-dvae", {"weights": file_in(store, b"weights")}, {}, {"parameters": 1}, {})
    return store


def file_in(store, data):
    path = store.scratch() / "file"
    path.write_bytes(data)
    return path


def manifest(files, **facts):
    known = {"stage": "frames", "instance": "frames-test", "fingerprint": FINGERPRINT, "config": {}, "inputs": {}, "code": "1"}
    return Manifest(files=files, **known | {"created": "2026-01-01T00:00:00+00:00", "seconds": 1.0} | facts)


def publish(store, fingerprint=FINGERPRINT, **files):
    writer = ArtifactWriter(store, "frames", fingerprint)
    part = writer.add_part("0", {f"{name}.txt": file_in(store, data) for name, data in files.items()})
    published = writer.publish(manifest(part.files, fingerprint=fingerprint))
    writer.close()
    return published


def change(store, key, **facts):
    """Write facts into a JSON object of a store; of a file's record those that it has."""
    tree = json.loads(store.read(key))
    for name, value in facts.items():
        (tree["files"][0] if name in tree["files"][0] else tree)[name] = value
    store.write(key, json.dumps(tree).encode())


def record_of(outside):
    """Records that no honest writer writes."""
    return [
        {"sha256": str(outside)},
        {"sha256": "../../canary"},
        {"sha256": "0" * 63},
        {"sha256": "0" * 63 + "\n"},
        {"name": "../../../evil"},
        {"name": str(outside)},
        {"name": ""},
        {"name": "a//b"},
        {"name": f"a{ESC}"},
        {"name": "a" * 300},
        {"name": "a\x00b"},
        {"size": -5},
        {"size": "many"},
        {"size": 2**80},
        {"size": 1.5},
    ]


RECORDS = len(record_of("/x"))


# --------------------------------------------------------------------------- 1. records, keys and names become paths
@pytest.mark.parametrize("number", range(RECORDS))
def test_records_of_weights(physion, world, store, number):
    there = world.place("here")
    bad = record_of(world.root / "canary")[number]
    change(store, "pretrained/good/manifest.json", **bad)
    ended = physion("weights", "pull", "good", "--from", store.root, "-s", there)
    assert ended.code == 3
    assert f"{store.uri}/pretrained/good/manifest.json is" in ended.err
    assert not list(there.rglob("pretrained"))


@pytest.mark.parametrize("number", range(RECORDS))
def test_records_of_an_artifact(physion, world, store, number):
    change(store, f"{PREFIX}/manifest.json", **record_of(world.root / "canary")[number])
    for command in (["get", f"{PREFIX}/a.txt", world.place("out")], ["verify"], ["ls"], ["gc", "--delete", "--days", "0"]):
        ended = physion("store", *command, "-s", store.root)
        assert ended.code == 3
        assert f"{store.uri}/{PREFIX}/manifest.json is" in ended.err
        assert "\x1b" not in ended.err + ended.out
    assert (store.root / PREFIX / "a.txt").read_bytes() == b"alpha"


@pytest.mark.parametrize("number", range(RECORDS))
def test_records_of_a_part(world, store, number):
    writer = ArtifactWriter(store, "frames", "e" * 20)
    writer.add_part("0", {"a.txt": file_in(store, b"alpha")})
    key = f"{writer.prefix}/parts/0.json"
    change(store, key, **record_of(world.root / "canary")[number])
    again = ArtifactWriter(store, "frames", "e" * 20)
    for read in (again.parts, lambda: again.keep("0")):
        with pytest.raises(DataError, match=f"{store.uri}/{key} is damaged"):
            read()


@pytest.mark.parametrize(
    "data", [b"[]", b"null", b'{"study": 1}', b'{"study": {"a": "../x"}, "inputs": {}}', b"\xff", b"[" * 99999]
)
def test_a_study_that_is_none(store, data):
    writer = ArtifactWriter(store, "frames", "e" * 20)
    store.write(f"{writer.prefix}/study.json", data)
    with pytest.raises(DataError, match=f"{store.uri}/{writer.prefix}/study.json is damaged"):
        writer.begin({}, {})


KEYS = ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/", f"a{ESC}", "a\nb", "x" * 300]


@pytest.mark.parametrize("optimized", [[], ["-O"]])
def test_keys_that_are_none(world, store, optimized):
    program = (
        "import sys, json\nfrom pathlib import Path\nfrom physion.errors import ConfigError\n"
        "from physion.store.local import LocalStore\nfrom physion.store.s3 import S3Store\n"
        "stores = [LocalStore(Path(sys.argv[1])), S3Store('tests', 'x', scratch=Path(sys.argv[1]) / 's')]\n"
        "for store in stores:\n"
        "    for key in json.loads(sys.argv[2]):\n"
        "        for use in (store.read, store.size, store.fetch, store.delete, store.age, lambda k: store.write(k, b'x')):\n"
        "            try: use(key)\n"
        "            except ConfigError as error: assert 'is not a valid key' in str(error)\n"
        "            else: raise AssertionError(key)\n"
    )
    arguments = [str(store.root), json.dumps(KEYS)]
    subprocess.run([sys.executable, *optimized, "-c", program, *arguments], check=True, env=os.environ | {"AWS_REGION": "x"})


@pytest.mark.parametrize("key", KEYS)
def test_getting_and_putting_what_is_no_key(physion, world, store, key):
    assert physion("store", "get", f"files/{key}/x", world.place("out"), "-s", store.root).code == 2
    assert physion("store", "put", world.root / "canary", f"files/{key}/x", "-s", store.root).code == 2


def test_the_cache_takes_nothing_but_hashes(world):
    cache = ShardCache(world.place("mine"), 10**9)
    for name in (str(world.root / "canary"), "../../canary", "", "0" * 63):
        with pytest.raises(ConfigError, match="is not a SHA-256"):
            cache.get(name, 5, lambda path: path.write_bytes(b"alpha"))


def test_objects_that_are_not_ours_are_in_no_listing(world, store):
    (store.root / PREFIX / "a\x1b[31m.txt").write_text("x")
    (store.root / PREFIX / ".nfs0000000012345").write_text("x")
    assert store.list(PREFIX) == [f"{PREFIX}/a.txt", f"{PREFIX}/manifest.json"]


def test_an_object_that_is_far_too_large(world, store):
    with (store.root / PREFIX / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"manifest\.json is far too large"):
        read_manifest(store, "frames", FINGERPRINT)


@pytest.mark.parametrize("size", [1 << 31, 1 << 41])
def test_a_size_that_is_none_makes_no_room_in_the_cache(world, s3, size):
    """Nor is memory taken for its parts."""
    cache = ShardCache(world.place("mine"), 10_000)
    remote = S3Store("tests", f"sizes-{size}", scratch=world.place("scratch"), cache=cache)
    good, bad = publish(remote, a=b"alpha"), publish(remote, "e" * 20, b=b"beta")
    with ThreadPoolExecutor(1) as another:  # which keeps its newest object as long as it lives
        kept = another.submit(Artifact(remote, good).path, "a.txt").result()
    bad.files[0] = bad.files[0].model_copy(update={"size": size})
    with pytest.raises(DataError, match=rf"b\.txt is corrupt \(it has 4 bytes, not {size}\)"):
        Artifact(remote, bad).path("b.txt")
    assert kept.exists()


# ------------------------------------------------------------------- 2. what is allocated is bounded by what a file holds
def pth(path, **state):
    torch.save({"state_dict": state}, path)
    return path


def compressed(path):
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(path.with_name("small.pth"), "w", zipfile.ZIP_DEFLATED) as small:
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry))
    return path.with_name("small.pth")


def test_expanded_tensors(tmp_path):
    for tensor in (torch.zeros(1).expand(2**40), torch.zeros(4).as_strided((2**20, 2**20), (0, 0)), torch.eye(3).to_sparse()):
        path = pth(tmp_path / "x.pth", weight=tensor)
        assert path.stat().st_size < 3000
        with pytest.raises(DataError, match="does not hold all the values of weight"):
            read_published(path)
    shared = torch.zeros(1000)
    with pytest.raises(DataError, match="take far more memory"):
        read_published(pth(tmp_path / "x.pth", **{f"w{number}": shared for number in range(1000)}))


def test_a_compressed_bomb(tmp_path):
    with pytest.raises(DataError, match="it is compressed, and would take far more memory"):
        read_published(compressed(pth(tmp_path / "x.pth", weight=torch.zeros(1_000_000))))


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("readout", {"slots": 2**40, "slot_size": 16}),
        ("readout", {"slots": 3, "slot_size": 2**62}),
        ("readout", {"slots": 5000, "slot_size": 9000}),
        ("readout", {"slots": -1, "slot_size": 16}),
        ("readout", {"slots": [], "slot_size": None}),
        ("readout", []),
        ([], {}),
        ("slotformer", {"model": {"layers": 10**9, "d-model": 8}, "slots": 3, "slot_size": 8}),
        ("slotformer", {"model": {"d-model": 2**40}, "slots": 3, "slot_size": 8}),
        ("dvae", {"model": {"codes": 2**50, "channels": 2}}),
    ],
)
def test_metadata_that_describes_a_huge_model(tmp_path, model, config):
    facts = {"physion": json.dumps({"model": model, "config": config})}
    save_file({"linear1.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors", facts)
    with pytest.raises(DataError):
        load_model(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "facts", [None, {}, {"physion": "{"}, {"physion": "{}"}, {"physion": '["other"]'}, {"physion": "[[]]"}]
)
def test_frozen_copies_that_are_none(tmp_path, facts):
    save_file({"dvae.x": torch.zeros(2)}, tmp_path / "frozen", facts)
    with pytest.raises(DataError):
        load_copies(tmp_path / "frozen")


# ------------------------------------------------------------------ 3. one bad object is named, and the rest goes on
def test_weights_keep_their_name(physion, world, store):
    there = world.place("here")
    change(store, "pretrained/good/manifest.json", instance="other")
    ended = physion("weights", "pull", "good", "--from", store.root, "-s", there)
    assert ended.code == 3
    assert "pretrained/good/manifest.json is not a manifest of these weights: it says that they are 'other'" in ended.err
    assert not list(there.rglob("pretrained"))


def test_a_manifest_belongs_to_its_place(store):
    change(store, f"{PREFIX}/manifest.json", fingerprint="e" * 20)
    with pytest.raises(DataError, match=f"{PREFIX}/manifest.json is that of artifacts/frames/{'e' * 20}"):
        read_manifest(store, "frames", FINGERPRINT)


def test_what_only_commands_write_is_not_put(physion, world, store):
    for key in ("pretrained/n/manifest.json", "artifacts/frames/x/manifest.json", "pretrained", ".staging/x"):
        ended = physion("store", "put", world.root / "canary", key, "-s", store.root)
        assert (ended.code, "only stages and `physion weights` write there" in ended.err) == (2, True)


DAMAGES = {
    "no zone": lambda tree: tree | {"created": "2026-01-01T00:00:00"},
    "no time": lambda tree: tree | {"created": "yesterday"},
    "no list": lambda tree: [],
    "markup": lambda tree: tree | {"instance": "[/x]"},
    "escape": lambda tree: tree | {"instance": f"frames{ESC}"},
    "hidden": lambda tree: tree | {"config": {"a": [{"b": ESC}]}},
    "no metrics": lambda tree: tree | {"metrics": None},
    "infinite": lambda tree: tree | {"format": float("inf")},
    "for ever": lambda tree: tree | {"seconds": 1e300},
    "no number": lambda tree: tree | {"seconds": float("nan")},
    "no inputs": lambda tree: tree | {"identity": {"inputs": 5}},
    "no parameters": lambda tree: tree | {"metrics": {}},
    "no metrics of origin": lambda tree: tree | {"origin": {"metrics": 5}},
    "twice": lambda tree: tree | {"files": tree["files"] * 2},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_bad_manifest(physion, store, damage):
    publish(store, "e" * 20, b=b"beta")
    publish_weights(store, "fine", "train-dvae", {"weights": file_in(store, b"others")}, {}, {"parameters": 7}, {})
    keys = [f"{PREFIX}/manifest.json", "pretrained/good/manifest.json"]
    for key in keys:
        store.write(key, json.dumps(DAMAGES[damage](json.loads(store.read(key)))).encode())
    options = ["-s", str(store.root)]
    listed = physion("weights", "list", *options)
    assert (listed.code, "fine" in listed.out, f"{store.uri}/{keys[1]} is" in listed.err) == (3, True, True)
    rows = json.loads(physion("weights", "list", *options, "--json").out)["result"]
    assert [row["instance"] for row in rows] == ["fine"]
    assert physion("weights", "pull", "fine", "--from", store.root, *options).code == 0
    if damage not in ("no parameters", "no metrics of origin"):
        for command in ("ls", "gc", "verify"):
            ended = physion("store", command, *options)
            assert (ended.code, f"{store.uri}/{keys[0]} is" in ended.err) == (3, True)
            assert "\x1b" not in ended.out + ended.err
        assert "eeeeeeeeeeee" in physion("store", "ls", *options).out


@pytest.mark.parametrize("identity", [{}, {"config": {"a": 1}}, {"stage": "frames", "inputs": {"dataset": "0" * 20}}])
def test_an_artifact_that_says_less_of_its_identity_than_another(physion, store, identity):
    """As those of format 1 do."""
    publish(store, "e" * 20, b=b"beta")
    change(store, f"{PREFIX}/manifest.json", identity={"config": {"a": 2}, "inputs": {"dataset": "1" * 20}, "params": {}})
    change(store, f"artifacts/frames/{'e' * 20}/manifest.json", identity=identity)
    ended = physion("store", "ls", "-s", store.root)
    assert (ended.code, ended.out.count("frames-test")) == (0, 2)


def test_a_name_in_tensorboard_is_one_of_a_folder(store):
    publish(store, "e" * 20, b=b"beta")
    change(store, f"{PREFIX}/manifest.json", identity={"config": {"a": "\N{SNOWMAN}" * 300}})
    assert all(len(name.encode()) <= 255 for name in _named(store, survey(store)))


def test_why_there_is_another_one_is_said_of_an_artifact_that_says_less(store, preset):
    change(store, f"{PREFIX}/manifest.json", identity={"config": {"frames": 1}})
    graph = build_graph(load_config(preset))
    assert ("fact", "inputs") in {(reason.kind, reason.what) for reason in why(graph["frames-test"], graph, store)}


@pytest.mark.parametrize("headline", [5, "[/x]", {"a": []}, None])
def test_a_report_whose_headline_is_none(physion, store, headline):
    record = {"name": "a.txt", "size": 5, "sha256": hashlib.sha256(b"alpha").hexdigest()}
    for fingerprint, told in {"a" * 20: headline, "b" * 20: "full 61.5 %"}.items():
        facts = {"stage": "evaluate", "instance": "evaluate", "fingerprint": fingerprint, "metrics": {"headline": told}}
        store.write(f"artifacts/evaluate/{fingerprint}/manifest.json", manifest([record], **facts).model_dump_json().encode())
    ended = physion("runs", "-s", store.root)
    assert (ended.code, "61.5" in ended.out, "aaaaaaaaaaaa" in ended.out) == (0, True, True)


@pytest.mark.parametrize("stray", ["x", "x/y", "[/x]/y"])
def test_a_stray_file_below_the_artifacts(physion, store, stray):
    store.write(f"artifacts/{stray}", b"x")
    for command in (["ls"], ["gc", "--delete", "--days", "0"], ["verify"]):
        ended = physion("store", *command, "-s", store.root)
        assert (ended.code, f"artifacts/{stray} is part of no artifact" in ended.err) == (3, True)
    assert "frames-test" in physion("store", "ls", "-s", store.root).out
    assert store.size(f"artifacts/{stray}") == 1


def test_a_damaged_study_removes_nothing_that_may_be_needed(physion, store, preset):
    store.write(f"artifacts/tokenize/{'d' * 20}/study.json", b"[]")
    ended = physion("store", "gc", "--keep", "smoke", "--delete", "-s", store.root)
    assert (ended.code, "study.json is damaged" in ended.err) == (3, True)
    assert read_manifest(store, "frames", FINGERPRINT)


def test_checkpoints_and_owners_of_others(store):
    writer = ArtifactWriter(store, "train-dvae", FINGERPRINT)
    model, adam = torch.nn.Linear(2, 2), None
    adam = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with Checkpoints(writer) as ours:
        ours.take_over()
        ours.save(State.of(3, History(), model, adam, scaler))
    data = b"no safetensors"
    digest = hashlib.sha256(data).hexdigest()[:16]
    others = ["checkpoints/.nfs0001", "checkpoints/x", "checkpoints/a-b-c.safetensors", "owners/x.json", "owners/.nfs01"]
    others += ["owners/-1.json", f"checkpoints/000001-00000009-{digest}.safetensors", "live/x", "live/a-b.jsonl"]
    for name in others:
        store.write(f"{writer.prefix}/{name}", data)
    with Checkpoints(ArtifactWriter(store, "train-dvae", FINGERPRINT)) as again:
        state = again.take_over()
        assert state.step == 3
        with pytest.raises(DataError, match="does not fit the model: mismatched: weight"):
            state.load(torch.nn.Linear(3, 2), adam, scaler)
        again.save(state)
        again.wait()


def harm(state, how):
    rows = [{"step": 0, "lr": 0.1, "heldout_loss": 2.0}, {"step": 3, "lr": 0.1, "heldout_loss": 1.0}]
    state.history.rows = rows
    if how == "a row without a loss":
        del rows[1]["heldout_loss"]
    elif how == "a row without a step":
        del rows[1]["step"]
    elif how == "half of a scaler":
        state.scaler = {"scale": 2.0}
    elif how == "moments of another shape":
        state.tensors["adam.exp_avg.weight"] = torch.zeros(3, 3)
    elif how == "moments without a step":
        del state.tensors["adam.step.weight"]
    elif how == "moments of nothing":
        state.tensors["adam.exp_avg.other"] = torch.zeros(2)
    elif how == "many steps":
        state.tensors["adam.step.bias"] = torch.zeros(2)
    return state


HARMS = ["a row without a loss", "a row without a step", "half of a scaler", "moments of another shape"]
HARMS += ["moments without a step", "moments of nothing", "many steps"]


@pytest.mark.parametrize("how", [None, *HARMS])
def test_a_checkpoint_that_is_not_whole(tmp_path, how):
    model = torch.nn.Linear(2, 2)
    adam, scaler = torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu")
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    state = harm(State.of(3, History(), model, adam, scaler), how)
    told = {"step": 3, "history": vars(state.history), "scaler": state.scaler, "seconds": 1.0}
    save_file(state.tensors, tmp_path / "checkpoint", {"physion": json.dumps(told)})

    def resume():
        read_state(tmp_path / "checkpoint").load(torch.nn.Linear(2, 2), torch.optim.Adam(model.parameters()), scaler)

    if how is None:
        resume()
    else:
        with pytest.raises(DataError):
            resume()


def test_a_checkpoint_made_without_a_loss_scaler_is_resumed_with_one(tmp_path):
    """On a GPU without bf16, say: the scale is found anew."""
    model = torch.nn.Linear(2, 2)
    state = State.of(1, History(), model, torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu", enabled=False))
    scaler = torch.amp.GradScaler("cpu")
    fresh = scaler.state_dict()
    state.load(model, torch.optim.Adam(model.parameters()), scaler)
    assert scaler.state_dict() == fresh


def test_a_resumed_checkpoint_is_let_go_of(store):
    """NFS keeps what is removed while somebody maps it."""
    model = torch.nn.Linear(200, 200)
    with Checkpoints(ArtifactWriter(store, "train-dvae", FINGERPRINT)) as ours:
        ours.take_over()
        ours.save(
            State.of(1, History(), model, torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu", enabled=False))
        )
    with Checkpoints(ArtifactWriter(store, "train-dvae", FINGERPRINT)) as again:
        state = again.take_over()
        assert state.step == 1
        assert "checkpoints/" not in Path("/proc/self/maps").read_text()


# ------------------------------------------------------- 4., 5. whose folder it is, and what is deleted in it
def get(cache, data=b"alpha"):
    def download(path):
        path.write_bytes(data)
        return False

    return cache.get(hashlib.sha256(data).hexdigest(), len(data), download)


def test_a_cache_that_others_can_write(world):
    root = world.place("mine")
    assert get(ShardCache(root, 10**9)).read_bytes() == b"alpha"
    assert all(path.stat().st_mode & 0o77 == 0 for path in [root, *root.rglob("*")])
    root.chmod(0o775)
    with pytest.raises(ConfigError, match="has mode 775: anyone who can write there could replace"):
        get(ShardCache(root, 10**9))
    root.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(root, 1234, 1234)
        with pytest.raises(ConfigError, match="belongs to user 1234"):
            get(ShardCache(root, 10**9))
        os.chown(root, 0, 0)
    assert get(ShardCache(root, 10**9)).read_bytes() == b"alpha"


@pytest.mark.parametrize("what", ["", "objects", "partial", "claim", "object"])
def test_a_cache_behind_symbolic_links(world, what):
    root, victim = world.place("mine"), world.plant(world.root / "victim", "object", "lock", "a" * 64, "b" * 64 + "-5/object")
    sha256 = hashlib.sha256(b"alpha").hexdigest()
    link = {"claim": root / "partial" / f"{sha256}-5", "object": root / "objects" / sha256}.get(what, root / what)
    get(ShardCache(root, 10**9), b"another")
    shutil.rmtree(link, ignore_errors=True)
    link.symlink_to(victim)
    with pytest.raises(ConfigError, match="symbolic link"):
        get(ShardCache(root, 10))
    link.unlink()


def test_a_cache_folder_of_others_is_left_alone(physion, world, s3):
    """`PHYSION_CACHE=/data`, where there is a /data/scratch already, and all else that ours could be called."""
    data = world.plant(world.root / "data", "scratch/canary", "scratch/mine/canary", "partial/mine/canary", "objects/canary",
                       "lock", "scratch.lock", "pulls/canary")  # fmt: skip
    world.ours += [data / f"physion-{name}" for name in ("cache", "scratch", "pulls")]
    options = ["--cache", data]
    store = f"s3://tests/{world.root.name}{os.getpid()}"
    assert physion(*options, "store", "put", world.root / "canary", "files/x", "-s", store).code == 0
    local = LocalStore(world.place("store"))
    publish_weights(local, "good", "train-dvae", {"weights": file_in(local, b"weights")}, {}, {"parameters": 1}, {})
    assert physion(*options, "weights", "push", "pretrained/good", "--to", store, "-s", local.root).code == 0


@pytest.mark.parametrize("name", ["physion-cache", "physion-scratch", "physion-pulls"])
def test_folders_of_our_name_that_are_not_ours(world, s3, name):
    data = world.plant(world.root / "data", f"{name}/canary", f"{name}/{'a' * 32}/canary")
    (data / name).chmod(0o700)
    world.ours += [data / f"physion-{other}" for other in ("cache", "scratch", "pulls") if f"physion-{other}" != name]
    local = LocalStore(world.place("store"))
    publish_weights(local, "good", "train-dvae", {"weights": file_in(local, b"weights")}, {}, {"parameters": 1}, {})
    remote = S3Store(
        "tests", f"hostile-{name}", scratch=data / "physion-scratch", cache=ShardCache(data / "physion-cache", 10**9)
    )

    def use():
        copy_weights(find_weights(local, "good"), remote, data / "physion-pulls")
        artifact = find_weights(remote, "good")
        artifact.path(artifact.names()[0])

    with pytest.raises(ConfigError, match=rf"{name} holds files and was not made by physion"):
        use()


@pytest.mark.parametrize("link", [".staging", ".staging.lock", "pretrained/w", "artifacts/frames/" + "c" * 20, "files"])
def test_a_store_with_symbolic_links(physion, world, store, link):
    victim = world.plant(world.root / "victim", "manifest.json", "mine/canary", "a" * 32 + "/canary")
    target = victim / "canary" if link.endswith(".lock") else victim
    path = store.root / link
    if path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    for command in (
        ["store", "put", world.root / "canary", f"{'files' if link == 'files' else 'other'}/x"],
        ["weights", "remove", "w"],
        ["store", "gc", "--delete", "--days", "0"],
    ):
        physion(*command, "-s", store.root)
    for key in (f"{link}/manifest.json", f"{link}/new"):
        for use in (store.delete, lambda key: store.write(key, b"x"), lambda key: store.upload(key, world.root / "canary")):
            with pytest.raises(ConfigError, match="symbolic link"):
                use(key)


def test_files_of_others_beside_named_weights_stay(physion, world, store):
    target = world.place("target")
    for _ in range(2):
        assert physion("weights", "push", "pretrained/good", "--to", target, "-s", store.root).code == 0
        (target / "pretrained/good/LICENSE").write_text("MIT")
    names = {path.name.partition("-")[0] for path in (target / "pretrained/good").iterdir()}
    assert names == {"LICENSE", "README.md", "config.json", "manifest.json", "weights"}
    (target / "pretrained/good/manifest.json").unlink()  # and published anew
    assert physion("weights", "push", "pretrained/good", "--to", target, "-s", store.root).code == 0
    assert (target / "pretrained/good/LICENSE").read_text() == "MIT"
    assert not (target / "pretrained/good/parts").exists()


def test_pulls_into_a_symbolic_link(physion, world, store):
    victim = world.plant(world.root / "victim")
    pulls = Path(os.environ["PHYSION_CACHE"]) / "physion-pulls"
    content = find_weights(store, "good").manifest.content
    physion("weights", "pull", "good", "--from", store.root, "-s", world.place("one"))
    (pulls / content).symlink_to(victim)
    ended = physion("weights", "pull", "good", "--from", store.root, "-s", world.place("two"))
    assert (ended.code, "is a symbolic link" in ended.err) == (2, True)


# ------------------------------------------------------------------- 6. nothing is removed that is needed, or published false
def test_gc_spares_the_checkpoint_of_a_study_in_flight(physion, store):
    """Its training was stopped a month ago; the study was started again today, and makes an earlier stage just now."""
    checkpoint = f"artifacts/train-steve/{'b' * 20}/checkpoints/000001-00000100-{'0' * 16}.safetensors"
    store.write(checkpoint, b"precious")
    os.utime(store.root / checkpoint, (OLD, OLD))
    ArtifactWriter(store, "tokenize", "a" * 20).begin({"train-steve": "b" * 20}, {})
    assert physion("store", "gc", "--delete", "-s", store.root).code == 0
    assert store.read(checkpoint) == b"precious"


def test_gc_spares_what_was_begun_again_since_the_survey(store):
    writer = ArtifactWriter(store, "tokenize", "a" * 20)
    writer.begin({}, {})
    os.utime(store.root / writer.prefix / "study.json", (OLD, OLD))
    (verdict,) = (each for each in judge(store, survey(store), None, 7.0) if each.remove)
    ArtifactWriter(store, "tokenize", "a" * 20).begin({}, {})
    assert not remove(store, verdict, 7.0)
    assert writer.begun() is not None


def test_what_was_erased_and_made_again_by_another_is_not_published(store):
    """Between a part's making and the manifest; the other's files have the same names and other bytes."""
    writer, other = (ArtifactWriter(store, "frames", "a" * 20) for _ in range(2))
    part = writer.add_part("0", {"a.txt": file_in(store, b"mine")})
    other.erase()
    other.add_part("0", {"a.txt": file_in(store, b"theirs")})
    with pytest.raises(TransientError, match="part 0 was removed by another command"):
        writer.publish(manifest(part.files, fingerprint="a" * 20))
    assert read_manifest(store, "frames", "a" * 20) is None


@pytest.mark.parametrize("moment", ["before the manifest", "after it"])
def test_an_erase_while_another_publishes(world, moment):
    """The one who erases has deleted the old manifest already."""

    class Slow(LocalStore):
        def write(self, key, data, *, if_absent=False):
            if moment == "before the manifest" and key.endswith("manifest.json"):
                ArtifactWriter(LocalStore(self.root), "frames", FINGERPRINT).erase()
            wrote = super().write(key, data, if_absent=if_absent)
            if moment == "after it" and key.endswith("manifest.json"):
                ArtifactWriter(LocalStore(self.root), "frames", FINGERPRINT).erase()
            return wrote

    store = Slow(world.place("store"))
    with pytest.raises(TransientError, match="was removed by another command"):
        publish(store, a=b"alpha")
    assert store.list("artifacts") == []


# ----------------------------------------------------------------- 7., 8., 9. side by side, and disks that are shared
def test_three_pulls_at_once(world, store, tmp_path):
    data = os.urandom(20_000_000)
    publish_weights(store, "large", "train-dvae", {"weights": file_in(store, data)}, {}, {"parameters": 1}, {})
    here = world.place("here")
    command = [sys.executable, "-m", "physion.cli", "weights", "pull", "large", "--from", str(store.root), "-s"]
    pulls = [subprocess.Popen([*command, str(target)], stderr=subprocess.PIPE) for target in (here, here, world.place("there"))]
    for pull in pulls:
        _, said = pull.communicate()
        assert pull.returncode == 0, said
    for root in (here, here.parents[1] / "around-there/there"):
        artifact = find_weights(LocalStore(root), "large")
        assert artifact.path(artifact.names()[0]).read_bytes() == data
    assert not list((Path(os.environ["PHYSION_CACHE"]) / "physion-pulls").iterdir())


def test_pulls_at_once_in_threads(world, store):
    source, targets = find_weights(store, "good"), [LocalStore(world.place(f"here{number % 3}")) for number in range(12)]
    pulls = world.place("pulls")
    with ThreadPoolExecutor(12) as pool:
        assert {m.fingerprint for m in pool.map(lambda target: copy_weights(source, target, pulls), targets)} == {
            source.manifest.fingerprint
        }


def test_a_pull_on_a_disk_that_keeps_what_is_open(world, store, monkeypatch):
    """As NFS does with the lock of the pull: its folder is not empty until that is closed."""
    source, here, pulls = find_weights(store, "good"), LocalStore(world.place("here")), world.place("pulls")
    rmdir = os.rmdir

    def refused(path, **options):
        if str(path).endswith(source.manifest.content):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        rmdir(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refused)
        assert copy_weights(source, here, pulls).files == source.manifest.files
    assert list(pulls.iterdir())
    assert copy_weights(source, LocalStore(world.place("there")), pulls).files == source.manifest.files
    assert not list(pulls.iterdir())


def test_a_boot_is_no_reason_to_hash_again(world):
    """Two machines that share a home directory take turns; each has a boot of its own."""
    program = (
        "import sys, hashlib\nfrom pathlib import Path\nfrom physion.store import cache\n"
        "from physion.store.checksums import sha256_of\n"
        "hashed = []\ncache.sha256_of = lambda path: hashed.append(path) or sha256_of(path)\n"
        "def download(path):\n    path.write_bytes(b'alpha')\n    return True\n"
        "cache.ShardCache(Path(sys.argv[1]), 10**9).get(hashlib.sha256(b'alpha').hexdigest(), 5, download)\n"
        "print(len(hashed))\n"
    )
    root, boot = world.place("mine"), world.root.parent / "boot"
    here = [sys.executable, "-c", program, str(root)]
    subprocess.run(here, check=True)
    boot.write_text("00000000-0000-0000-0000-000000000000\n")
    there = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"', str(boot), *here]
    if subprocess.run([*there[:-4], "true"], capture_output=True).returncode:
        pytest.skip("another boot of this machine needs root")
    for command in (there, here):
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "0\n"


# ------------------------------------------------------------------------------------------ 15. a store that is none
@pytest.mark.parametrize("uri", ["", " "])
def test_an_empty_store_is_not_the_current_folder(physion, world, monkeypatch, uri):
    monkeypatch.chdir(world.root)
    for command in (["store", "ls"], ["store", "create"], ["plan", "-p", "smoke"], ["doctor"], ["run", "-p", "smoke"]):
        ended = physion(*command, "--store", uri)
        assert (ended.code, "--store is empty" in ended.err) == (2, True)
    monkeypatch.setenv("PHYSION_STORE", uri)
    ended = physion("store", "create")
    assert ended.code == 2


@pytest.mark.parametrize(
    "command", [["--cache", "", "store", "ls"], ["store", "serve", " "], ["store", "get", "pretrained/good", ""]], ids=" ".join
)
def test_an_empty_folder_is_not_the_current_one(physion, world, store, monkeypatch, command):
    monkeypatch.chdir(world.root)
    monkeypatch.setenv("PHYSION_STORE", str(store.root))
    before = sorted(world.root.rglob("*"))
    ended = physion(*command)
    assert (ended.code, "error: an empty path was given for a folder" in ended.err) == (2, True)
    assert sorted(world.root.rglob("*")) == before


def test_an_empty_store_to_share_in_is_not_the_store_itself(physion, world, store):
    ended = physion("weights", "push", "pretrained/good", "--to", "", "-s", store.root)
    assert (ended.code, "--store is empty" in ended.err) == (2, True)


# ----------------------------------------------------------------------------- 18. disks without hard links or locks
def on_a_disk_without(calls, error, *arguments):
    command = [sys.executable, str(Path(__file__).with_name("world.py")), calls, str(error), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_disk_without_hard_links(world, store, preset):
    root = world.place("odd")
    for error in (errno.EPERM, errno.EOPNOTSUPP):
        ended = on_a_disk_without("link", error, "weights", "pull", "good", "--from", store.root, "-s", root)
        assert ended.returncode == 0, ended.stderr
        ended = on_a_disk_without("link", error, "store", "put", world.root / "canary", "files/x", "-s", root)
        assert ended.returncode == (0 if error == errno.EPERM else 2)  # it is there by then
        assert "is there already" in ended.stderr or ended.returncode == 0
    ended = on_a_disk_without("link", errno.EPERM, "doctor", "-s", root)
    assert "no hard links" in " ".join(ended.stdout.split())


def test_a_disk_without_locks(world, store):
    root = world.place("odd")
    for error in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        ended = on_a_disk_without("flock", error, "store", "put", world.root / "canary", f"files/{error}", "-s", root)
        assert ended.returncode == 0, ended.stderr
    ended = on_a_disk_without("flock", errno.ENOLCK, "weights", "pull", "good", "--from", store.root, "-s", root)
    assert ended.returncode == 2
    assert "does not support file locks (flock: No locks available)" in ended.stderr
    ended = on_a_disk_without("flock", errno.ENOLCK, "doctor", "-s", root)
    assert "no file locks" in " ".join(ended.stdout.split())


def test_a_disk_with_neither(world):
    root = world.place("odd")
    ended = on_a_disk_without("link,flock", errno.EOPNOTSUPP, "store", "put", world.root / "canary", "files/x", "-s", root)
    assert ended.returncode == 2
    assert "file locks" in ended.stderr
