"""Where videos are read from: folders, archives, and addresses to download from."""

from __future__ import annotations

import contextlib
import errno
import gzip
import http.client
import lzma
import os
import posixpath
import shutil
import struct
import tarfile
import threading
import urllib.error
import urllib.request
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Self
from urllib.parse import urlsplit

from physion.config.schema import expected_sha256, shown_source
from physion.data.layout import place_of
from physion.errors import ConfigError, DataError, TransientError
from physion.job import Job
from physion.progress import progress, say
from physion.store.checksums import sha256_of
from physion.store.keys import one_line
from physion.store.protocol import Store
from physion.store.web import opened, persistently, said

_ARCHIVE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, struct.error)

EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
LARGEST_EXTENSION = 1 << 20  # bytes
UNREAD = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\x9d": "compress",
}
"""First bytes of archives of kinds that Python cannot unpack."""

Member = tuple[str, Callable[[], IO[bytes]]]
"""The path of a file in a folder or an archive, and how to open it."""


def folder_members(root: Path) -> Iterator[Member]:
    """The files below a folder, also behind links; none twice, even if links lead to one folder in two ways.

    Raises DataError if the folder, or one that would hold videos, cannot be read.
    """
    seen, met = set(), set()

    def failed(error: OSError) -> None:
        path = Path(error.filename)
        if path == root or place_of(f"{path.relative_to(root).as_posix()}/x.mp4"):
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error

    for folder, folders, names in os.walk(root, onerror=failed, followlinks=True):
        facts, below = os.stat(folder), Path(folder).relative_to(root)
        itself, place = (facts.st_dev, facts.st_ino), place_of((below / "x.mp4").as_posix())
        # The names of the last two folders determine what a file is: a folder is read again only under other names.
        if (itself, route := place or below.parts[-2:]) in seen:
            folders.clear()
            continue
        seen.add((itself, route))
        if place is None and itself in met:
            names = []
        met.add(itself)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders.sort(key=lambda name, folder=folder: os.path.islink(os.path.join(folder, name)))  # type: ignore[misc]
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() and not path.exists():
                failed(FileNotFoundError(errno.ENOENT, "the link leads nowhere", path))
            yield path.relative_to(root).as_posix(), partial(_opened, path)


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def archive_members(archive: Path, shown: str) -> Iterator[Member]:
    """The files of a zip or tar archive; raises DataError if it cannot be read. `shown` is the archive's name in errors."""
    with readable(shown):
        _require_known(archive, shown)
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    if not entry.is_dir():
                        yield _plain(entry.filename), partial(file.open, entry)
            return
        with tarfile.open(archive, tarinfo=_Header) as tar:
            for member in tar:
                if member.isfile() or member.islnk() or member.issym():
                    yield _plain(member.name), partial(_extract, tar, member)
            # A damaged header looks like the end of the archive; the checksum at its real end does not.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass


class _Header(tarfile.TarInfo):
    """A header whose extensions, which tarfile reads into memory whole, have a legitimate size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The header in a block."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENSIONS and header.size > LARGEST_EXTENSION:
            raise tarfile.TarError(f"one of its headers has {header.size:,} bytes")
        return header


def _plain(name: str) -> str:
    return "/".join(PurePosixPath(name).parts).lstrip("/")


def _require_known(archive: Path, shown: str) -> None:
    with archive.open("rb") as file:
        start = file.read(8)
    for magic, name in UNREAD.items():
        if start.startswith(magic):
            raise DataError(
                f"{shown}: is compressed with {name}, which is not supported; unpack it by hand and name the folder"
            )


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """A file, reached through its links; tarfile would follow circular links forever."""
    at: tarfile.TarInfo | None = member
    passed: set[str] = set()
    while at is not None and (at.issym() or at.islnk()):
        if at.name in passed:
            raise tarfile.TarError(f"{one_line(member.name)} is a link that leads in a circle")
        passed.add(at.name)
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(at.name) if at.issym() else "", at.linkname))
        at = next((one for one in reversed(tar.getmembers()) if posixpath.normpath(one.name) == wanted), None)
    if at is None:
        raise tarfile.TarError(f"{one_line(member.name)} is a link to what the archive does not hold")
    content = tar.extractfile(at)
    if content is None:
        raise tarfile.TarError(f"{one_line(member.name)} is no file")
    return content


@contextlib.contextmanager
def readable(source: str, where: str = "") -> Iterator[None]:
    """Inside, errors of an archive, or of a file `where` in a source, become a DataError of one line."""
    try:
        yield
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"{source}: not a readable archive ({_reason(error)}); download it again") from error
    except RuntimeError as error:  # zipfile raises it for encryption or compression (such as Deflate64) it does not support
        raise DataError(f"{source}: cannot be unpacked ({_reason(error)}); unpack it by hand and name the folder") from error
    except MemoryError as error:
        raise DataError(
            f"{source}: needs more memory to be unpacked than there is; unpack it by hand and name the folder"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{where or source}: cannot be read ({error.strerror or error})") from error


def _reason(error: Exception) -> str:
    """The first of tarfile's many lines, or the error's cause if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")


