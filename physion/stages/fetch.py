"""`fetch`: the official Physion videos, from a directory or from the published archives, whatever the folders above them."""

from __future__ import annotations

import base64
import contextlib
import errno
import gzip
import hashlib
import http.client
import lzma
import os
import shutil
import ssl
import struct
import tarfile
import threading
import time
import urllib.error
import urllib.request
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import certifi

from physion.config.schema import Fetch, Subset, expected_sha256, shown_source
from physion.data.layout import (
    GLITCHY,
    LABELS,
    home_of,
    place_of,
    raise_problems,
    read_subset,
    require_both_outcomes,
    shipped_glitchy,
)
from physion.errors import ConfigError, DataError, TransientError
from physion.job import Job
from physion.progress import progress, say
from physion.store.checksums import sha256_of
from physion.store.protocol import Store

FILES_PER_PART = 256
ATTEMPTS = 5
GLITCHY_NAMES = ("glitchy_stimuli.txt", "manual_stim_evaluation_glitchy_test_stims.txt")  # ours, and the authors'
AGAIN = (408, 429)  # answers of a server, beside those from 500 on, after which another attempt may do better
SHOWN_FOLDERS = 8

Member = tuple[str, Callable[[], IO[bytes]]]
_ARCHIVE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, struct.error)


@dataclass
class Found:
    """What was found of a subset. `where` is a path with its source in front."""

    subset: Subset
    given: str = ""
    """The label file that the configuration names."""
    videos: dict[str, str] = field(default_factory=dict)
    """Place in the layout -> where."""
    twice: list[tuple[str, str, str]] = field(default_factory=list)
    """A place, and where the two candidates for it are."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Label files and lists of glitchy stimuli: where -> content."""
    others: Counter[str] = field(default_factory=Counter)
    """Folder -> how many files in it are passed over."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of every archive, label file and list."""

    def require_videos(self) -> None:
        """Raise DataError unless there are videos, each once."""
        if not self.videos:
            wanted = "<Scenario>/mp4s-redyellow" if self.subset == "test" else f"<Scenario>_{self.subset}_MP4s"
            folders = [f"{folder} ({count:,} files)" for folder, count in sorted(self.others.items())]
            more = f" and {len(folders) - SHOWN_FOLDERS} more folders" if len(folders) > SHOWN_FOLDERS else ""
            found = (", ".join(folders[:SHOWN_FOLDERS]) or "nothing") + more
            raise DataError(f"the dataset holds no {self.subset} videos (.../{wanted}/*.mp4); found: {found}")
        pairs: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
        for one in self.twice:
            pairs.setdefault((home_of(one[1]), home_of(one[2])), []).append(one)
        raise_problems(
            [
                f"{len(those):,} {self.subset} video{'s are' if len(those) > 1 else ' is'} there twice, "
                f"such as {those[0][1]} and {those[0][2]}: leave one of each"
                for those in pairs.values()
            ]
        )

    def label_file(self) -> str:
        """Where the label file is: as configured, else beside the scenarios' folders, else the only one elsewhere."""
        name = PurePosixPath(LABELS[self.subset]).name
        named = [where for where in self.texts if where.rsplit("/", 1)[1] == name]
        homes = {home_of(where) for where in self.videos.values()}
        choice = [self.given] * bool(self.given) or [w for w in named if w.rsplit("/", 1)[0] in homes] or named
        if len(choice) > 1:
            files = f"{len(choice)} files may hold the {self.subset} labels: {', '.join(choice)}"
            raise DataError(f"{files}; leave one, or name it in fetch.archives")
        if not choice:
            known = Fetch().archives[self.subset][1:]
            hint = f"; the official one is {known[0]}" if known else ""
            missing = f"{LABELS[self.subset]}: the label file is missing"
            raise DataError(f"{missing}; no {name} was found in {', '.join(sorted(homes))}{hint}")
        return choice[0]

    def glitchy_list(self) -> str:
        """Where the list of glitchy stimuli among the videos is; empty when there is none."""
        lists = [where for where in self.texts if where.rsplit("/", 1)[1] in GLITCHY_NAMES]
        if len(lists) > 1:
            found = f"{len(lists)} lists of glitchy stimuli: {', '.join(lists)}"
            raise DataError(f"{found}; leave one, or name it in fetch.glitchy")
        return "".join(lists)


