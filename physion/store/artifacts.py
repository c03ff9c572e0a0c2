"""Artifacts: what a stage publishes, as `artifacts/<stage>/<fingerprint>/` with a manifest written last.

An artifact grows part by part. A part is a piece of work whose files are stored first and whose record
(`parts/<name>.json`) is stored after them, so a restarted stage goes on with the parts that have no record. When all are there
the manifest is written, conditionally; then the records and checkpoints are removed. No manifest, no artifact.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from physion.errors import ConfigError, DataError, TransientError
from physion.store.checksums import sha256_of
from physion.store.protocol import Store

FORMAT = 2
MANIFEST = "manifest.json"
STUDY = "study.json"
FILES_AT_ONCE = 4  # while one file of a part is hashed or waits for the store's answer, others are sent
READERS = 16  # records of parts read at once
WITH_TIMES = frozenset({"metrics.jsonl", "events.tfevents", "report.html"})
"""Files with times in them: two runs never make the same."""


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


class InputRecord(BaseModel):
    """What an artifact was made from: an instance, its fingerprint, and the content that it had (`content_digest`)."""

    model_config = ConfigDict(frozen=True)
    instance: str = ""
    fingerprint: str
    content: str = ""


class Manifest(BaseModel):
    """What an artifact is, where it comes from and what it took."""

    format: int = FORMAT
    stage: str
    instance: str
    fingerprint: str
    identity: dict[str, Any] = {}
    """What the fingerprint is the hash of: whatever decides what comes out."""
    config: dict[str, Any]
    inputs: dict[str, InputRecord]
    files: list[FileRecord]
    metrics: dict[str, Any] = {}
    origin: dict[str, Any] = {}  # of named weights: where they come from
    code: str
    host: dict[str, Any] = {}
    created: str
    seconds: float
    """What it took to make: of a stage with parts the sum over them, whichever processes did them, else of the last run."""

    @field_validator("inputs", mode="before")
    @classmethod
    def _of_format_1(cls, value: Any) -> Any:
        """Format 1 recorded the fingerprint alone."""
        if not isinstance(value, dict):
            return value
        return {role: {"fingerprint": given} if isinstance(given, str) else given for role, given in value.items()}

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(record.size for record in self.files)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the stage instance."""
        return dict(self.identity.get("params", {}))

    @property
    def content(self) -> str:
        """The digest of what it holds."""
        return content_digest(self.files)


def content_digest(files: Sequence[FileRecord]) -> str:
    """One digest of an artifact's files: equal where their names and bytes are. Files that hold times are left out."""
    lines = sorted(f"{record.sha256} {record.name}" for record in files if Path(record.name).name not in WITH_TIMES)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def prefix_of(stage: str, fingerprint: str) -> str:
    """Where the artifact of a stage with this fingerprint lies in a store."""
    return f"artifacts/{stage}/{fingerprint}"


def read_manifest(store: Store, stage: str, fingerprint: str) -> Manifest | None:
    """The manifest of an artifact; None when it is not published.

    Raises ConfigError when a newer version of this program wrote it, DataError when it cannot be read.
    """
    return manifest_at(store, prefix_of(stage, fingerprint), f"run `physion stage {stage} --force` to make it again")


def manifest_at(store: Store, prefix: str, advice: str) -> Manifest | None:
    """The manifest below a prefix; None when there is none. `advice` says what to do about a damaged one."""
    key = f"{prefix}/{MANIFEST}"
    data = store.read(key)
    if data is None:
        return None
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

    def __init__(self, store: Store, manifest: Manifest, prefix: str = "", advice: str = "") -> None:
        self.store = store
        self.manifest = manifest
        self.prefix = prefix or prefix_of(manifest.stage, manifest.fingerprint)
        self._advice = advice or f"run `physion stage {manifest.stage} --force` (same options) to make it again"
        self._records = {record.name: record for record in manifest.files}
        self._verified: dict[str, Path] = {}
        self._closed = False

    def names(self) -> list[str]:
        """Names of the artifact's files, sorted."""
        return sorted(self._records)

    def path(self, name: str) -> Path:
        """A local file with the verified content of file `name`; to be asked for again, and opened at once, at every use.

        Raises DataError when the file is gone or is not what the manifest says.
        """
        if name in self._verified:
            return self._verified[name]
        record = self._records[name]
        key = f"{self.prefix}/{name}"
        try:
            path = self.store.fetch(key, size=record.size, sha256=record.sha256)
        except FileNotFoundError as error:
            raise DataError(f"{self.store.uri}/{key} is missing although its manifest names it; {self._advice}") from error
        except DataError as error:
            raise DataError(f"{error}; {self._advice}") from error
        if self.store.cache is None:
            self._verified[name] = path  # a cache may drop it, and checks it faster
        return path

    def prefetch(self, names: Sequence[str], at_once: int = 2) -> None:
        """Begin to bring files into the cache of a remote store, `at_once` at a time; what fails does so again at its use."""
        if self.store.cache is None:
            return

        def bring(some: Sequence[str]) -> None:
            for name in some:
                if self._closed:
                    return
                with suppress(Exception):
                    self.path(name)

        for first in range(min(at_once, len(names))):
            # Daemons: a command that stops does not wait for what nobody will use.
            threading.Thread(target=bring, args=(names[first::at_once],), daemon=True).start()

    def close(self) -> None:
        """Prefetch no further."""
        self._closed = True

    def json(self, name: str) -> Any:
        """The content of a JSON file of the artifact."""
        return json.loads(self.path(name).read_bytes())


