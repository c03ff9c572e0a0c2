import hashlib
import json

import pytest

from physion.errors import ConfigError, DataError, TransientError
from physion.store.artifacts import Artifact, ArtifactWriter, Manifest, read_manifest


def add(writer, part, **files):
    paths = {}
    for name, text in files.items():
        paths[f"{name}.txt"] = writer.scratch / name
        paths[f"{name}.txt"].write_text(text)
    return writer.add_part(part, paths, [{"part": part}])


def manifest_of(writer, fingerprint="f" * 20):
    return Manifest(
        stage="frames",
        instance="frames-test",
        fingerprint=fingerprint,
        config={"a": 1},
        inputs={},
        files=[record for part in writer.parts().values() for record in part.files],
        metrics={"videos": 2},
        code="1",
        created="2026-01-01T00:00:00+00:00",
        seconds=1.5,
    )


@pytest.fixture
def published(store):
    writer = ArtifactWriter(store, "frames", "f" * 20)
    add(writer, "0", a="alpha")
    add(writer, "1", b="beta")
    writer.publish(manifest_of(writer))
    scratch = writer.scratch
    writer.close()
    assert not scratch.exists()
    return Artifact(store, read_manifest(store, "frames", "f" * 20))


def test_what_is_published_is_read_back(store, published):
    assert published.names() == ["a.txt", "b.txt"]
    assert published.path("a.txt").read_text() == "alpha"
    assert published.manifest.metrics == {"videos": 2}
    # Records of parts are gone, and so is everything else but the files and the manifest.
    assert store.list(published.prefix) == [f"{published.prefix}/{name}" for name in ("a.txt", "b.txt", "manifest.json")]


def test_there_is_no_artifact_before_its_manifest(store):
    writer = ArtifactWriter(store, "frames", "f" * 20)
    add(writer, "0", a="alpha")
    assert read_manifest(store, "frames", "f" * 20) is None


def test_nothing_is_published_without_its_files(store):
    """Somebody erases the artifact, as a stale one or by --force, while another runner makes it."""
    writer = ArtifactWriter(store, "frames", "f" * 20)
    add(writer, "0", a="alpha")
    add(writer, "1", b="beta")
    manifest = manifest_of(writer)
    ArtifactWriter(store, "frames", "f" * 20).erase()
    add(ArtifactWriter(store, "frames", "f" * 20), "1", b="beta")
    with pytest.raises(TransientError, match=r"part 0 was removed by another command while this one ran; run it again"):
        writer.publish(manifest)
    assert read_manifest(store, "frames", "f" * 20) is None


@pytest.mark.parametrize("again", ["alpha", "beta"])
def test_nothing_is_published_with_the_files_of_others(store, again, monkeypatch):
    """Between a look at the parts and the manifest, somebody erases them, and somebody else makes them anew."""
    writer = ArtifactWriter(store, "frames", "f" * 20)
    add(writer, "0", a="alpha")
    manifest, write = manifest_of(writer), store.write

    def late(key, data, *, if_absent=False):
        if key.endswith("manifest.json"):
            ArtifactWriter(store, "frames", "f" * 20).erase()
            add(ArtifactWriter(store, "frames", "f" * 20), "0", a=again)
        return write(key, data, if_absent=if_absent)

    monkeypatch.setattr(store, "write", late)
    if again == "alpha":
        assert writer.publish(manifest) == manifest
    else:
        with pytest.raises(TransientError, match=r"a\.txt was removed by another command while this one ran; run it again"):
            writer.publish(manifest)
        assert read_manifest(store, "frames", "f" * 20) is None


def test_who_cannot_publish_leaves_the_manifest_of_others(store, monkeypatch):
    """After the look at the files failed, and before the manifest is taken back, somebody publishes the same artifact."""
    writer, other = (ArtifactWriter(store, "frames", "f" * 20) for _ in range(2))
    add(writer, "0", a="alpha")
    manifest, write = manifest_of(writer), store.write

    def late(key, data, *, if_absent=False):
        done = write(key, data, if_absent=if_absent)
        if key.endswith("manifest.json") and data == manifest.model_dump_json(indent=1).encode():
            other.erase()
            add(other, "0", a="beta")
            other.publish(manifest_of(other))
        return done

    monkeypatch.setattr(store, "write", late)
    standing = writer.publish(manifest)
    assert Artifact(store, standing).path("a.txt").read_text() == "beta"