def run(job: Job) -> dict[str, Any]:
    """Copy every video of the subset, and its label file, into the artifact; read them strictly before they are published."""
    subset: Subset = job.params["subset"]  # type: ignore[assignment]
    config: Fetch = job.config
    found, texts = Found(subset), dict[str, str]()  # place in the layout -> where
    metrics: dict[str, Any] = {"simulated": False}
    try:
        for number, source in enumerate(config.archives[subset] if config.root is None else [config.root]):
            _take(job, f"source-{number}", source, found)
        found.require_videos()
        if subset in LABELS:
            texts[LABELS[subset]] = found.label_file()
        if subset == "test":
            metrics["glitchy"] = _glitchy(job, config.glitchy, found, texts)
        read = {place: found.texts[where] for place, where in texts.items()}
        try:
            videos = read_subset(subset, [*found.videos, *read], read.__getitem__)
            require_both_outcomes(videos, f"{subset} videos")
        except DataError as error:  # by the names that they have at the source
            text = str(error)
            for place, where in texts.items():
                text = text.replace(place, where)
            raise DataError(text) from error
    except BaseException as error:
        for path, _ in _downloads.pop(job.output.store, {}).values():
            shutil.rmtree(path.parent, ignore_errors=True)
        if isinstance(error, DataError):
            job.output.discard()  # or a repaired source would not be looked at again
        raise
    if texts:
        scratch = {place: job.output.scratch / PurePosixPath(place).name for place in texts}
        for place, path in scratch.items():
            path.write_bytes(read[place])
        job.output.add_part("texts", scratch)
        found.sha256 |= {where: hashlib.sha256(found.texts[where]).hexdigest() for where in texts.values()}
    if subset == "test":
        metrics["left_out"] = len(found.videos) - len(videos)
    return {"videos": len(videos)} | metrics | {"sha256": found.sha256}


def _glitchy(job: Job, choice: str, found: Found, texts: dict[str, str]) -> str:
    """Choose the list of glitchy stimuli; the name that it goes by."""
    if choice == "keep":
        return "fetch.glitchy=keep"
    where = found.glitchy_list() if choice == "leave-out" else shown_source(choice)
    if choice != "leave-out":
        found.texts[where] = _local(choice, job, "fetch.glitchy, which is leave-out, keep, or a list")[0].read_bytes()
    elif not where:
        where = "the authors' list, as shipped"
        found.texts[where] = shipped_glitchy()
    texts[GLITCHY] = where
    return where


def _take(job: Job, part: str, source: str, found: Found) -> None:
    """Bring in what a source holds of the subset."""
    option = "fetch.archives" if job.config.root is None else "fetch.root"
    name = PurePosixPath(urlsplit(source).path if "://" in source else shown_source(source)).name
    shown = shown_source(source)
    if name.lower().endswith(".csv"):
        if found.subset in LABELS:
            if found.given:
                raise DataError(f"two label files for the {found.subset} videos: {found.given} and {shown}; name one")
            path, found.sha256[shown] = _local(source, job, option)
            found.given, found.texts[shown] = shown, path.read_bytes()
    elif "://" not in source and Path(source).is_dir():
        _store(job, part, shown, _folder(Path(source)), found)
    elif finished := job.output.parts().get(part):
        (known,) = finished.items
        found.videos |= known["videos"]
        found.texts |= {where: text.encode("latin-1") for where, text in known["texts"].items()}
        found.sha256[shown] = known["sha256"]
        _keep(job, part)
    else:
        before = set(found.videos), set(found.texts)
        archive, found.sha256[shown] = _local(source, job, option)
        _store(job, part, shown, _members(archive, shown), found)
        facts = {
            "videos": {place: where for place, where in found.videos.items() if place not in before[0]},
            "texts": {where: data.decode("latin-1") for where, data in found.texts.items() if where not in before[1]},
            "sha256": found.sha256[shown],
        }
        if not found.twice:
            job.output.add_part(part, {}, [facts])


