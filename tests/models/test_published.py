"""Published .pth files: brought in and given back unchanged, or refused in one line that says why."""

import json
import os

import pytest
import torch

from physion.store.local import LocalStore
from physion.store.pretrained import find_weights, role_of

KINDS = ("dvae", "steve", "slotformer", "readout")


@pytest.fixture
def published(goldens, tmp_path):
    """Writes the published checkpoint of a model, changed, and says where."""

    def write(name, change=lambda state: state, wrap=lambda state: {"state_dict": state}, **options):
        path = tmp_path / f"{name}.pth"
        torch.save(wrap(change(goldens.checkpoint(name))), path, **options)
        return path

    return write


def nothing_published(root):
    return LocalStore(root).list("pretrained") == []


@pytest.mark.parametrize("name", KINDS)
def test_import_export_import_is_the_identity(physion, published, goldens, name, tmp_path):
    store, back = tmp_path / "store", tmp_path / "back.pth"
    assert physion("weights", "import", published(name), "--as", name, "-s", store, "--name", "one").code == 0
    exported = physion("weights", "export", "pretrained/one", back, "-s", store)
    assert exported.code == 0, exported.err
    state, original = torch.load(back, weights_only=True)["state_dict"], goldens.checkpoint(name)
    assert list(state) == list(goldens.keys[name])
    assert all(torch.equal(value, original[key]) and value.dtype == original[key].dtype for key, value in state.items())
    assert physion("weights", "import", back, "--as", name, "-s", store, "--name", "two").code == 0
    one, two = (find_weights(LocalStore(store), reference).manifest for reference in ("one", "two"))
    assert one.files == two.files
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        (lambda state: state, {}),
        (lambda state: {"state_dict": state, "optimizer": {"state": {0: torch.ones(2)}, "lr": 1e-3}, "epoch": 20}, {}),
        (lambda state: state, {"_use_new_zipfile_serialization": False}),
        (lambda state: {"model": state, "optimizer": {}}, {}),
        (lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}}, {}),
        (lambda state: {"model": {"state_dict": {f"module.{key}": value for key, value in state.items()}}}, {}),
    ],
)
def test_bare_and_wrapped_state_dicts(physion, published, goldens, wrap, options, tmp_path):
    path = published("readout", wrap=wrap, **options)
    assert physion("weights", "import", path, "--as", "readout", "-s", tmp_path / "store").code == 0
    artifact = find_weights(LocalStore(tmp_path / "store"), "readout-readout")
    assert artifact.manifest.origin["file"] == "readout.pth"
    assert len(artifact.manifest.origin["sha256"]) == 64
    plain = published("readout")
    assert physion("weights", "import", plain, "--as", "readout", "-s", tmp_path / "store", "--name", "plain").code == 0
    assert find_weights(LocalStore(tmp_path / "store"), "plain").manifest.files == artifact.manifest.files


def circle():
    """A dict that holds itself."""
    tree = {}
    tree["model"] = tree
    return tree


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (
            lambda state: {"net": state, "epoch": 3, "a\x1b\nb": 1},
            "bare or under state_dict or model; found: net (dict), epoch (int), a\ufffd\ufffdb (int)",
        ),
        (lambda state: list(state.values()), "found: list"),
        (lambda state: {}, "found: nothing"),
        (lambda state: circle(), "found: model (dict)"),
        (lambda state: {"model": {"weights": state}}, "found: model (dict)"),
        (
            lambda state: {f"backbone.{key}": value for key, value in state.items()},
            "its 5 keys, such as backbone.comb_idx, backbone.linear1.weight, backbone",
        ),
    ],
)
def test_what_a_file_holds_instead_is_said(physion, published, wrap, found, tmp_path):
    ended = physion("weights", "import", published("readout", wrap=wrap), "--as", "readout", "-s", tmp_path / "store")
    assert (ended.code, ended.err.count("\n")) == (3, 1)
    assert found in ended.err
    assert nothing_published(tmp_path / "store")


@pytest.mark.parametrize("name", ["steve", "slotformer"])
def test_the_dvae_inside_another_checkpoint(physion, published, name, tmp_path, goldens):
    store = tmp_path / "store"
    assert physion("weights", "import", published(name), "--as", "dvae", "-s", store, "--name", "inner").code == 0
    assert physion("weights", "import", published(name), "--as", name, "-s", store, "--name", "outer").code == 0
    inner, outer = (find_weights(LocalStore(store), reference) for reference in ("inner", "outer"))
    assert inner.manifest.stage == "train-dvae"
    assert inner.manifest.metrics["digests"]["dvae"] == outer.manifest.metrics["digests"]["dvae"]
    assert role_of(outer, "frozen") is not None


def test_a_steve_without_its_dvae(physion, published, tmp_path):
    bare = published("steve", lambda state: {key: value for key, value in state.items() if not key.startswith("dvae.")})
    assert physion("weights", "import", bare, "--as", "steve", "-s", tmp_path / "store", "--name", "bare").code == 0
    assert role_of(find_weights(LocalStore(tmp_path / "store"), "bare"), "frozen") is None


