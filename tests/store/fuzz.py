"""Damaged and hostile records for everything that reads one: `python tests/store/fuzz.py 10000` tries so many on each reader.

An input is a good record with some of it changed, as text, as JSON or as bytes. A reader takes it, or refuses it with a
PhysionError; what it takes leads to no path outside of the store.
"""

import contextlib
import copy
import hashlib
import io
import json
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from physion.config.load import load_config, preset_text
from physion.config.schema import Fetch
from physion.data.layout import GLITCHY, LABELS, Video, read_subset, write_labels
from physion.data.shards import FrameShards, encode_frames, index_bytes, index_item, write_shard
from physion.errors import PhysionError
from physion.job import Job
from physion.models.published import load_copies, read_published
from physion.models.weights import build_model, load_model, save_weights
from physion.pipeline.studies import apart
from physion.stages import fetch
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest, json_of, read_manifest
from physion.store.card import card
from physion.store.keys import safe_key
from physion.store.local import LocalStore
from physion.store.pretrained import find_weights, list_weights
from physion.store.survey import judge, survey
from physion.training.checkpoints import Checkpoints, History, State, read_state

PAGE = "f" * 20
PACKED = ["zip", "", "gz", "xz"]
GOOD = [(f"x/Drop/mp4s-redyellow/pilot_{name}-redyellow_0000_img.mp4", b"video", None) for name in "ab"]
GOOD += [("x/labels.csv", write_labels([("pilot_a_0000_img", True), ("pilot_b_0000_img", False)]), None)]
STRINGS = ["", ".", "..", "../../evil", "/etc/passwd", "a//b", "\x1b]0;x\x07", "a\nb", "\x00", "[/x]", "[bold]", "x" * 300, "é"]
STRINGS += ["\u202e", "\ud800", "0" * 64, "2026-01-01", "2026-01-01T00:00:00", "9999-12-31T23:59:59+00:00", "nan", "None", "{}"]
STRINGS += ["*a", "!!python/name:os.system", "!!int", "!!timestamp a", "2026-99-99", "0x_", "9" * 5000]
SCALARS = st.one_of(
    st.sampled_from(STRINGS),
    st.text(max_size=20),
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-5, 0, 2**31, 2**53, 2**63, 2**80, 10**400, float("nan"), float("inf"), -0.5, 1e308]),
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(STRINGS), below, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_tree(draw, tree):
    """A JSON tree with one to three places changed, removed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        at, key = tree, None
        while isinstance(at, dict | list) and at and (key is None or draw(st.integers(0, 3))):
            above, key = at, draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
            at = above[key]
        if key is None:
            return draw(VALUES)
        how = draw(st.sampled_from(["set", "set", "set", "remove", "add"]))
        if how == "set":
            above[key] = draw(VALUES)
        elif how == "remove":
            del above[key]
        elif isinstance(above, dict):
            above[draw(st.sampled_from(STRINGS) | st.text(max_size=9))] = draw(VALUES)
        else:
            above.insert(key, draw(VALUES))
    return tree


@st.composite
def changed_bytes(draw, data):
    """Bytes with some cut off, flipped, doubled or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        data[start:end] = draw(
            st.sampled_from([b"", data[start:end] * 2, b"\xff" * 8, b"\x00" * 8, b"[" * 3000]) | st.binary(max_size=12)
        )
    return bytes(data)


def changed_json(tree):
    trees = changed_tree(tree).map(lambda tree: json.dumps(tree).encode("utf-8", "surrogatepass"))
    return trees | changed_bytes(json.dumps(tree).encode())


def with_header(data, header):
    """A safetensors file with another header."""
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = int.from_bytes(data[:8], "little")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def changed_safetensors(data):
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])

    def change_metadata(facts):
        return with_header(data, header | {"__metadata__": {"physion": json.dumps(facts)}})

    kinds = [changed_bytes(data), changed_tree(header).map(lambda changed: with_header(data, changed))]
    if "__metadata__" in header:
        kinds.append(changed_tree(json.loads(header["__metadata__"]["physion"])).map(change_metadata))
    return st.one_of(kinds)