def _keep(job: Job, part: str) -> set[str]:
    """Make what an earlier run stored of a source part of the artifact; returns the places of its videos."""
    groups = [name for name in job.output.parts() if name.startswith(f"{part}-")]
    return {record.name for name in groups for record in job.output.keep(name).files}


def _store(job: Job, part: str, shown: str, members: Iterator[Member], found: Found) -> None:
    """Store the videos of a source in groups, each with a record."""
    known = _keep(job, part)
    number = sum(name.startswith(f"{part}-") for name in job.output.parts())
    group: dict[str, Path] = {}
    names = {PurePosixPath(LABELS.get(found.subset, "")).name, *(GLITCHY_NAMES if found.subset == "test" else ())}
    met: set[str] = set()
    for path, opened in members:
        job.stop.check()
        where, placed = f"{shown}/{path}", place_of(path)
        if placed is not None and placed[0] == found.subset:
            place = placed[1]
            if place in found.videos:
                found.twice.append((place, found.videos[place], where))
                continue
            found.videos[place] = where
            met.add(place)
            if place in known:
                continue
            copy = job.output.scratch / f"{len(group)}-{PurePosixPath(place).name}"
            with _readable(shown, where), opened() as stream, copy.open("wb") as file:
                shutil.copyfileobj(stream, file)
            group[place] = copy
            if len(group) == FILES_PER_PART:
                job.output.add_part(f"{part}-{number:05d}", group)
                number, group = number + 1, {}
        elif PurePosixPath(path).name in names and not any(folder.startswith(".") for folder in path.split("/")):
            with _readable(shown, where), opened() as stream:
                found.texts[where] = stream.read()
        else:
            found.others[where.rpartition("/")[0]] += 1
    if group:
        job.output.add_part(f"{part}-{number:05d}", group)
    if known - met:
        job.output.discard()
        raise TransientError(f"{shown}: has changed since an earlier run that was interrupted; run the same command again")


def _folder(root: Path) -> Iterator[Member]:
    """The files below a folder, also behind links; none twice where links lead to one folder in two ways."""
    seen = set()

    def failed(error: OSError) -> None:
        path = Path(error.filename)
        if path == root or place_of(f"{path.relative_to(root).as_posix()}/x.mp4"):
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error

    for folder, folders, names in os.walk(root, onerror=failed, followlinks=True):
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders.sort(key=lambda name, folder=folder: os.path.islink(os.path.join(folder, name)))  # type: ignore[misc]
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() and not path.exists():
                failed(FileNotFoundError(errno.ENOENT, "the link leads nowhere", path))
            yield path.relative_to(root).as_posix(), partial(_opened, path)


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _members(archive: Path, shown: str) -> Iterator[Member]:
    """The files of an archive."""
    with _readable(shown):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    if not entry.is_dir():
                        yield _plain(entry.filename), partial(file.open, entry)
            return
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() or member.islnk() or member.issym():
                    yield _plain(member.name), partial(_extract, tar, member)
            # A damaged header looks like the end of the archive; the checksum at its real end does not.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass


def _plain(name: str) -> str:
    return "/".join(PurePosixPath(name).parts).lstrip("/")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    try:
        content = tar.extractfile(member)
    except KeyError as error:  # of a link
        raise tarfile.TarError(f"{member.name} is a link to what the archive does not hold") from error
    if content is None:
        raise tarfile.TarError(f"{member.name} is no file")
    return content