class PrefixWriter:
    """What is being published below a prefix; a second writer of the same goes on where the first one stopped."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self._scratch: Path | None = None
        self._parts: dict[str, Part] = {}  # known already
        self.kept: dict[str, Part] = {}
        """The parts that make up the artifact: those that were added or kept here."""

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

    def begin(self, study: Mapping[str, str], inputs: Mapping[str, str], *, parts: bool = False) -> None:
        """Note the study that this is part of (instance -> fingerprint), all of which `store gc` then spares.

        What was begun from other `inputs` (role -> content digest) is removed, but for parts whose names tell what they
        are made from.
        """
        key = f"{self.prefix}/{STUDY}"
        begun = json.loads(self.store.read(key) or b"{}")
        if not parts and begun.get("inputs", inputs) != inputs:
            self._delete_all_but(set())
        self.store.write(key, json.dumps({"study": study, "inputs": inputs}).encode())

    def part_names(self) -> set[str]:
        """Names of the finished parts."""
        return {Path(key).stem for key in self.store.list(f"{self.prefix}/parts")}

    def parts(self) -> dict[str, Part]:
        """The finished parts by name."""
        names = sorted(self.part_names())
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(self._part, names)
            return {name: part for name, part in zip(names, found, strict=True) if part is not None}

    def _part(self, name: str) -> Part | None:
        if name not in self._parts:
            data = self.store.read(f"{self.prefix}/parts/{name}.json")
            if data is None:
                return None
            self._parts[name] = Part.model_validate_json(data)
        return self._parts[name]

    def add_part(
        self,
        part: str,
        files: Mapping[str, Path],
        items: Sequence[dict[str, Any]] = (),
        seconds: float = 0.0,
        sha256: Mapping[str, str] | None = None,
    ) -> Part:
        """Store the files of a part (name in the artifact -> local file), then its record; `sha256` is what the caller knows.

        The first writer of a file wins: the record is of the object that stands, so that two runners at once, whose floats
        may differ in the last bit, never publish a manifest of one with a file of the other.
        """
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            known = [(sha256 or {}).get(name) for name in files]
            records = list(pool.map(self._add_file, files, files.values(), known))
        finished = Part(files=records, items=list(items), seconds=seconds)
        self.store.write(f"{self.prefix}/parts/{part}.json", finished.model_dump_json().encode())
        self._parts[part] = self.kept[part] = finished
        return finished

    def keep(self, part: str) -> Part:
        """Make a part that was added before one of the artifact. Raises DataError when it is not there."""
        found = self._part(part)
        if found is None:
            raise DataError(f"{self.store.uri}/{self.prefix}/parts/{part}.json is missing: run the same command again")
        self.kept[part] = found
        return found

    def _add_file(self, name: str, path: Path, sha256: str | None) -> FileRecord:
        key, record = f"{self.prefix}/{name}", _record(name, path, sha256)
        if self.store.upload(key, path, sha256=record.sha256):
            return record
        return _record(name, self.store.fetch(key))

    def publish(self, manifest: Manifest) -> Manifest:
        """Write the manifest unless another runner just did, and clean up. Returns the one that stands.

        Raises TransientError when a file is gone, as when somebody erased the artifact while it was made.
        """
        there = set(self.store.list(self.prefix))
        gone = [record.name for record in manifest.files if f"{self.prefix}/{record.name}" not in there]
        if gone and f"{self.prefix}/{MANIFEST}" not in there:  # else another runner's, with its files, stands already
            raise TransientError(
                f"{self.store.uri}/{self.prefix}: {gone[0]} was removed by another command while this one ran; run it again"
            )
        data = manifest.model_dump_json(indent=1).encode()
        self.store.write(f"{self.prefix}/{MANIFEST}", data, if_absent=True)
        standing = manifest_at(self.store, self.prefix, "remove it and publish again")
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


class ArtifactWriter(PrefixWriter):
    """An artifact that is being made."""

    def __init__(self, store: Store, stage: str, fingerprint: str) -> None:
        super().__init__(store, prefix_of(stage, fingerprint))
        self.stage = stage


def _record(name: str, path: Path, sha256: str | None = None) -> FileRecord:
    return FileRecord(name=name, size=path.stat().st_size, sha256=sha256 or sha256_of(path))
