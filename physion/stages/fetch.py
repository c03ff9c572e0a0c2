"""`fetch`: the official Physion videos, from a directory or from the published archives, whatever folders are above them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import urlsplit

from physion.config.schema import Fetch, Subset, shown_source
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
from physion.data.sources import (
    Member,
    archive_members,
    folder_members,
    forget_downloads,
    local_copy,
    readable,
    require_expected,
    too_large,
)
from physion.errors import DataError, TransientError
from physion.job import Job
from physion.store.keys import LONGEST_NAME, is_key, one_line

FILES_PER_PART = 256
GLITCHY_NAMES = ("glitchy_stimuli.txt", "manual_stim_evaluation_glitchy_test_stims.txt")  # ours, and the authors'
SHOWN_FOLDERS = 8
LARGEST_TEXT = 50 * 10**6  # bytes of a label file, which is read into memory; the official ones have under one million


@dataclass
class Found:
    """What was found of a subset. `where` is a path, prefixed with its source."""

    subset: Subset
    given: str = ""
    """The label file that the configuration names."""
    videos: dict[str, str] = field(default_factory=dict)
    """Place in the layout -> where."""
    twice: list[tuple[str, str, str]] = field(default_factory=list)
    """A place, and where its two candidates are."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Label files and lists of glitchy stimuli: where -> content."""
    others: Counter[str] = field(default_factory=Counter)
    """Folder -> number of files in it that are ignored."""
    sha256: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every archive, label file and list."""

    def require_videos(self) -> None:
        """Raise DataError unless there are videos, each only once."""
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
                f"such as {those[0][1]} and {those[0][2]}: keep one of each"
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
        """Where the list of glitchy stimuli among the videos is; empty if there is none."""
        lists = [where for where in self.texts if where.rsplit("/", 1)[1] in GLITCHY_NAMES]
        if len(lists) > 1:
            found = f"{len(lists)} lists of glitchy stimuli: {', '.join(lists)}"
            raise DataError(f"{found}; leave one, or name it in fetch.glitchy")
        return "".join(lists)


def run(job: Job) -> dict[str, Any]:
    """Copy every video of the subset, and its label file, into the artifact; check them strictly before they are published."""
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
        except DataError as error:  # with their names in the source
            text = str(error)
            for place, where in texts.items():
                text = text.replace(place, where)
            raise DataError(text) from error
    except BaseException as error:
        forget_downloads(job.output.store)
        if isinstance(error, DataError):
            job.output.discard()  # otherwise a repaired source would not be read again
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
    """Choose the list of glitchy stimuli; returns the name to show for it."""
    if choice == "keep":
        return "fetch.glitchy=keep"
    where = found.glitchy_list() if choice == "leave-out" else shown_source(choice)
    if choice != "leave-out":
        path, _ = local_copy(choice, job, "fetch.glitchy, which is leave-out, keep, or a list")
        with path.open("rb") as stream:
            found.texts[where] = _text(stream, where)
    elif not where:
        where = "the authors' list, as shipped"
        found.texts[where] = shipped_glitchy()
    texts[GLITCHY] = where
    return where


def _text(stream: IO[bytes], where: str) -> bytes:
    """The content of a label file or another list."""
    data = stream.read(LARGEST_TEXT + 1)
    if len(data) > LARGEST_TEXT:
        raise DataError(f"{where}: has more than {LARGEST_TEXT / 1e6:g} MB, which no list of videos has")
    return data


def _take(job: Job, part: str, source: str, found: Found) -> None:
    """Import what a source holds of the subset."""
    option = "fetch.archives" if job.config.root is None else "fetch.root"
    name = PurePosixPath(urlsplit(source).path if "://" in source else shown_source(source)).name
    shown = shown_source(source)
    if name.lower().endswith(".csv"):
        if found.subset in LABELS:
            if found.given:
                raise DataError(f"two label files for the {found.subset} videos: {found.given} and {shown}; name one")
            path, found.sha256[shown] = local_copy(source, job, option)
            with path.open("rb") as stream:
                found.given, found.texts[shown] = shown, _text(stream, shown)
    elif "://" not in source and Path(source).is_dir():
        _store(job, part, shown, folder_members(Path(source)), found)
    elif finished := job.output.parts().get(part):
        (known,) = finished.items
        require_expected(source, known["sha256"])
        found.videos |= known["videos"]
        found.texts |= {where: text.encode("latin-1") for where, text in known["texts"].items()}
        found.sha256[shown] = known["sha256"]
        _keep(job, part)
    else:
        before = set(found.videos), set(found.texts)
        archive, found.sha256[shown] = local_copy(source, job, option)
        _store(job, part, shown, archive_members(archive, shown), found)
        facts = {
            "videos": {place: where for place, where in found.videos.items() if place not in before[0]},
            "texts": {where: data.decode("latin-1") for where, data in found.texts.items() if where not in before[1]},
            "sha256": found.sha256[shown],
        }
        if not found.twice:
            job.output.add_part(part, {}, [facts])


def _keep(job: Job, part: str) -> dict[str, str]:
    """Include what an earlier run stored from a source in the artifact; returns the SHA-256 of its videos by place."""
    groups = [name for name in job.output.parts() if name.startswith(f"{part}-")]
    return {record.name: record.sha256 for name in groups for record in job.output.keep(name).files}


def _store(job: Job, part: str, shown: str, members: Iterator[Member], found: Found) -> None:
    """Store the videos of a source in groups, each with a record."""
    known = _keep(job, part)
    number = sum(name.startswith(f"{part}-") for name in job.output.parts())
    group: dict[str, Path] = {}
    taken, limit = 0, job.config.largest_gb
    names = {PurePosixPath(LABELS.get(found.subset, "")).name, *(GLITCHY_NAMES if found.subset == "test" else ())}
    for path, opened in members:
        job.stop.check()
        where, placed = one_line(f"{shown}/{path}"), place_of(path)
        if placed is not None and placed[0] == found.subset:
            place = placed[1]
            if not is_key(place):
                raise DataError(f"{where}: a name in it is longer than {LONGEST_NAME} bytes, or cannot be printed; rename it")
            if place in found.videos:
                found.twice.append((place, found.videos[place], where))
                continue
            found.videos[place] = where
            if place in known:
                with readable(shown, where), opened() as stream:
                    if hashlib.file_digest(cast(Any, stream), "sha256").hexdigest() == known[place]:
                        del known[place]
                continue
            copy = job.output.scratch / f"{len(group)}.mp4"
            with readable(shown, where), opened() as stream, copy.open("wb") as file:
                while chunk := stream.read(1 << 20):
                    taken += len(chunk)
                    if taken > limit * 1e9:
                        raise too_large(shown, limit)
                    file.write(chunk)
            group[place] = copy
            if len(group) == FILES_PER_PART:
                job.output.add_part(f"{part}-{number:05d}", group)
                number, group = number + 1, {}
        elif PurePosixPath(path).name in names and not any(folder.startswith(".") for folder in path.split("/")):
            if where in found.texts:
                raise DataError(f"{where} is there twice: keep one of the two")
            with readable(shown, where), opened() as stream:
                found.texts[where] = _text(stream, where)
        else:
            found.others[where.rpartition("/")[0]] += 1
    if group:
        job.output.add_part(f"{part}-{number:05d}", group)
    if known:  # removed, or replaced since
        job.output.discard()
        raise TransientError(f"{shown}: has changed since an earlier run that was interrupted; run the same command again")