def test_a_manifest_published_while_it_is_erased_goes_before_its_files(store, monkeypatch):
    """Who erases is killed after the first file, when another one had just published it."""
    writer = ArtifactWriter(store, "frames", "f" * 20)
    add(writer, "0", a="alpha")
    add(writer, "1", b="beta")
    manifest, listed, deleted, delete = manifest_of(writer), store.list, [], store.delete

    def late(prefix):
        keys = listed(prefix)
        monkeypatch.setattr(store, "list", listed)
        writer.publish(manifest)
        monkeypatch.setattr(store, "delete", lambda key: (deleted.append(key), delete(key)))
        return keys

    monkeypatch.setattr(store, "list", late)
    ArtifactWriter(store, "frames", "f" * 20).erase()
    files = [deleted.index(f"{writer.prefix}/{name}") for name in ("a.txt", "b.txt")]
    assert f"{writer.prefix}/manifest.json" in deleted[: min(files)]
    assert listed(writer.prefix) == []


@pytest.mark.parametrize("way", ["write", "upload"])
def test_the_digest_of_an_object_is_that_of_its_bytes(store, tmp_path, way):
    data = b"some bytes"
    (tmp_path / "file").write_bytes(data)
    if way == "write":
        store.write("a/b", data)
    else:
        store.upload("a/b", tmp_path / "file")
    assert store.digest("a/b") == hashlib.sha256(data).hexdigest()
    assert store.digest("a/c") is None


def test_a_second_writer_goes_on_where_the_first_one_stopped(store):
    first = ArtifactWriter(store, "frames", "f" * 20)
    add(first, "0", a="alpha")
    second = ArtifactWriter(store, "frames", "f" * 20)
    parts = second.parts()
    assert list(parts) == ["0"]
    assert parts["0"].items == [{"part": "0"}]
    assert [record.name for record in parts["0"].files] == ["a.txt"]


def test_a_record_is_of_the_file_that_stands(store):
    first, second = (ArtifactWriter(store, "frames", "f" * 20) for _ in range(2))
    mine = add(first, "0", a="alpha")
    theirs = add(second, "0", a="beta, and longer")
    assert theirs.files == mine.files
    second.publish(manifest_of(second))
    assert Artifact(store, read_manifest(store, "frames", "f" * 20)).path("a.txt").read_text() == "alpha"


def test_the_first_manifest_stands(store):
    writer = ArtifactWriter(store, "frames", "f" * 20)
    add(writer, "0", a="alpha")
    manifest = manifest_of(writer)
    writer.publish(manifest)
    standing = writer.publish(manifest.model_copy(update={"seconds": 99.0, "files": []}))
    assert standing == manifest
    assert store.read(f"{writer.prefix}/a.txt") == b"alpha"


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: bytes([d[0] ^ 1]) + d[1:], lambda d: d + b"x"])
def test_a_damaged_file_is_named_with_what_to_do(store, published, damage):
    store.write(f"{published.prefix}/b.txt", damage(store.read(f"{published.prefix}/b.txt")))
    with pytest.raises(DataError, match=r"b\.txt is corrupt.*physion stage frames --force"):
        published.path("b.txt")
    assert published.path("a.txt").read_text() == "alpha"


def test_a_file_that_is_gone(store, published):
    store.delete(f"{published.prefix}/b.txt")
    with pytest.raises(DataError, match=r"b\.txt is missing although its manifest names it"):
        published.path("b.txt")


def test_a_manifest_from_a_newer_version(store, published):
    key = f"{published.prefix}/manifest.json"
    store.write(key, json.dumps({**json.loads(store.read(key)), "format": 3, "unheard": "of"}).encode())
    with pytest.raises(ConfigError, match=r"has format 3, this physion reads up to 2: update physion"):
        read_manifest(store, "frames", "f" * 20)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"format": "new"}', b'{"format": 2}', b"\xff\xfe"])
def test_a_damaged_manifest(store, published, data):
    store.write(f"{published.prefix}/manifest.json", data)
    with pytest.raises(DataError, match="physion stage frames --force"):
        read_manifest(store, "frames", "f" * 20)


def test_erasing_removes_everything(store, published):
    ArtifactWriter(store, "frames", "f" * 20).erase()
    assert store.list(published.prefix) == []


def test_a_manifest_of_format_1_is_read(store, published):
    """It knew of its inputs only their fingerprints."""
    key = f"{published.prefix}/manifest.json"
    old = json.loads(store.read(key)) | {"format": 1, "inputs": {"dataset": "e" * 20}}
    del old["identity"]
    store.write(key, json.dumps(old).encode())
    manifest = read_manifest(store, "frames", "f" * 20)
    assert manifest.inputs["dataset"].fingerprint == "e" * 20
    assert manifest.identity == {}
