"""`fetch`: the official Physion videos, from a directory in the documented layout or from the published archives."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.client
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import certifi

from physion.config.schema import Subset
from physion.data.layout import read_subset, subset_of
from physion.errors import ConfigError, DataError, TransientError
from physion.job import Job
from physion.progress import progress, say
from physion.store.artifacts import FileRecord

FILES_PER_PART = 256
ATTEMPTS = 5
# No name with a dot in front: archives made on a Mac hold `._<name>` beside each file, and `..` would lead out.
_WANTED = re.compile(r"(?:^|/)(Physion(?:Train|Test)MP4s/(?:[^/.][^/]*/)*[^/.][^/]*\.(?:mp4|csv|txt))$")


def run(job: Job) -> dict[str, Any]:
    """Copy every video of the subset, and its label file, into the artifact; read them strictly before they are published."""
    subset: Subset = job.params["subset"]  # type: ignore[assignment]
    if "root" in job.settings:
        _store(job, "root", _of_subset(subset, _directory(Path(job.settings["root"]))))
    else:
        for number, source in enumerate(job.settings["archives"]):
            if f"archive-{number}" not in job.output.parts():
                archive = _local(source, job)
                with _readable(archive):
                    _store(job, f"archive-{number}", _of_subset(subset, _members(archive)))
        for name, source in job.settings["files"].items():
            _store(job, "file-" + name.replace("/", "-"), [(name, _local(source, job).open("rb"))])
    files = {record.name: record for part in job.output.parts() for record in job.output.keep(part).files}
    try:
        videos = read_subset(subset, files, lambda name: _read(job, files[name]))
    except DataError:
        job.output.discard()  # or a repaired source would not be looked at again
        raise
    return {"videos": len(videos), "simulated": False}


def _of_subset(subset: Subset, members: Iterable[tuple[str, IO[bytes]]]) -> Iterator[tuple[str, IO[bytes]]]:
    for name, stream in members:
        if subset_of(name) == subset:
            yield name, stream
        else:
            stream.close()


def _store(job: Job, part: str, members: Iterable[tuple[str, IO[bytes]]]) -> None:
    """Store files in groups, each with a record, then a record that all are there."""
    finished = job.output.parts()
    if part in finished:
        return
    known = {record.name for done in finished.values() for record in done.files}
    group: dict[str, Path] = {}
    number = 0

    def flush() -> None:
        nonlocal number
        while f"{part}-{number:05d}" in finished:
            number += 1
        if group:
            job.output.add_part(f"{part}-{number:05d}", group)
            number += 1
            group.clear()

    for name, stream in members:
        job.stop.check()
        with stream:
            if name in known:
                continue
            path = job.output.scratch / f"{len(group)}-{Path(name).name}"
            with path.open("wb") as copy:
                shutil.copyfileobj(stream, copy)
        group[name] = path
        if len(group) == FILES_PER_PART:
            flush()
    flush()
    job.output.add_part(part, {})


def _directory(root: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if not root.is_dir():
        raise ConfigError(f"fetch.root={root}: there is no such directory")
    for path in sorted(root.rglob("*")):
        if path.is_file() and (match := _WANTED.search(path.relative_to(root).as_posix())):
            yield match[1], path.open("rb")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The wanted files of an archive, wherever in it the layout begins."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                if match := _WANTED.search(entry.filename):
                    yield match[1], file.open(entry)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member) if (match := _WANTED.search(member.name)) else None
                if match and content is not None:
                    yield match[1], content
            # A damaged header looks like the end of the archive; the checksum at its real end does not.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass


@contextlib.contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{archive.name}: not a readable archive ({error}); download it again") from error


def _local(source: str, job: Job) -> Path:
    """A path as it is; a URL downloaded, going on where a broken connection stopped."""
    if "://" not in source:
        if not Path(source).is_file():
            raise ConfigError(f"{source}: there is no such file (fetch.archives, fetch.files)")
        return Path(source)
    # Named by the whole URL: two sources may have the same file name, and the rest of one is not to be added to the other.
    path = job.output.scratch / hashlib.sha256(source.encode()).hexdigest()
    reason: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            say(f"{source}: {reason}; attempt {attempt + 1} of {ATTEMPTS}")
            time.sleep(2 ** (attempt - 1))
        try:
            _download(source, path, job)
            return path
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise ConfigError(f"{source}: the server answers {error.code} {error.reason}") from error
            reason = error
        except (OSError, http.client.HTTPException, TransientError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            reason = error
    raise TransientError(f"{source}: cannot be downloaded ({reason}); run the same command again")


def _download(url: str, path: Path, job: Job) -> None:
    have = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    trusted = ssl.create_default_context()  # the machine's certificates, and for images without any, certifi's
    trusted.load_verify_locations(certifi.where())
    with urllib.request.urlopen(request, timeout=60, context=trusted) as response:
        if response.status != 206:
            have = 0
        total = have + int(response.headers.get("Content-Length") or 0)
        with path.open("ab" if have else "wb") as file, progress(Path(url).name, total, "bytes", have) as bar:
            while chunk := response.read(1 << 20):
                job.stop.check()
                file.write(chunk)
                bar.advance(len(chunk))
    if total and path.stat().st_size < total:
        raise TransientError(f"the connection ended at {path.stat().st_size} of {total} bytes")


def _read(job: Job, record: FileRecord) -> bytes:
    return job.output.store.fetch(f"{job.output.prefix}/{record.name}").read_bytes()