class Readers:
    """By name: the inputs, and what reads one."""

    def __init__(self, root):
        self.root, self.store = root, LocalStore(root / "store")
        self.writer = ArtifactWriter(self.store, "frames", PAGE)
        self.prefix = self.store.root / self.writer.prefix
        self.prefix.mkdir(parents=True)
        self.known = {
            "manifest": (changed_json(self._manifest()), self.manifest),
            "weights manifest": (changed_json(self._weights_manifest()), self.weights_manifest),
            "part": (changed_json({"files": [self._record()], "items": [{"a": 1}], "seconds": 1.0}), self.part),
            "study": (changed_json({"study": {"frames": PAGE}, "inputs": {"dataset": "0" * 64}}), self.study),
            "names": (st.lists(self._names(), max_size=4), self.names),
            "checkpoint": (changed_safetensors(self._checkpoint()), self.checkpoint),
            "weights": (changed_safetensors(self._weights()), self.weights),
            "published": (changed_bytes(self._published()), self.published),
            "index": (changed_json(json.loads(self._index())), self.index),
            "shard": (changed_safetensors(self._shard()), self.shard),
            "labels": (changed_bytes(self._labels()) | self._tables(), self.labels),
            "glitchy list": (changed_bytes(b"pilot_a_0000\r\npilot_b\n"), self.glitchy),
            "archive": (self._archives(), self.archive),
            "damaged archive": (
                st.sampled_from(PACKED).flatmap(lambda how: changed_bytes(self._packed(how, GOOD))),
                self.archive,
            ),
            "preset": (self._presets(), self.preset),
            "overrides": (st.lists(self._overrides(), min_size=1, max_size=3), self.overrides),
        }

    # ------------------------------------------------------------------------------------------------------ records
    def _record(self, name="a.txt", data=b"alpha"):
        return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _manifest(self, **facts):
        known = {
            "format": 2,
            "stage": "frames",
            "instance": "frames-test",
            "fingerprint": PAGE,
            "config": {"a": 1},
            "code": "1",
        }
        known |= {
            "created": "2026-01-01T00:00:00+00:00",
            "seconds": 1.0,
            "files": [self._record()],
            "metrics": {"parameters": 3},
        }
        known |= {"inputs": {"dataset": {"instance": "fetch-test", "fingerprint": PAGE, "content": "0" * 64}}}
        known |= {"identity": {"params": {"subset": "test"}, "config": {"a": 1}, "inputs": {"dataset": PAGE}}, "host": {}}
        return known | {"origin": {"file": "a", "metrics": {"steps": 2}}} | facts

    def _weights_manifest(self):
        sha256 = hashlib.sha256(b"alpha").hexdigest()
        return self._manifest(instance="w", files=[self._record(f"weights-{sha256[:16]}.safetensors")])

    def manifest(self, data):
        (self.prefix / "manifest.json").write_bytes(data)
        (self.prefix / "a.txt").write_bytes(b"alpha")  # what the unchanged manifest names
        for found in survey(self.store):
            assert (found.manifest is None) == (found.problem is not None)
        judge(self.store, survey(self.store), {PAGE}, 7.0)
        manifest = read_manifest(self.store, "frames", PAGE)
        self.check(manifest)
        assert manifest.content
        assert len(apart([manifest, Manifest(**self._manifest())])) == 2
        assert dict(manifest.params) is not None
        artifact = Artifact(self.store, manifest)
        for name in artifact.names():
            artifact.path(name)

    def weights_manifest(self, data):
        place = self.store.root / "pretrained" / "w" / "manifest.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        found, problems = list_weights(self.store)
        assert len(found) + len(problems) == 1
        manifest = find_weights(self.store, "w").manifest
        self.check(manifest)
        assert f"{manifest.metrics['parameters']:,} {manifest.created[:10]} {manifest.origin.get('file')}"
        assert manifest.instance in card(manifest)

    def check(self, record):
        for each in record.files:
            assert (self.prefix / safe_key(each.name)).resolve().is_relative_to(self.prefix)
            assert 0 <= each.size <= 2**50
            assert len(each.sha256) == 64

    def part(self, data):
        (self.prefix / "parts").mkdir(exist_ok=True)
        (self.prefix / "parts" / "0.json").write_bytes(data)
        for part in ArtifactWriter(self.store, "frames", PAGE).parts().values():
            self.check(part)
            assert part.seconds >= 0

    def study(self, data):
        (self.prefix / "study.json").write_bytes(data)
        begun = ArtifactWriter(self.store, "frames", PAGE).begun()
        assert all(isinstance(fingerprint, str) for fingerprint in begun.study.values())

    # ---------------------------------------------------------------------------------------------- names that are none
    def _names(self):
        good = ["checkpoints/000001-00000003-0000000000000000.safetensors", "owners/000007.json", "live/x.png", ".nfs01"]
        good += ["live/00000000-00000003.jsonl", "parts/0.json", "manifest.json", "checkpoints/a-b-c"]
        names = st.text("0123456789abcdef-._/\x1b", min_size=1, max_size=30)
        return st.tuples(st.sampled_from(["checkpoints", "owners", "live", "parts", "..", "a"]), names).map(
            "/".join
        ) | st.sampled_from(good)

    def names(self, names):
        from physion.training.watching import forget_after

        writer = ArtifactWriter(self.store, "train", PAGE)
        for name in names:
            path = self.store.root / writer.prefix / name
            if path.resolve().is_relative_to(self.store.root / writer.prefix):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"{}")
                except OSError:
                    continue
        try:
            survey(self.store)
            forget_after(writer, 2)
            with Checkpoints(writer) as checkpoints:
                assert checkpoints.take_over().step == 0
                assert checkpoints.owned()
        finally:
            writer.erase()

    # ------------------------------------------------------------------------------------------------------------ tensors
    def _checkpoint(self):
        model = torch.nn.Linear(2, 3)
        adam, scaler = torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu")
        model(torch.ones(1, 2)).sum().backward()
        adam.step()
        history = History([{"step": step, "lr": 0.1, "heldout_loss": 1.0} for step in (0, 2)])
        state = State.of(3, history, model, adam, scaler)
        facts = json.dumps({"step": 3, "history": vars(state.history), "scaler": state.scaler})
        save_file(state.tensors, self.root / "checkpoint", {"physion": facts})
        return (self.root / "checkpoint").read_bytes()

    def checkpoint(self, data):
        (self.root / "checkpoint").write_bytes(data)
        state = read_state(self.root / "checkpoint")
        model = torch.nn.Linear(2, 3)
        adam = torch.optim.Adam(model.parameters())
        state.load(model, adam, torch.amp.GradScaler("cpu"))
        assert state.history.best_step is None or state.history.rows
        model(torch.ones(1, 2)).sum().backward()
        adam.step()

    def _weights(self):
        sizes = {"slots": 3, "slot_size": 16}
        save_weights(self.root / "weights", build_model("readout", sizes), "readout", sizes)
        return (self.root / "weights").read_bytes()

    def weights(self, data):
        (self.root / "weights").write_bytes(data)
        for read in (load_model, load_copies):
            try:
                read(self.root / "weights")
            except PhysionError:
                continue

    def _published(self):
        torch.save({"state_dict": {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(2)}}, self.root / "published.pth")
        return (self.root / "published.pth").read_bytes()

    def published(self, data):
        (self.root / "published.pth").write_bytes(data)
        assert sum(value.nbytes for value in read_published(self.root / "published.pth").values()) <= 16 * len(data)

    # ------------------------------------------------------------------------------------------------------------ shards
    def _index(self):
        videos = [Video(f"v{number}", f"v{number}.mp4", "Drop", None, False) for number in range(2)]
        return index_bytes([index_item(video, "0.safetensors") for video in videos])

    def _shard(self):
        frames = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
        arrays = {f"v{number}/{kind}": array for number in range(2) for kind, array in encode_frames(frames, 90).items()}
        write_shard(self.root / "shard", arrays, arrays.items())
        return (self.root / "shard").read_bytes()

    def _read_shards(self, index, shard):
        files = []
        for name, data in {"index.json": index, "0.safetensors": shard}.items():
            (self.prefix / name).write_bytes(data)
            files.append(self._record(name, data))
        shards = FrameShards(Artifact(self.store, Manifest(**self._manifest(files=files))))
        for video in shards.videos:
            for use in (
                lambda v: shards.images(v, 0, 2),
                lambda v: shards.images(v, 1, 5),
                lambda v: shards.read(v, "offsets"),
            ):
                try:
                    use(video.name)
                except PhysionError:
                    continue
        return shards

    def index(self, data):
        self._read_shards(data, self._shard())

    def shard(self, data):
        shards = self._read_shards(self._index(), data)
        assert shards.video_frames >= -1

    # ----------------------------------------------------------------------------------------------- datasets of others
    def _labels(self):
        return write_labels([("pilot_a_0000_img", True), ("pilot_b_0000_img", False)])

    def _tables(self):
        cells = st.sampled_from(["", "pilot_a_0000_img", "True", "False", "ground truth outcome", '"', ",", *STRINGS])
        rows = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=5)
        return rows.map(lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass"))

    def _read(self, **texts):
        """The test videos that there are, with these texts in the place of good ones."""
        known = {LABELS["test"]: texts.get("labels", self._labels()), GLITCHY: texts.get("glitchy", b"pilot_c\n")}
        videos = [f"PhysionTestMP4s/Drop/mp4s-redyellow/pilot_{name}-redyellow_0000_img.mp4" for name in "ab"]
        read = read_subset("test", [*videos, *known], known.__getitem__)
        assert {video.path for video in read} <= set(videos)
        assert all(video.label in (True, False) for video in read)

    def labels(self, data):
        self._read(labels=data)

    def glitchy(self, data):
        self._read(glitchy=data)

    def _archives(self):
        """Of members with good and bad names, and of links from some to others."""
        parts = st.sampled_from(
            [*STRINGS, "Drop", "mp4s-redyellow", "a.mp4", "labels.csv", "glitchy_stimuli.txt", "..", "n" * 252 + ".mp4"]
        )
        videos = st.tuples(parts, parts).map(lambda pair: f"{pair[0]}/Drop/mp4s-redyellow/{pair[1]}")
        names = videos | st.lists(parts, min_size=1, max_size=4).map("/".join) | st.sampled_from([name for name, _, _ in GOOD])
        links = st.none() | st.none() | st.tuples(st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE]), names)
        more = st.tuples(names, st.sampled_from([b"", b"x", self._labels()]), links)
        return st.tuples(st.sampled_from(PACKED), st.lists(more, max_size=4)).map(
            lambda given: self._packed(given[0], [*GOOD, *given[1]])
        )

    def _packed(self, how, members):
        packed = io.BytesIO()
        with warnings.catch_warnings(action="ignore"), contextlib.suppress(ValueError):  # of names that no writer writes
            if how == "zip":
                with zipfile.ZipFile(packed, "w") as file:
                    for name, data, _ in members:
                        file.writestr(name.encode("utf-8", "replace").decode().partition("\0")[0] or "x", data)
                return packed.getvalue()
            with tarfile.open(fileobj=packed, mode=f"w:{how}") as file:
                for name, data, link in members:
                    entry = tarfile.TarInfo(name)
                    entry.size = 0 if link else len(data)
                    entry.type, entry.linkname = link or (tarfile.REGTYPE, "")
                    file.addfile(entry, io.BytesIO(data))
        return packed.getvalue()

    def archive(self, data):
        (self.root / "source.archive").write_bytes(data)
        writer = ArtifactWriter(self.store, "fetch", PAGE)
        try:
            config = Fetch(archives={"test": [str(self.root / "source.archive")]})
            metrics = fetch.run(Job("fetch-test", config, {}, writer, {"subset": "test"}))
            assert metrics["videos"] >= 1
            for part in writer.kept.values():
                self.check(part)
            json_of(json.dumps(metrics).encode())  # it can be read again
        finally:
            writer.erase()
            writer.close()

    # ----------------------------------------------------------------------------------------------------- configuration
    def _presets(self):
        text = preset_text("tiny")
        trees = changed_tree(yaml.safe_load(text)).map(
            lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")
        )
        return trees | changed_bytes(text.encode())

    def preset(self, data):
        (self.root / "preset.yaml").write_bytes(data)
        load_config(str(self.root / "preset.yaml"))

    def _overrides(self):
        keys = [
            "train-steve.optim.lr",
            "frames.image-size",
            "train-dvae",
            "dataset",
            "plugins",
            "x",
            "",
            ".",
            "simulate.videos.test",
        ]
        bad = st.tuples(
            st.sampled_from(keys) | st.text(max_size=9), st.sampled_from(["=", "", "=="]), VALUES.map(repr) | st.text()
        )
        return bad.map("".join) | st.sampled_from(["train-steve.optim.lr=2e-4", "frames.heldout=0.2"])

    def overrides(self, overrides):
        load_config("tiny", overrides)


NAMES = ["manifest", "weights manifest", "part", "study", "names", "checkpoint", "weights", "published", "index", "shard"]
NAMES += ["labels", "glitchy list", "archive", "damaged archive", "preset", "overrides"]


def fuzz(readers, name, examples, **options):
    """Try so many inputs; returns how many of them were taken."""
    inputs, read = readers.known[name]
    taken: list[int] = []
    said: list[str] = []

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
    @given(inputs)
    def attempt(data):
        try:
            read(data)
            taken.append(1)
        except PhysionError as error:
            said.append(str(error))

    attempt()
    assert all(said)
    return len(taken)


if __name__ == "__main__":
    for name in sys.argv[2:] or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            taken = fuzz(Readers(Path(folder)), name, int(sys.argv[1]), phases=[Phase.generate, Phase.shrink])
            print(f"{name}: {sys.argv[1]} inputs, {taken} taken, {time.monotonic() - started:.0f} s", flush=True)
