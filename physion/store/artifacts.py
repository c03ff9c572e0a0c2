"""Artifacts: what a stage publishes, as `artifacts/<stage>/<fingerprint>/` with a manifest written last.

An artifact grows part by part. A part is a piece of work: its files are stored first, then its record (`parts/<name>.json`), so
a restarted stage continues with the parts that have no record. Once all are there, the manifest is written, conditionally; then
the records and checkpoints are removed. No manifest, no artifact.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from physion.errors import ConfigError, DataError, TransientError
from physion.store.checksums import sha256_of
from physion.store.keys import CONTROL, Digest, Key, Word, shown
from physion.store.protocol import Readable, Store

R = TypeVar("R", bound="Record")
FORMAT = 2
LARGEST = 2**50  # size limit of a file, bytes
LONGEST, MOST = 1e12, 1e30  # seconds; FLOPs or bytes: far beyond any stage, and their quotients are finite
SHOWN = 3  # damaged fields that an error names at most
AGAIN = "run `physion stage ... --force` to begin it again"
MANIFEST = "manifest.json"
STUDY = "study.json"
FILES_AT_ONCE = 4  # while one file of a part is hashed or waits for the store, others are sent
READERS = 16  # part records read at once
WITH_TIMES = frozenset({"metrics.jsonl", "events.tfevents", "report.html"})
"""Files that contain times: no two runs make the same."""


class Record(BaseModel):
    """Anything in a store besides data. Others may have written it, so it is checked on reading, by `parse`."""

    model_config = ConfigDict(frozen=True)


class FileRecord(Record):
    """One file of an artifact."""

    name: Key
    size: int = Field(ge=0, le=LARGEST, strict=True)
    sha256: Digest


class Part(Record):
    """The record of a finished piece of work: its files, its facts, and what it took."""

    files: list[FileRecord]
    items: list[dict[str, Any]] = []
    seconds: float = Field(0.0, ge=0, le=LONGEST)


class InputRecord(Record):
    """An input of an artifact: an instance, its fingerprint, and its content at the time (`content_digest`)."""

    instance: Word | Literal[""] = ""
    fingerprint: Word
    content: Digest | Literal[""] = ""


class Begun(Record):
    """What unfinished work belongs to: the study (instance -> fingerprint), and the content of its inputs (role -> digest)."""

    study: dict[Word, Word] = {}
    inputs: dict[str, Digest] | None = None


class Program(Record):
    """Which code made an artifact, of several runs the last; what nothing told is empty."""

    commit: str = ""
    dirty: bool = False
    """Whether the package differed from the commit."""
    source: dict[str, str] = {}
    """Module -> digest of its source but for docstrings and comments, of all that decides what the stage computes."""
    packages: dict[str, str] = {}
    """Versions of what these modules import."""

    def __str__(self) -> str:
        """The commit, for people."""
        return self.commit[:12] + (" with changes" if self.dirty else "")


class Manifest(Record):
    """What an artifact is, where it came from and what it took."""

    model_config = ConfigDict(frozen=False)
    format: int = FORMAT
    stage: Word
    instance: Word
    fingerprint: Word
    identity: dict[str, Any] = {}
    """What the fingerprint is a hash of: everything that affects the output."""
    config: dict[str, Any]
    inputs: dict[str, InputRecord]
    files: list[FileRecord]
    metrics: dict[str, Any] = {}
    origin: dict[str, Any] = {}  # for named weights: where they came from
    code: str
    program: Program = Program()
    host: dict[str, Any] = {}
    created: str
    """Time of creation, as ISO 8601 with a time zone."""
    seconds: float = Field(ge=0, le=LONGEST)
    """Time it took: the sum over a stage's parts or a training's runs, whichever processes made them."""
    work: float = Field(0.0, ge=0, le=MOST)
    """The estimated work behind `seconds`: FLOPs, or bytes of output for stages without FLOPs."""

    @field_validator("inputs", mode="before")
    @classmethod
    def _of_format_1(cls, value: Any) -> Any:
        """Format 1 recorded only the fingerprint."""
        if not isinstance(value, dict):
            return value
        return {role: {"fingerprint": given} if isinstance(given, str) else given for role, given in value.items()}

    @field_validator("identity")
    @classmethod
    def _has_parts_that_are_read(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not all(isinstance(value.get(part, {}), dict) for part in ("config", "inputs", "params")):
            raise ValueError("a part of it is no mapping")
        return value

    @field_validator("created")
    @classmethod
    def _has_a_zone(cls, value: str) -> str:
        if datetime.fromisoformat(value).tzinfo is None:
            raise ValueError("has no time zone")
        return value

    @model_validator(mode="after")
    def _names_each_file_once(self) -> Self:
        if len({record.name for record in self.files}) < len(self.files):
            raise ValueError("a file is named twice")
        return self

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.created)).total_seconds()

    @property
    def bytes(self) -> int:
        """Total size of its files."""
        return sum(record.size for record in self.files)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the stage instance."""
        return dict(self.identity.get("params", {}))

    @property
    def content(self) -> str:
        """The digest of its content."""
        return content_digest(self.files)


