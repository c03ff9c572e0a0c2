"""`simulate`: a dataset of PhysionSim videos, in Physion's own folders and label files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from physion.config.schema import SUBSETS, Simulate, Subset
from physion.data.layout import LABELS, label_key, video_path, write_labels
from physion.data.video import write_mp4
from physion.job import Job
from physion.simulation import SCENARIOS, make_clip
from physion.stages.bulk import Result, Work, run_parts


def run(job: Job) -> dict[str, Any]:
    """Make every video of the subset, then its label file."""
    config: Simulate = job.config
    subset: Subset = job.params["subset"]  # type: ignore[assignment]
    count = job.settings["videos"]
    work = []
    # Round-robin over scenarios; number // 8 is the video's index within its scenario.
    for first in range(0, count, config.videos_per_part):
        numbers = range(first, min(first + config.videos_per_part, count))
        work.append(Work(f"{first:05d}-{len(numbers)}", len(numbers), (config, subset, numbers, job.output.scratch)))
    items = run_parts(job, work, make_videos, workers=config.workers)
    metrics: dict[str, Any] = {"videos": len(items), "simulated": True}
    if subset in LABELS:
        path = job.output.scratch / "labels.csv"
        path.write_bytes(write_labels(sorted((label_key(subset, item["name"]), item["label"]) for item in items)))
        job.output.add_part("labels", {LABELS[subset]: path})
        metrics["positive"] = round(sum(item["label"] for item in items) / len(items), 3)
    return metrics


def make_videos(config: Simulate, subset: Subset, numbers: range, scratch: Path) -> Result:
    """Simulate, render and encode some videos of a subset."""
    result = Result()
    for number in numbers:
        index, scenario = number // len(SCENARIOS), SCENARIOS[number % len(SCENARIOS)]
        # Subsets must never share a scene: each draws from a seed of its own.
        seed = config.seed * len(SUBSETS) + SUBSETS.index(subset)
        clip = make_clip(scenario, seed, index, size=config.image_size, antialias=config.antialias)
        name = video_path(subset, scenario, f"{scenario.lower()}_{subset}_s{config.seed}", index)
        local = scratch / Path(name).name
        write_mp4(local, clip.frames)
        result.files[name] = local
        result.items.append({"name": Path(name).stem, "label": clip.label})
    return result
