"""Artifacts: what a stage publishes, as `artifacts/<stage>/<fingerprint>/` with a manifest written last.

An artifact grows part by part. A part is a piece of work whose files are stored first and whose record
(`parts/<name>.json`) is stored after them, so a restarted stage goes on with the parts that have no record. When all are there
the manifest is written, conditionally; then the records and checkpoints are removed. No manifest, no artifact.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from physion.errors import ConfigError, DataError
from physion.store.store import Store

FORMAT = 1
MANIFEST = "manifest.json"


class FileRecord(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)
    name: str
    size: int
    sha256: str


class Part(BaseModel):
    """The record of a finished piece of work: its files, what it says of them, and what it took."""

    model_config = ConfigDict(frozen=True)
    files: list[FileRecord]
    items: list[dict[str, Any]] = []
    seconds: float = 0.0


class Manifest(BaseModel):
    """What an artifact is, where it comes from and what it took."""

    format: int = FORMAT
    stage: str
    instance: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: list[FileRecord]
    metrics: dict[str, Any] = {}
    code: str
    host: dict[str, Any] = {}
    created: str
    seconds: float


def prefix_of(stage: str, fingerprint: str) -> str:
    """Where the artifact of a stage with this fingerprint lies in a store."""
    return f"artifacts/{stage}/{fingerprint}"


def read_manifest(store: Store, stage: str, fingerprint: str) -> Manifest | None:
    """The manifest of an artifact; None when it is not published.

    Raises ConfigError when a newer version of this program wrote it, DataError when it cannot be read.
    """
    key = f"{prefix_of(stage, fingerprint)}/{MANIFEST}"
    data = store.read(key)
    if data is None:
        return None
    advice = f"run `physion stage {stage} --force` to make it again"
    try:
        tree = json.loads(data)
        written = int(tree["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{store.uri}/{key} is not a manifest; {advice}") from error
    if written > FORMAT:
        raise ConfigError(f"{store.uri}/{key} has format {written}, this physion reads up to {FORMAT}: update physion")
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        raise DataError(f"{store.uri}/{key} is damaged ({error.error_count()} fields); {advice}") from error


class Artifact:
    """A published artifact, for reading. Every file is checked against its SHA-256 before its first use."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.prefix = prefix_of(manifest.stage, manifest.fingerprint)
        self._records = {record.name: record for record in manifest.files}
        self._verified: dict[str, Path] = {}

    def names(self) -> list[str]:
        """Names of the artifact's files, sorted."""
        return sorted(self._records)

    def path(self, name: str) -> Path:
        """A local file with the verified content of file `name`.

        Raises DataError when the file is gone or is not what the manifest says.
        """
        if name not in self._verified:
            record = self._records[name]
            key = f"{self.prefix}/{name}"
            advice = f"run `physion stage {self.manifest.stage} --force` (same options) to make it again"
            if self.store.size(key) is None:
                raise DataError(f"{self.store.uri}/{key} is missing although its manifest names it; {advice}")
            path = self.store.fetch(key)
            if path.stat().st_size != record.size or sha256_of(path) != record.sha256:
                raise DataError(f"{self.store.uri}/{key} is corrupt (its SHA-256 is not the manifest's); {advice}")
            self._verified[name] = path
        return self._verified[name]

    def json(self, name: str) -> Any:
        """The content of a JSON file of the artifact."""
        return json.loads(self.path(name).read_bytes())


class ArtifactWriter:
    """An artifact that is being made; a second writer of the same artifact goes on where the first one stopped."""

    def __init__(self, store: Store, stage: str, fingerprint: str) -> None:
        self.store, self.stage = store, stage
        self.prefix = prefix_of(stage, fingerprint)
        self._scratch: Path | None = None

    @property
    def scratch(self) -> Path:
        """A directory for files on their way into the artifact; emptied when the writer closes."""
        if self._scratch is None:
            self._scratch = self.store.scratch()
        return self._scratch

    def close(self) -> None:
        """Remove the scratch directory."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def parts(self) -> dict[str, Part]:
        """The finished parts by name."""
        found = {}
        for key in self.store.list(f"{self.prefix}/parts"):
            data = self.store.read(key)
            if data is not None:
                found[Path(key).stem] = Part.model_validate_json(data)
        return found

    def add_part(
        self, part: str, files: Mapping[str, Path], items: Sequence[dict[str, Any]] = (), seconds: float = 0.0
    ) -> Part:
        """Store the files of a part (name in the artifact -> local file), then its record.

        The first writer of a file wins: the record is of the object that stands, so that two runners at once, whose floats
        may differ in the last bit, never publish a manifest of one with a file of the other.
        """
        records = []
        for name, path in files.items():
            key = f"{self.prefix}/{name}"
            record = _record(name, path)
            if not self.store.upload(key, path):
                record = _record(name, self.store.fetch(key))
            records.append(record)
        finished = Part(files=records, items=list(items), seconds=seconds)
        self.store.write(f"{self.prefix}/parts/{part}.json", finished.model_dump_json().encode())
        return finished

    def publish(self, manifest: Manifest) -> Manifest:
        """Write the manifest unless another runner just did, and clean up. Returns the one that stands."""
        data = manifest.model_dump_json(indent=1).encode()
        self.store.write(f"{self.prefix}/{MANIFEST}", data, if_absent=True)
        standing = read_manifest(self.store, manifest.stage, manifest.fingerprint)
        assert standing is not None
        self._delete_all_but({MANIFEST, *(record.name for record in standing.files)})
        return standing

    def discard(self) -> None:
        """Remove the finished parts and their files, unless another runner published them meanwhile."""
        if self.store.size(f"{self.prefix}/{MANIFEST}") is None:
            self._delete_all_but(set())

    def erase(self) -> None:
        """Remove the artifact, published or not; the manifest goes first."""
        self.store.delete(f"{self.prefix}/{MANIFEST}")
        self._delete_all_but(set())

    def _delete_all_but(self, names: set[str]) -> None:
        for key in self.store.list(self.prefix):
            if key.removeprefix(f"{self.prefix}/") not in names:
                self.store.delete(key)


def _record(name: str, path: Path) -> FileRecord:
    return FileRecord(name=name, size=path.stat().st_size, sha256=sha256_of(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