@pytest.mark.parametrize(
    ("name", "kind", "change", "message"),
    [
        ("slotformer", "steve", lambda s: s, "holds a slotformer model, not steve: import it --as slotformer"),
        ("readout", "dvae", lambda s: s, "holds a readout model, not dvae: import it --as readout"),
        ("readout", "readout", lambda s: {"x": torch.ones(1)}, "matches no known model"),
        ("dvae", "dvae", lambda s: {k: v for k, v in s.items() if k != "decoder.0.bias"}, "missing: decoder.0.bias"),
        ("dvae", "dvae", lambda s: s | {"decoder.99.bias": torch.ones(1)}, "extra: decoder.99.bias"),
        (
            "dvae",
            "dvae",
            lambda s: s | {"encoder.0.bias": torch.ones(32)},
            "mismatched: encoder.0.bias [32] instead of [64]",
        ),
        ("steve", "steve", lambda s: s | {"dvae.encoder.0.bias": torch.ones(3)}, "mismatched: dvae.encoder.0.bias [3] instead"),
        ("readout", "readout", lambda s: s | {"comb_idx": s["comb_idx"].flip(0)}, "the stored constant comb_idx is not what"),
        ("readout", "readout", lambda s: s | {"linear2.bias": torch.tensor([float("nan")])}, "not finite"),
    ],
)
def test_a_checkpoint_that_does_not_fit(physion, published, name, kind, change, message, tmp_path):
    ended = physion("weights", "import", published(name, change), "--as", kind, "-s", tmp_path / "store")
    assert ended.code == 3
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert nothing_published(tmp_path / "store")


def test_other_sizes_come_from_the_configuration(physion, published, tmp_path):
    ended = physion("weights", "import", published("dvae"), "--as", "dvae", "-s", tmp_path / "store", "-p", "tiny")
    assert ended.code == 3
    assert "does not fit the configured dvae model: mismatched:" in ended.err


class RunsACommand:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_malicious_pickle_is_refused_and_does_not_run(physion, published, options, tmp_path):
    mark = tmp_path / "ran"
    path = published("readout", wrap=lambda state: {"state_dict": state, "note": RunsACommand(mark)}, **options)
    ended = physion("weights", "import", path, "--as", "readout", "-s", tmp_path / "store")
    assert ended.code == 3
    assert "is refused: it asks for posix.system" in ended.err
    assert not mark.exists()
    assert nothing_published(tmp_path / "store")
    torch.load(path, weights_only=False)  # the file would have run it
    assert mark.exists()


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_damaged_files(physion, published, options, tmp_path):
    path = published("readout", **options)
    whole = path.read_bytes()
    broken = [whole[: len(whole) // 2], whole[:-20], whole[:10], b"", b"no checkpoint at all\n" * 50]
    if not options:
        broken.append(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    for damaged in broken:
        path.write_bytes(damaged)
        ended = physion("weights", "import", path, "--as", "readout", "-s", tmp_path / "store")
        assert ended.code == 3
        assert "is truncated or not a .pth file" in ended.err or "is damaged" in ended.err
        assert ended.err.count("\n") == 1
        assert nothing_published(tmp_path / "store")


def test_files_that_are_not_there(physion, published, tmp_path):
    ended = physion("weights", "import", tmp_path / "none.pth", "--as", "dvae", "-s", tmp_path / "store")
    assert (ended.code, "no file at" in ended.err) == (3, True)
    ended = physion("weights", "import", published("readout"), "--as", "dave", "-s", tmp_path / "store")
    assert (ended.code, "unknown model 'dave', did you mean 'dvae'?" in ended.err) == (2, True)
    store = tmp_path / "store"
    assert physion("weights", "import", published("readout"), "--as", "readout", "-s", store, "--name", "r").code == 0
    ended = physion("weights", "export", "pretrained/r", tmp_path / "no" / "folder.pth", "-s", store)
    assert (ended.code, "cannot be written" in ended.err) == (2, True)
    ended = physion("weights", "export", "pretrained/r", published("readout"), "-s", store)
    assert (ended.code, "exists; choose another name" in ended.err) == (2, True)
    ended = physion("weights", "export", "pretrained/rr", tmp_path / "r.pth", "-s", store)
    assert (ended.code, "no weights 'rr'" in ended.err) == (2, True)


def test_names(physion, published, tmp_path):
    store = tmp_path / "store"
    arguments = ("--as", "readout", "-s", store, "--name")
    for name in ("../up", "a/b", "", ".hidden", "a..b"):
        assert physion("weights", "import", published("readout"), *arguments, name).code == 2
    path = published("readout")
    assert physion("weights", "import", path, *arguments, "mine").code == 0
    assert physion("weights", "import", path, *arguments, "mine").code == 0  # the same weights again
    ended = physion(
        "weights", "import", published("readout", lambda s: s | {"linear2.bias": torch.ones(1)}), *arguments, "mine"
    )
    assert ended.code == 2
    assert "holds other weights" in ended.err
    listed = json.loads(physion("weights", "list", "-s", store, "--json").out)["result"]
    assert [weights["instance"] for weights in listed] == ["mine"]
    assert physion("weights", "remove", "mine", "-s", store).code == 0
    assert nothing_published(store)
    assert physion("weights", "remove", "mine", "-s", store).code == 2
