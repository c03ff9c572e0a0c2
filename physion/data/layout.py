"""Physion's own folders and label files, read strictly.

    PhysionTrainMP4s/<Scenario>_<training|readout>_MP4s/<name>_img.mp4
    PhysionTrainMP4s/readout_labels.csv
    PhysionTestMP4s/<Scenario>/mp4s-redyellow/<name>-redyellow_<nnnn>_img.mp4
    PhysionTestMP4s/labels.csv

This is the layout inside a dataset's artifact. In a source, the folder above the scenarios' may have any name or be missing
(`place_of`).

Both label files have an unnamed first column with the stimulus name and a column `ground truth outcome` (True or False).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from physion.config.schema import Subset
from physion.errors import DataError

LABELS: dict[Subset, str] = {"readout": "PhysionTrainMP4s/readout_labels.csv", "test": "PhysionTestMP4s/labels.csv"}
GLITCHY = "PhysionTestMP4s/glitchy_stimuli.txt"
OUTCOME = "ground truth outcome"
_TRAIN = re.compile(r"(?s:.+/)?(?P<scenario>[^/]+)_(?P<subset>training|readout)_MP4s/(?P<name>[^/]+)\.(?i:mp4)")
_TEST = re.compile(r"(?s:.+/)?(?P<scenario>[^/]+)/mp4s-redyellow/(?P<name>[^/]+)\.(?i:mp4)")
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Video:
    """One video: `name` is its file name without `.mp4`, `label` whether red touches yellow (None in training)."""

    name: str
    path: str
    scenario: str
    label: bool | None = None
    heldout: bool = False


def video_path(subset: Subset, scenario: str, stimulus: str, number: int) -> str:
    """Where Physion's layout puts a video."""
    if subset == "test":
        return f"PhysionTestMP4s/{scenario}/mp4s-redyellow/{stimulus}-redyellow_{number:04d}_img.mp4"
    return f"PhysionTrainMP4s/{scenario}_{subset}_MP4s/{stimulus}_{number:04d}_img.mp4"


def place_of(path: str) -> tuple[Subset, str] | None:
    """The subset of a video, judged by its scenario's folders, and its place in the layout; None for any other file.

    Hidden files do not count: archives made on a Mac hold `._<name>` beside each file. Nor does `..`, which would lead out.
    """
    parts = PurePosixPath(path).parts
    if any(part.startswith(".") for part in parts):
        return None
    path = "/".join(parts)
    if match := _TRAIN.fullmatch(path):
        subset: Subset = "training" if match["subset"] == "training" else "readout"
        return subset, f"PhysionTrainMP4s/{match['scenario']}_{subset}_MP4s/{match['name']}.mp4"
    if match := _TEST.fullmatch(path):
        return "test", f"PhysionTestMP4s/{match['scenario']}/mp4s-redyellow/{match['name']}.mp4"
    return None


def home_of(path: str) -> str:
    """The folder that holds the scenarios' folders, from the path of a video."""
    return path.rsplit("/", 3 if path.split("/")[-2] == "mp4s-redyellow" else 2)[0]


def shipped_glitchy() -> bytes:
    """The test stimuli that the authors leave out: 29 lines, 26 of which match one of the 1,200 official videos each."""
    return (resources.files("physion.data") / "glitchy_stimuli.txt").read_bytes()


def label_key(subset: Subset, name: str) -> str:
    """The name of a video in the label file of its subset."""
    return name.removesuffix("_img") if subset == "readout" else name.replace("-redyellow", "")


