"""`frames`: the first frames of every video of a subset, resized, as JPEG in shards, with labels and split in the index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from physion.config.schema import Frames, Subset
from physion.data.layout import Video, hold_out, read_subset
from physion.data.shards import encode_frames, in_groups, index_item, shard_name, write_shard
from physion.data.video import read_frames
from physion.errors import DataError
from physion.stages import Job
from physion.stages.bulk import Result, Work, publish_index, run_parts
from physion.store.artifacts import Artifact


def run(job: Job) -> dict[str, Any]:
    """Read the layout strictly, decode every video, split."""
    config: Frames = job.config
    dataset = job.inputs["dataset"]
    subset: Subset = job.params["subset"]  # type: ignore[assignment]
    videos = read_subset(subset, dataset.names(), lambda name: dataset.path(name).read_bytes())
    if subset != "test":
        videos = hold_out(videos, config.heldout)
    work = [
        Work(f"{number:05d}", len(group), (dataset, group, config, job.output.scratch / shard_name(number)))
        for number, group in enumerate(in_groups(videos, config.videos_per_shard))
    ]
    items = run_parts(job, work, decode_shard, workers=config.workers)
    publish_index(job, items)
    metrics: dict[str, Any] = {"videos": len(items), "heldout": sum(item["heldout"] for item in items)}
    if subset != "training":
        metrics["positive"] = round(sum(item["label"] for item in items) / len(items), 3)
    return metrics


def decode_shard(dataset: Artifact, videos: list[Video], config: Frames, path: Path) -> Result:
    """One shard of decoded videos; a line for every video that cannot be read."""
    torch.set_num_threads(1)
    result = Result()
    tensors = {}
    for video in videos:
        try:
            frames = resize(read_frames(dataset.path(video.path), config.frames), config.image_size)
        except DataError as error:
            result.problems.append(str(error))
            continue
        for kind, array in encode_frames(frames, config.jpeg_quality).items():
            tensors[f"{video.name}/{kind}"] = array
        result.items.append(index_item(video, path.name))
    if not result.problems:
        write_shard(path, tensors)
        result.files[path.name] = path
    return result


def resize(frames_THW3: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize without antialiasing, as OpenCV's INTER_LINEAR: uint8 [T, size, size, 3]."""
    if frames_THW3.shape[1:3] == (size, size):
        return frames_THW3
    images = torch.from_numpy(frames_THW3).permute(0, 3, 1, 2).float()
    resized = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=False)
    return resized.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