def content_digest(files: Sequence[FileRecord]) -> str:
    """One digest for an artifact's files, equal if names and bytes are equal. Files that contain times are left out."""
    lines = sorted(f"{record.sha256} {record.name}" for record in files if Path(record.name).name not in WITH_TIMES)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def prefix_of(stage: str, fingerprint: str) -> str:
    """Where a store keeps the artifact of a stage with this fingerprint."""
    return f"artifacts/{stage}/{fingerprint}"


def read_manifest(store: Store, stage: str, fingerprint: str) -> Manifest | None:
    """The manifest of an artifact; None if it is not published.

    Raises ConfigError if a newer version of this program wrote it, DataError if it cannot be read.
    """
    advice = f"run `physion stage {stage} --force` to make it again"
    manifest = manifest_at(store, prefix_of(stage, fingerprint), advice)
    if manifest is not None and (manifest.stage, manifest.fingerprint) != (stage, fingerprint):
        of = prefix_of(manifest.stage, manifest.fingerprint)
        raise DataError(f"{store.uri}/{prefix_of(stage, fingerprint)}/{MANIFEST} is that of {of}; {advice}")
    return manifest


def manifest_at(store: Readable, prefix: str, advice: str) -> Manifest | None:
    """The manifest below a prefix; None if there is none. `advice` says what to do about a damaged one."""
    key = f"{prefix}/{MANIFEST}"
    data = store.read(key)
    if data is None:
        return None
    try:
        tree = json_of(data)
        written = int(tree["format"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{store.uri}/{key} is not a manifest; {advice}") from error
    if written > FORMAT:
        raise ConfigError(f"{store.uri}/{key} has format {written}, this physion reads up to {FORMAT}: update physion")
    return parse(Manifest, data, f"{store.uri}/{key}", advice)


def json_of(data: bytes) -> Any:
    """Parsed JSON. Raises ValueError if it is invalid, nested too deeply, or has control characters other than line ends."""
    try:
        tree = json.loads(data.decode())
        if (b"\\" in data or not data.isascii()) and CONTROL.search("".join(_strings(tree))):
            raise ValueError("control characters")
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return tree


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        yield from tree
        yield from _strings(list(tree.values()))
    elif isinstance(tree, list):
        for below in tree:
            yield from _strings(below)


def parse(kind: type[R], data: bytes, uri: str, advice: str) -> R:
    """A record that a store holds at `uri`. Raises DataError, which ends with the advice, if it is damaged or invalid."""
    try:
        return kind.model_validate(json_of(data))
    except ValidationError as error:
        where = ", ".join(dict.fromkeys(".".join(map(str, each["loc"])) or "it as a whole" for each in error.errors()[:SHOWN]))
        raise DataError(shown(f"{uri} is damaged ({error.error_count()} fields: {where}); {advice}")) from error
    except ValueError as error:
        raise DataError(f"{uri} is damaged (not JSON); {advice}") from error


class Artifact:
    """A published artifact, for reading. Every file is checked against its SHA-256 before its first use."""

    def __init__(self, store: Store, manifest: Manifest, prefix: str = "", advice: str = "") -> None:
        self.store = store
        self.manifest = manifest
        self.prefix = prefix or prefix_of(manifest.stage, manifest.fingerprint)
        self.advice = advice or f"run `physion stage {manifest.stage} --force` (same options) to make it again"
        self._records = {record.name: record for record in manifest.files}
        self._verified: dict[str, Path] = {}
        self._closed = False

    def names(self) -> list[str]:
        """Names of the artifact's files, sorted."""
        return sorted(self._records)

    def path(self, name: str) -> Path:
        """A local file with the verified content of file `name`. Ask for it again, and open it at once, at every use.

        Raises DataError if the file is gone or does not match the manifest.
        """
        if name in self._verified:
            return self._verified[name]
        if (record := self._records.get(name)) is None:
            raise DataError(f"{self.store.uri}/{self.prefix}/{MANIFEST} names no file {shown(name)}; {self.advice}")
        key = f"{self.prefix}/{name}"
        try:
            path = self.store.fetch(key, size=record.size, sha256=record.sha256)
        except FileNotFoundError as error:
            raise DataError(f"{self.store.uri}/{key} is missing although its manifest names it; {self.advice}") from error
        except DataError as error:
            raise DataError(f"{error}; {self.advice}") from error
        if self.store.cache is None:
            self._verified[name] = path  # a cache may drop it, and checks it faster
        return path

    def number(self, *path: str) -> float:
        """The number at a place in the manifest, such as `metrics`, `threshold`. Raises DataError if there is none."""
        value: Any = dict(self.manifest)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{self.store.uri}/{self.prefix}/{MANIFEST} holds no number {'.'.join(path)}; {self.advice}")
        return value

    def prefetch(self, names: Sequence[str], at_once: int = 2) -> None:
        """Start fetching files into a remote store's cache, `at_once` at a time. Failures are raised when the file is used."""
        if self.store.cache is None:
            return

        def bring(some: Sequence[str]) -> None:
            for name in some:
                if self._closed:
                    return
                with suppress(Exception):
                    self.path(name)

        for first in range(min(at_once, len(names))):
            # Daemon threads: a command that stops need not wait for files that nobody will use.
            threading.Thread(target=bring, args=(names[first::at_once],), daemon=True).start()

    def close(self) -> None:
        """Stop prefetching."""
        self._closed = True

    def json(self, name: str) -> Any:
        """The content of a JSON file of the artifact. Raises DataError if it is invalid."""
        try:
            return json_of(self.path(name).read_bytes())
        except ValueError as error:
            raise DataError(f"{self.store.uri}/{self.prefix}/{name} is not JSON ({error}); {self.advice}") from error


class Removed(TransientError):
    """Somebody else removed what was being made."""


class PrefixWriter:
    """An artifact being published below a prefix; a second writer of the same one continues where the first stopped."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self._scratch: Path | None = None
        self._parts: dict[str, Part] = {}  # known already
        self.kept: dict[str, Part] = {}
        """The parts that make up the artifact: those added or kept here."""

    @property
    def scratch(self) -> Path:
        """A directory for the artifact's files in progress; emptied when the writer closes."""
        if self._scratch is None:
            self._scratch = self.store.scratch()
        return self._scratch

    def close(self) -> None:
        """Remove the scratch directory."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def begin(self, study: Mapping[str, str], inputs: Mapping[str, str], *, parts: bool = False) -> None:
        """Record the study that this belongs to (instance -> fingerprint); `store gc` then spares all of it.

        Work begun from other `inputs` (role -> content digest) is removed, except parts whose names identify what they are made
        from.
        """
        begun = self.begun()
        if not parts and begun is not None and begun.inputs is not None and begun.inputs != inputs:
            self._delete_all_but(set())
        record = Begun(study=dict(study), inputs=dict(inputs))
        self.store.write(f"{self.prefix}/{STUDY}", record.model_dump_json().encode())

    def begun(self) -> Begun | None:
        """What `begin` recorded; None before that. Raises DataError."""
        data = self.store.read(f"{self.prefix}/{STUDY}")
        return None if data is None else parse(Begun, data, f"{self.store.uri}/{self.prefix}/{STUDY}", AGAIN)

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
            self._parts[name] = parse(Part, data, f"{self.store.uri}/{self.prefix}/parts/{name}.json", AGAIN)
        return self._parts[name]

    def add_part(
        self,
        part: str,
        files: Mapping[str, Path],
        items: Sequence[dict[str, Any]] = (),
        seconds: float = 0.0,
        sha256: Mapping[str, str] | None = None,
    ) -> Part:
        """Store the files of a part (name in the artifact -> local file), then its record; `sha256` holds digests already
        known.

        The first writer of a file wins, and the record describes the stored object. So two simultaneous runners, whose floats
        may differ in the last bit, never publish one runner's manifest with the other's file.
        """
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            known = [(sha256 or {}).get(name) for name in files]
            records = list(pool.map(self._add_file, files, files.values(), known))
        finished = Part(files=records, items=list(items), seconds=seconds)
        self.store.write(f"{self.prefix}/parts/{part}.json", finished.model_dump_json().encode())
        self._parts[part] = self.kept[part] = finished
        return finished

    def keep(self, part: str) -> Part:
        """Include in the artifact a part that was added earlier. Raises DataError if it is not there."""
        found = self._part(part)
        if found is None:
            raise DataError(f"{self.store.uri}/{self.prefix}/parts/{part}.json is missing: run the same command again")
        self.kept[part] = found
        return found

    def _add_file(self, name: str, path: Path, sha256: str | None) -> FileRecord:
        key, record = f"{self.prefix}/{name}", _record(name, path, sha256)
        if self.store.upload(key, path, sha256=record.sha256):
            return record
        try:
            return _record(name, self.store.fetch(key))
        except FileNotFoundError as error:
            raise self._removed(name) from error

    def publish(self, manifest: Manifest) -> Manifest:
        """Write the manifest unless another runner just did, and clean up. Returns the stored manifest.

        Raises TransientError if a part or a file is no longer as it was made, for example because somebody erased the artifact
        meanwhile.
        """
        key, data = f"{self.prefix}/{MANIFEST}", manifest.model_dump_json(indent=1).encode()
        if self.store.size(key) is None:  # otherwise another runner's manifest and files are already there
            try:
                self._require_parts()
                self._require_names(manifest)
                if self.store.write(key, data, if_absent=True):
                    self._require_content(manifest)  # it may have been erased, and begun anew by others, since
            except Removed:
                found = self.store.read(key)
                if found == data:
                    self.store.delete(key)
                if found in (None, data):  # otherwise another runner has just published and cleaned up
                    raise
        standing = manifest_at(self.store, self.prefix, "remove it and publish again")
        if standing is None:
            raise self._removed("it")
        self._clean_up(standing)
        return standing

    def _clean_up(self, standing: Manifest) -> None:
        """Remove what the making left: records, checkpoints, and files of parts that were made again otherwise."""
        self._delete_all_but({MANIFEST, *(record.name for record in standing.files)})

    def _require_parts(self) -> None:
        """Records describe the stored objects: if another runner replaced a record, it replaced the files too."""
        with ThreadPoolExecutor(READERS) as pool:
            data = pool.map(self.store.read, [f"{self.prefix}/parts/{name}.json" for name in self.kept])
        for (name, part), found in zip(self.kept.items(), data, strict=True):
            if (
                found is None
                or parse(Part, found, f"{self.store.uri}/{self.prefix}/parts/{name}.json", AGAIN).files != part.files
            ):
                raise self._removed(f"part {name}")

    def _require_names(self, manifest: Manifest) -> None:
        there = set(self.store.list(self.prefix))
        for record in manifest.files:
            if f"{self.prefix}/{record.name}" not in there:
                raise self._removed(record.name)

    def _require_content(self, manifest: Manifest) -> None:
        with ThreadPoolExecutor(READERS) as pool:
            digests = pool.map(self.store.digest, [f"{self.prefix}/{record.name}" for record in manifest.files])
            for record, digest in zip(manifest.files, digests, strict=True):
                if digest != record.sha256:
                    raise self._removed(record.name)

    def _removed(self, what: str) -> Removed:
        return Removed(
            f"{self.store.uri}/{self.prefix}: {what} was removed by another command while this one ran; run it again"
        )

    def discard(self) -> None:
        """Remove the finished parts and their files, unless another runner published them meanwhile."""
        if self.store.size(f"{self.prefix}/{MANIFEST}") is None:
            self._delete_all_but(set())

    def erase(self) -> None:
        """Remove the artifact, published or not. If somebody publishes meanwhile, its manifest goes before its next file."""
        self._delete_all_but(set())
        self.store.delete(f"{self.prefix}/{MANIFEST}")

    def _delete_all_but(self, names: set[str]) -> None:
        keys = [key for key in self.store.list(self.prefix) if key.removeprefix(f"{self.prefix}/") not in names]

        def delete(key: str) -> None:
            if MANIFEST not in names:  # whoever is killed here leaves no manifest without its files
                self.store.delete(f"{self.prefix}/{MANIFEST}")
            self.store.delete(key)

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(delete, keys))


class ArtifactWriter(PrefixWriter):
    """An artifact in the making."""

    def __init__(self, store: Store, stage: str, fingerprint: str) -> None:
        super().__init__(store, prefix_of(stage, fingerprint))
        self.stage = stage
        self.earlier = 0.0  # seconds that earlier processes put into what this one goes on with
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the work on it has taken, in all processes one after the other."""
        return self.earlier + time.monotonic() - self._started


def _record(name: str, path: Path, sha256: str | None = None) -> FileRecord:
    return FileRecord(name=name, size=path.stat().st_size, sha256=sha256 or sha256_of(path))
