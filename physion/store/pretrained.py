"""Named weights: `pretrained/<name>/` in a store, a manifest and the files it names, published like an artifact.

`builtin/<name>` are the weights included with the package.

The meaning of a name never changes. File names include the start of the SHA-256, so two writers of one name cannot mix their
files, whenever one of them dies.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from physion import __version__
from physion.errors import ConfigError, DataError, TransientError, nearest
from physion.progress import Bar, progress
from physion.store.artifacts import MANIFEST, Artifact, Manifest, PrefixWriter, manifest_at
from physion.store.card import write_card
from physion.store.checksums import sha256_of
from physion.store.folders import locked, own_folder, real_folder
from physion.store.keys import sha256_name
from physion.store.local import LocalStore
from physion.store.protocol import Readable, Store
from physion.store.uri import BUILTIN, open_store
from physion.store.web import WebFolder

PREFIX = "pretrained"
SHIPPED = "builtin"
CHUNK = 8 * 2**20


def name_of(reference: str) -> str:
    """The name in `pretrained/<name>`, `builtin/<name>` or `<name>`. Raises ConfigError if it is invalid."""
    name = reference.removeprefix(f"{PREFIX}/").removeprefix(f"{SHIPPED}/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or ".." in name:
        raise ConfigError(f"weights '{reference}': a name has letters, digits, '-', '_' and '.' only: {PREFIX}/steve-physion")
    return name


def find_weights(store: Store, reference: str) -> Artifact:
    """Named weights of a store or of the package. Raises ConfigError if there are none, suggesting the nearest name."""
    name = name_of(reference)
    if reference.startswith(f"{SHIPPED}/"):
        store = open_store(BUILTIN)
    manifest = _manifest(store, name)
    if manifest is None:
        known = _names(store)
        there = f"; there are: {', '.join(known)}" if known else ": add some with `physion weights import` or `pull`"
        raise ConfigError(f"no weights '{name}' in {store.uri}/{PREFIX}{nearest(name, known)}{there}")
    return Artifact(store, manifest, f"{PREFIX}/{name}", _advice(name))


def reference_of(weights: Artifact) -> str:
    """How a configuration refers to these weights: `pretrained/<name>` or `builtin/<name>`."""
    return f"{SHIPPED if weights.store.uri == BUILTIN else PREFIX}/{weights.manifest.instance}"


class Shared(NamedTuple):
    """Named weights outside any store, to be copied into one."""

    store: Readable
    prefix: str
    manifest: Manifest


def shared_weights(place: str) -> Shared:
    """The named weights in a folder or at a web address, with their manifest.json.

    Raises ConfigError if there are none, DataError if they are damaged, TransientError if a server does not answer.
    """
    base, _, folder = place.rstrip("/").rpartition("/") if "://" in place else ("", "", Path(place).absolute().name)
    store: Readable = WebFolder(base) if base else LocalStore(Path(place).absolute().parent)
    manifest = manifest_at(store, folder, "get it again")
    if manifest is None:
        hint = "" if "/" in place else "; a name needs its store: --from"
        raise ConfigError(f"there is no {MANIFEST} of named weights at {store.uri}/{folder}{hint}")
    if why := _unfit(manifest, manifest.instance):
        raise DataError(f"{store.uri}/{folder}/{MANIFEST} is not a manifest of named weights: {why}")
    return Shared(store, folder, manifest)


class _NamedWriter(PrefixWriter):
    """Named weights in the making. People may put files of their own beside them, such as a license."""

    def _clean_up(self, standing: Manifest) -> None:
        for key in self.store.list(f"{self.prefix}/parts"):
            self.store.delete(key)


def list_weights(store: Store) -> tuple[list[Manifest], list[str]]:
    """The manifests of all named weights of a store, by name, and the problems of those that cannot be read."""
    found, problems = [], []
    for name in _names(store):
        try:
            found += [manifest] if (manifest := _manifest(store, name)) else []
        except (ConfigError, DataError) as error:
            problems.append(str(error))
    return found, problems


def _names(store: Store) -> list[str]:
    return sorted(key.split("/")[1] for key in store.list(PREFIX) if key.count("/") == 2 and key.endswith(f"/{MANIFEST}"))


def publish_weights(
    store: Store, name: str, stage: str, files: Mapping[str, Path], sizes: dict[str, Any], metrics: dict[str, Any], origin: Any
) -> Manifest:
    """Publish local `files` (role, such as weights -> file, which may be moved) under a name.

    Raises ConfigError if other weights already have that name.
    """
    records = {role: (sha256_of(path), path) for role, path in files.items()}
    manifest = Manifest(
        stage=stage,
        instance=name_of(name),
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


def copy_weights(source: Artifact | Shared, store: Store, pulls: Path) -> Manifest:
    """Publish the same named weights in another store.

    What has been read so far stays in a separate folder below `pulls`, and an interrupted copy resumes from there. If there are
    several at once, one reads and the others wait for it.

    Raises DataError if a file does not match its manifest and arrives the same again, TransientError if it arrives wrong in a
    different way, ConfigError if other weights already have that name.
    """
    manifest = source.manifest
    place = own_folder(pulls, private=True) / sha256_name(manifest.content)
    while True:
        if standing := _standing(store, manifest):
            return standing
        with suppress(FileNotFoundError):  # another process has just removed it
            (real_folder(place, private=True) / "lock").touch()
        with locked(place / "lock") as mine:
            if not mine or _standing(store, manifest):  # another process has just done it
                continue
            copied = _publish(store, manifest, _read_all(source, place))
            shutil.rmtree(place, ignore_errors=True)  # NFS keeps the lock, which is open
            return copied


def _read_all(source: Artifact | Shared, place: Path) -> dict[str, tuple[str, Path]]:
    """Download all files of named weights into a folder: name -> SHA-256 and local file."""
    files = {}
    with progress(source.manifest.instance, sum(record.size for record in source.manifest.files), "bytes") as bar:
        for record in source.manifest.files:
            path = place / sha256_name(record.sha256)
            key = f"{source.prefix}/{record.name}"
            wrong = ""
            while (found := _read_rest(source.store, key, path, record.size, bar)) != record.sha256:
                path.unlink()
                bar.advance(-record.size)
                if found == wrong:
                    raise DataError(f"{source.store.uri}/{key} is corrupt (its SHA-256 is not the manifest's); push it again")
                if wrong:
                    raise TransientError(f"{source.store.uri}/{key} arrived damaged twice: check the network and pull again")
                wrong = found
            files[record.name] = (record.sha256, path)
    return files


def _read_rest(store: Readable, key: str, path: Path, size: int, bar: Bar) -> str:
    """Append to a file the rest of an object; returns its SHA-256."""
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
    """The verified local file of a role (`weights`, `frozen`); None if these weights do not have it."""
    return next((artifact.path(name) for name in artifact.names() if name.startswith(f"{role}-")), None)


def remove_weights(store: Store, reference: str) -> None:
    """Remove named weights, complete or damaged. Raises ConfigError if there is nothing with that name."""
    prefix = f"{PREFIX}/{name_of(reference)}"
    if not store.list(prefix):
        raise ConfigError(f"there is nothing at {store.uri}/{prefix}")
    PrefixWriter(store, prefix).erase()


def _publish(store: Store, manifest: Manifest, files: Mapping[str, tuple[str, Path]]) -> Manifest:
    """Publish files (name -> SHA-256 and local file)."""
    name = manifest.instance
    _standing(store, manifest)
    output = _NamedWriter(store, f"{PREFIX}/{name}")
    paths = {file: path for file, (_, path) in files.items()}
    part = output.add_part("weights", paths, sha256={file: sha256 for file, (sha256, _) in files.items()})
    standing = output.publish(manifest.model_copy(update={"files": sorted(part.files, key=lambda record: record.name)}))
    _require_same(store, standing, manifest.fingerprint)
    write_card(store, f"{PREFIX}/{name}", standing)
    return standing


def _standing(store: Store, manifest: Manifest) -> Manifest | None:
    """The named weights stored under this name; raises ConfigError if they are different ones."""
    if standing := _manifest(store, name_of(manifest.instance)):
        _require_same(store, standing, manifest.fingerprint)
    return standing


def _require_same(store: Store, standing: Manifest, fingerprint: str) -> None:
    if standing.fingerprint != fingerprint:
        raise ConfigError(
            f"{store.uri}/{PREFIX}/{standing.instance} holds other weights ({standing.stage}, made {standing.created}); "
            "choose another --name, or `physion weights remove` those first"
        )


def _manifest(store: Store, name: str) -> Manifest | None:
    manifest = manifest_at(store, f"{PREFIX}/{name}", _advice(name))
    if manifest is not None and (why := _unfit(manifest, name)):
        raise DataError(f"{store.uri}/{PREFIX}/{name}/{MANIFEST} is not a manifest of these weights: {why}; {_advice(name)}")
    return manifest


def _unfit(manifest: Manifest, name: str) -> str | None:
    """Why this cannot be the manifest of weights with that name."""
    metrics, roles = manifest.metrics, {record.name: record.name.partition("-")[0] for record in manifest.files}
    if manifest.instance != name:
        return f"it says that they are '{manifest.instance}'"
    if "weights" not in roles.values():
        return "it names no file of weights"
    if odd := [r.name for r in manifest.files if r.name != f"{roles[r.name]}-{r.sha256[:16]}.safetensors"]:
        return f"{odd[0]} is not named after its content"
    if not isinstance(metrics.get("parameters"), int) or not isinstance(metrics.get("digests", {}), dict):
        return "it does not say how many parameters they have, or its digests are none"
    if not isinstance(manifest.origin.get("metrics", {}), dict):
        return "the metrics of its origin are none"
    return None


def _advice(name: str) -> str:
    return f"`physion weights remove {name}`, then import or pull it again"
