"""Named weights: `pretrained/<name>/` of a store, a manifest and the files it names, published like an artifact.

A name never changes what it means. The files' names carry the start of their SHA-256, so that two writers of one name cannot
mix theirs, whatever the moment one of them dies at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from physion import __version__
from physion.errors import ConfigError, DataError, TransientError, nearest
from physion.progress import Bar, progress
from physion.store.artifacts import MANIFEST, Artifact, Manifest, PrefixWriter, manifest_at
from physion.store.checksums import sha256_of
from physion.store.protocol import Store

PREFIX = "pretrained"
CHUNK = 8 * 2**20


def name_of(reference: str) -> str:
    """The name in `pretrained/<name>` or `<name>`. Raises ConfigError when it cannot be one."""
    name = reference.removeprefix(f"{PREFIX}/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or ".." in name:
        raise ConfigError(f"weights '{reference}': a name has letters, digits, '-', '_' and '.' only: {PREFIX}/steve-physion")
    return name


def find_weights(store: Store, reference: str) -> Artifact:
    """The named weights of a store. Raises ConfigError when there are none of that name, naming the nearest."""
    name = name_of(reference)
    manifest = _manifest(store, name)
    if manifest is None:
        known = [other.instance for other in list_weights(store)]
        there = f"; there are: {', '.join(known)}" if known else ": `physion weights import` or `pull` brings some in"
        raise ConfigError(f"no weights '{name}' in {store.uri}/{PREFIX}{nearest(name, known)}{there}")
    return Artifact(store, manifest, f"{PREFIX}/{name}", _advice(name))


def list_weights(store: Store) -> list[Manifest]:
    """The manifests of all named weights of a store, by name."""
    names = sorted(key.split("/")[1] for key in store.list(PREFIX) if key.count("/") == 2 and key.endswith(f"/{MANIFEST}"))
    return [manifest for name in names if (manifest := _manifest(store, name)) is not None]


def publish_weights(
    store: Store, name: str, stage: str, files: Mapping[str, Path], sizes: dict[str, Any], metrics: dict[str, Any], origin: Any
) -> Manifest:
    """Publish local `files` (role, such as weights -> file, which may be moved) under a name.

    Raises ConfigError when other weights have that name already.
    """
    records = {role: (sha256_of(path), path) for role, path in files.items()}
    manifest = Manifest(
        stage=stage,
        instance=name,
        fingerprint=records["weights"][0][:20],
        config=sizes,
        inputs={},
        files=[],
        metrics=metrics,
        origin=origin,
        code=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
    )
    named = {f"{role}-{sha256[:16]}.safetensors": (sha256, path) for role, (sha256, path) in records.items()}
    return _publish(store, manifest, named)


def copy_weights(source: Artifact, store: Store, partial: Path) -> Manifest:
    """Publish the same named weights in another store.

    What was read of a file so far stays in directory `partial`, and a copy that broke off goes on from there.

    Raises DataError when a file is not what its manifest says and comes the same again, TransientError when it comes wrong in
    another way, ConfigError when other weights have that name already.
    """
    name = source.manifest.instance
    _require_free(store, name, source.manifest.fingerprint)
    files = {}
    with progress(name, sum(record.size for record in source.manifest.files), "bytes") as bar:
        for record in source.manifest.files:
            path = partial / record.sha256
            key = f"{source.prefix}/{record.name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            wrong = ""
            while (found := _read_rest(source.store, key, path, record.size, bar)) != record.sha256:
                path.unlink()
                bar.advance(-record.size)
                if found == wrong:
                    raise DataError(f"{source.store.uri}/{key} is corrupt (its SHA-256 is not the manifest's); push it again")
                if wrong:
                    raise TransientError(f"{source.store.uri}/{key} came damaged twice: check the network; run the same again")
                wrong = found
            files[record.name] = (record.sha256, path)
    return _publish(store, source.manifest, files)


def _read_rest(store: Store, key: str, path: Path, size: int, bar: Bar) -> str:
    """Append to a file what it lacks of an object; returns its SHA-256."""
    with path.open("ab") as file:
        bar.advance(file.tell())
        while file.tell() < size:
            data = store.read_range(key, file.tell(), min(CHUNK, size - file.tell()))
            if not data:
                raise DataError(f"{store.uri}/{key} is shorter than its manifest says; push it again")
            file.write(data)
            bar.advance(len(data))
    return sha256_of(path)


def role_of(artifact: Artifact, role: str) -> Path | None:
    """The verified local file of a role (`weights`, `frozen`); None when these weights have none."""
    return next((artifact.path(name) for name in artifact.names() if name.startswith(f"{role}-")), None)


def remove_weights(store: Store, reference: str) -> None:
    """Remove named weights, whole or broken. Raises ConfigError when there is nothing of that name."""
    prefix = f"{PREFIX}/{name_of(reference)}"
    if not store.list(prefix):
        raise ConfigError(f"there is nothing at {store.uri}/{prefix}")
    PrefixWriter(store, prefix).erase()


def _publish(store: Store, manifest: Manifest, files: Mapping[str, tuple[str, Path]]) -> Manifest:
    """Publish files (name -> SHA-256 and local file)."""
    name = manifest.instance
    _require_free(store, name, manifest.fingerprint)
    output = PrefixWriter(store, f"{PREFIX}/{name}")
    paths = {file: path for file, (_, path) in files.items()}
    part = output.add_part("weights", paths, sha256={file: sha256 for file, (sha256, _) in files.items()})
    standing = output.publish(manifest.model_copy(update={"files": sorted(part.files, key=lambda record: record.name)}))
    _require_same(store, standing, manifest.fingerprint)
    return standing


def _require_free(store: Store, name: str, fingerprint: str) -> None:
    if standing := _manifest(store, name_of(name)):
        _require_same(store, standing, fingerprint)


def _require_same(store: Store, standing: Manifest, fingerprint: str) -> None:
    if standing.fingerprint != fingerprint:
        raise ConfigError(
            f"{store.uri}/{PREFIX}/{standing.instance} holds other weights ({standing.stage}, made {standing.created}); "
            "choose another --name, or `physion weights remove` those first"
        )


def _manifest(store: Store, name: str) -> Manifest | None:
    return manifest_at(store, f"{PREFIX}/{name}", _advice(name))


def _advice(name: str) -> str:
    return f"`physion weights remove {name}`, then import or pull it again"