def too_large(source: str, limit: float) -> DataError:
    """The error for a source that holds more than fetch.largest-gb."""
    return DataError(f"{source}: holds more than {limit:g} GB; if that is right, --set fetch.largest-gb=... allows more")


_downloads: weakref.WeakKeyDictionary[Store, dict[str, tuple[Path, str]]] = weakref.WeakKeyDictionary()
"""What this process downloaded, with its SHA-256: training and readout videos come in one archive."""
_one_at_a_time = threading.Lock()


def local_copy(source: str, job: Job, option: str) -> tuple[Path, str]:
    """A path as it is, or the download of a URL; with its SHA-256. `option` is the option that named it, for errors.

    Raises ConfigError if it does not exist, DataError if another SHA-256 was expected, TransientError if it cannot be
    downloaded now.
    """
    shown = shown_source(source)
    if "://" not in source:
        path = Path(shown)
        if not path.is_file():
            raise ConfigError(f"{shown}: there is no such {'directory' if option == 'fetch.root' else 'file'} ({option})")
        with readable(shown):
            sha256 = sha256_of(path)
    else:
        with _one_at_a_time:
            kept = _downloads.setdefault(job.output.store, {})
            if source not in kept:
                folder = job.output.store.scratch()
                remove = weakref.finalize(job.output.store, shutil.rmtree, folder, ignore_errors=True)
                try:
                    path = folder / "download"
                    persistently(source, partial(_download, source, path, job), say)
                except BaseException:
                    remove()
                    raise
                kept[source] = path, sha256_of(path)
            path, sha256 = kept[source]
    require_expected(source, sha256)
    return path, sha256


def require_expected(source: str, sha256: str) -> None:
    """Raise DataError unless this is the SHA-256 that the configuration gives for the source, if any."""
    if (expected := expected_sha256(source)) not in (None, sha256):
        raise DataError(f"{shown_source(source)}: its SHA-256 is {sha256}, not {expected} as the configuration says")


def forget_downloads(store: Store) -> None:
    """Remove what was downloaded for a store: the source may be fixed by the next run."""
    for path, _ in _downloads.pop(store, {}).values():
        shutil.rmtree(path.parent, ignore_errors=True)


def _download(source: str, path: Path, job: Job) -> None:
    """Download, resuming where the existing file ends."""
    have = path.stat().st_size if path.exists() else 0
    try:
        response = opened(source, have)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        path.unlink()  # the server's file is no longer the one we have a part of
        raise TransientError(f"the server answers {error.code} {said(error.reason)}") from error
    with response:
        if response.status != 206:
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            path.unlink()
            raise TransientError("the server sent a different part than requested")
        limit = job.config.largest_gb * 1e9
        total = have + int(response.headers.get("Content-Length") or 0)
        with (
            path.open("ab" if have else "wb") as file,
            progress(PurePosixPath(urlsplit(source).path).name, total, "bytes", have) as bar,
        ):
            while chunk := response.read(1 << 20):
                job.stop.check()
                have += len(chunk)
                if max(have, total) > limit:
                    raise too_large(shown_source(source), job.config.largest_gb)
                file.write(chunk)
                bar.advance(len(chunk))
    if total and path.stat().st_size < total:
        raise TransientError(f"the connection ended at {path.stat().st_size} of {total} bytes")
