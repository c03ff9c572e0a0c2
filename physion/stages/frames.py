"""`frames`: the first frames of every video of a subset, resized, as JPEG in shards, with labels and split in the index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from physion.config.schema import Frames, Subset
from physion.data.layout import Video, read_subset, require_both_outcomes
from physion.data.shards import FRAME_KINDS, encode_frames, in_groups, index_item, shard_name, write_shard
from physion.data.split import hold_out
from physion.data.video import FPS, frame_rate, read_frames
from physion.errors import DataError
from physion.job import Job
from physion.progress import say
from physion.stages.bulk import Result, Work, part_name, publish_index, run_parts, working_on
from physion.store.artifacts import Artifact


def run(job: Job) -> dict[str, Any]:
    """Read the layout strictly, decode every video, split."""
    config: Frames = job.config
    dataset = job.inputs["dataset"]
    subset: Subset = job.params["subset"]  # type: ignore[assignment]
    videos = read_subset(subset, dataset.names(), lambda name: dataset.path(name).read_bytes())
    if subset != "test":
        videos = hold_out(videos, config.heldout)
    learned = [video for video in videos if not video.heldout]
    if not learned:
        raise DataError(f"all {len(videos)} {subset} videos are held out, and none is left to learn from: there are too few")
    require_both_outcomes(learned, f"{subset} videos" + " that are not held out" * (subset == "readout"))
    if subset == "readout" and len({video.label for video in videos if video.heldout}) < 2:
        say("the held-out readout videos do not have both outcomes: thresholds stay at 0.5 instead of being chosen")
    digests = {record.name: record.sha256 for record in dataset.manifest.files}
    work = []
    for number, group in enumerate(in_groups(videos, config.videos_per_shard)):
        part = part_name(number, [[asdict(video), digests[video.path]] for video in group])
        work.append(Work(part, len(group), (dataset, group, config, job.output.scratch / shard_name(part))))
    try:
        items = run_parts(job, work, decode_shard, workers=config.workers)
    except DataError as error:
        remake = f"physion stage {dataset.manifest.stage} --subset {subset} --force"
        again = f"fix the source, run `{remake}`, then this command again; videos decoded so far are kept"
        raise DataError(f"{error}\n{again}") from error
    publish_index(job, items)
    metrics: dict[str, Any] = {"videos": len(items), "heldout": sum(item["heldout"] for item in items)}
    if others := [f"{item['name']} ({item['fps']})" for item in items if "fps" in item]:
        metrics["other_rates"] = len(others)
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        say(
            f"{job.instance}: {len(others)} of {len(items)} videos do not have {FPS} frames per second: {shown}. Their frames "
            f"are counted like all others, as in the published code, so {config.frames} of them span a different time"
        )
    if subset != "training":
        metrics["positive"] = round(sum(item["label"] for item in items) / len(items), 3)
    return metrics


def decode_shard(dataset: Artifact, videos: list[Video], config: Frames, path: Path) -> Result:
    """One shard of decoded videos; one line for every video that cannot be read."""
    result = Result()

    def decoded() -> Iterator[tuple[str, np.ndarray]]:
        for video in videos:
            try:
                working_on(f"{video.name}.mp4")
                frames = read_frames(dataset.path(video.path), config.frames, config.image_size)
                rate = frame_rate(dataset.path(video.path))
            except DataError as error:
                result.problems.append(str(error))
                continue
            for kind, array in encode_frames(frames, config.jpeg_quality).items():
                yield f"{video.name}/{kind}", array
            item = index_item(video, path.name)
            result.items.append(item if rate in (FPS, None) else item | {"fps": rate})

    dataset.prefetch([video.path for video in videos], at_once=8)  # they are small
    write_shard(path, [f"{video.name}/{kind}" for video in videos for kind in FRAME_KINDS], decoded())
    if not result.problems:
        result.files[path.name] = path
    return result