@contextlib.contextmanager
def _readable(source: str, where: str = "") -> Iterator[None]:
    """What goes wrong with an archive, or with a file `where` in a source, said in one line."""
    try:
        yield
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"{source}: not a readable archive ({error}); download it again") from error
    except RuntimeError as error:  # zipfile's word for an encryption or compression (such as Deflate64) that it does not know
        raise DataError(f"{source}: cannot be unpacked ({error}); unpack it by hand and name the folder") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{where or source}: cannot be read ({error.strerror or error})") from error


_downloads: weakref.WeakKeyDictionary[Store, dict[str, tuple[Path, str]]] = weakref.WeakKeyDictionary()
"""What this process downloaded, with its SHA-256: training and readout videos come in one archive."""
_one_at_a_time = threading.Lock()


def _local(source: str, job: Job, option: str) -> tuple[Path, str]:
    """A path as it is, a URL downloaded; with its SHA-256. Raises DataError when another one was expected."""
    shown, expected = shown_source(source), expected_sha256(source)
    if "://" not in source:
        path = Path(shown)
        if not path.is_file():
            raise ConfigError(f"{shown}: there is no such {'directory' if option == 'fetch.root' else 'file'} ({option})")
        with _readable(shown):
            sha256 = sha256_of(path)
    else:
        with _one_at_a_time:
            kept = _downloads.setdefault(job.output.store, {})
            if source not in kept:
                folder = job.output.store.scratch()
                remove = weakref.finalize(job.output.store, shutil.rmtree, folder, ignore_errors=True)
                try:
                    _download_all(source, folder / "download", job)
                except BaseException:
                    remove()
                    raise
                kept[source] = folder / "download", sha256_of(folder / "download")
            path, sha256 = kept[source]
    if expected not in (None, sha256):
        raise DataError(f"{shown}: its SHA-256 is {sha256}, not {expected} as the configuration says")
    return path, sha256


def _download_all(source: str, path: Path, job: Job) -> None:
    """Download, going on where a broken connection stopped."""
    shown = shown_source(source)
    reason: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            say(f"{shown}: {reason}; attempt {attempt + 1} of {ATTEMPTS}")
            time.sleep(2 ** (attempt - 1))
        try:
            return _download(source, path, job)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and path.exists():
                path.unlink()  # the rest of another file than the one that is there now
            elif error.code < 500 and error.code not in AGAIN:
                raise ConfigError(f"{shown}: the server answers {error.code} {error.reason}") from error
            reason = error
        except http.client.InvalidURL as error:  # whose text may hold a part that is secret
            raise ConfigError(f"{shown}: not a valid address") from error
        except (OSError, http.client.HTTPException, TransientError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            reason = error
    raise TransientError(f"{shown}: cannot be downloaded ({reason}); run the same command again")


def _download(source: str, path: Path, job: Job) -> None:
    have = path.stat().st_size if path.exists() else 0
    url = urlsplit(source)
    user, _, host = url.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(url._replace(netloc=host, fragment="")))
    if have:
        request.add_header("Range", f"bytes={have}-")
    if user:  # not handed on to where the server may send us
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    trusted = ssl.create_default_context()  # the machine's certificates, and for images without any, certifi's
    trusted.load_verify_locations(certifi.where())
    with urllib.request.urlopen(request, timeout=60, context=trusted) as response:
        if response.status != 206:
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            path.unlink()
            raise TransientError("the server sends another part than it was asked for")
        total = have + int(response.headers.get("Content-Length") or 0)
        with path.open("ab" if have else "wb") as file, progress(PurePosixPath(url.path).name, total, "bytes", have) as bar:
            while chunk := response.read(1 << 20):
                job.stop.check()
                file.write(chunk)
                bar.advance(len(chunk))
    if total and path.stat().st_size < total:
        raise TransientError(f"the connection ended at {path.stat().st_size} of {total} bytes")