def read_subset(subset: Subset, files: Iterable[str], read: Callable[[str], bytes]) -> list[Video]:
    """The videos of a subset, sorted by scenario and name.

    `files` are all paths of the dataset, `read` returns the bytes of one. Test stimuli that the authors found glitchy are left
    out if their list (`PhysionTestMP4s/glitchy_stimuli.txt`) is there.

    Raises DataError with one line for every missing or superfluous label, duplicate name and malformed row.
    """
    files = set(files)
    videos = [v for path in sorted(files) if (v := _video(subset, path))]
    if not videos:
        where = (
            "PhysionTestMP4s/<Scenario>/mp4s-redyellow" if subset == "test" else f"PhysionTrainMP4s/<Scenario>_{subset}_MP4s"
        )
        raise DataError(f"the dataset holds no {subset} videos ({where}/*.mp4)")
    counts = Counter(video.name for video in videos)
    problems = [f"{name}.mp4: {count} videos have this name" for name, count in sorted(counts.items()) if count > 1]
    if subset in LABELS:
        path = LABELS[subset]
        if path not in files:
            raise DataError("\n".join([*problems, f"{path}: the label file is missing"]))
        labels, wrong = parse_labels(path, read(path))
        problems += wrong
        keys = {video.name: label_key(subset, video.name) for video in videos}
        problems += [f"{video.path}: no label in {path}" for video in videos if keys[video.name] not in labels]
        known = set(keys.values())
        problems += [f"{path}: label '{key}' belongs to no video" for key in labels if key not in known]
        videos = [replace(video, label=labels.get(keys[video.name])) for video in videos]
    raise_problems(problems)
    if subset == "test" and GLITCHY in files:
        glitchy = _lines(GLITCHY, read(GLITCHY))
        videos = [v for v in videos if not any(bad in v.path.replace("-redyellow", "") for bad in glitchy)]
        if not videos:
            raise DataError(f"{GLITCHY}: its {len(glitchy)} lines leave no test video")
    return videos


def require_both_outcomes(videos: Sequence[Video], which: str) -> None:
    """Raise DataError if all labeled videos have the same outcome: they can neither train nor test anything."""
    outcomes = {video.label for video in videos} - {None}
    if len(outcomes) == 1:
        raise DataError(
            f"the outcome of all {len(videos)} {which} is {outcomes.pop()}: videos with the other outcome are needed"
        )


def _lines(path: str, data: bytes) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error})") from error
    if "\0" in text:
        raise DataError(f"{path}: not UTF-8 text (it holds zero bytes)")
    return [line.strip() for line in text.splitlines() if line.strip()]


def left_out(metrics: Mapping[str, Any]) -> str:
    """How many test videos a dataset leaves out, and by which list, from its manifest's metrics; empty if it has none."""
    if "left_out" not in metrics:
        return ""
    return f"{metrics['left_out']} of {metrics['left_out'] + metrics['videos']:,} left out ({metrics['glitchy']})"


def parse_labels(path: str, data: bytes) -> tuple[dict[str, bool], list[str]]:
    """Labels by stimulus name, and one line for each malformed row.

    Raises DataError if the file is not a CSV with the two columns.
    """
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        header = next(rows, [])
        lines = list(rows)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from error
    if not header or header[0] not in ("", "Unnamed: 0"):
        raise DataError(f"{path}: the first column must be unnamed and hold stimulus names, not '{''.join(header[:1])}'")
    if OUTCOME not in header:
        raise DataError(f"{path}: no column '{OUTCOME}' (columns: {', '.join(header[1:]) or 'none'})")
    column = header.index(OUTCOME)
    labels: dict[str, bool] = {}
    problems = []
    for number, row in enumerate(lines, 2):
        if not row:
            continue
        value = row[column] if len(row) > column else ""
        if value not in ("True", "False"):
            problems.append(f"{path} line {number}: the outcome of '{row[0]}' is '{value}', not True or False")
        elif row[0] in labels:
            problems.append(f"{path} line {number}: a second label for '{row[0]}'")
        else:
            labels[row[0]] = value == "True"
    return labels, problems


def write_labels(labels: Sequence[tuple[str, bool]]) -> bytes:
    """A label file of (stimulus name, outcome) rows."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", OUTCOME])
    writer.writerows((name, str(label)) for name, label in labels)
    return text.getvalue().encode()


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one DataError that lists all problems, one per line; do nothing if there are none."""
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        lines = [*problems[:SHOWN_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]
        raise DataError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in the dataset:\n" + "\n".join(lines))


def _video(subset: Subset, path: str) -> Video | None:
    match = (_TEST if subset == "test" else _TRAIN).fullmatch(path)
    if match is None or (subset != "test" and match["subset"] != subset):
        return None
    return Video(match["name"], path, match["scenario"])
