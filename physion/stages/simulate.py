"""`simulate`: a dataset of PhysionSim videos, in Physion's own folders and label files, and the ground truth about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from physion.config.schema import SUBSETS, Simulate, Subset
from physion.data.layout import LABELS, Video, label_key, video_path, write_labels
from physion.data.shards import index_bytes, index_item
from physion.data.truth import TRUTH, Body, FirstContact, Scene, write_truth
from physion.data.video import write_mp4
from physion.job import Job
from physion.simulation import SCENARIOS, make_clip
from physion.stages.bulk import Result, Work, run_parts

if TYPE_CHECKING:
    from physion.simulation.truth import Truth


def run(job: Job) -> dict[str, Any]:
    """Make every video of the subset, then its label file."""
    config: Simulate = job.config
    subset: Subset = job.params["subset"]  # type: ignore[assignment]
    count, with_truth = job.settings["videos"], job.settings["truth"]
    work = []
    # Round-robin over scenarios; number // 8 is the video's index within its scenario.
    for first in range(0, count, config.videos_per_part):
        numbers = range(first, min(first + config.videos_per_part, count))
        arguments = (config, subset, numbers, with_truth, job.output.scratch)
        work.append(Work(f"{first:05d}-{len(numbers)}", len(numbers), arguments))
    items = run_parts(job, work, make_videos, workers=config.workers)
    metrics: dict[str, Any] = {"videos": len(items), "simulated": True}
    if subset in LABELS:
        path = job.output.scratch / "labels.csv"
        path.write_bytes(write_labels(sorted((label_key(subset, item["name"]), item["label"]) for item in items)))
        job.output.add_part("labels", {LABELS[subset]: path})
        metrics["positive"] = round(sum(item["label"] for item in items) / len(items), 3)
    if with_truth:
        path = job.output.scratch / TRUTH
        path.write_bytes(index_bytes(items))
        job.output.add_part("truth", {TRUTH: path})
    return metrics


def make_videos(config: Simulate, subset: Subset, numbers: range, with_truth: bool, scratch: Path) -> Result:
    """Simulate, render and encode some videos of a subset."""
    result = Result()
    for number in numbers:
        index, scenario = number // len(SCENARIOS), SCENARIOS[number % len(SCENARIOS)]
        # Subsets must never share a scene: each draws from its own seed.
        seed = config.seed * len(SUBSETS) + SUBSETS.index(subset)
        clip = make_clip(scenario, seed, index, size=config.image_size, antialias=config.antialias, with_truth=with_truth)
        name = video_path(subset, scenario, f"{scenario.lower()}_{subset}_s{config.seed}", index)
        local = scratch / Path(name).name
        write_mp4(local, clip.frames)
        result.files[name] = local
        video = Video(Path(name).stem, name, scenario, clip.label)
        item = index_item(video, f"truth/{video.name}.safetensors")
        if clip.truth is not None:
            result.files[item["shard"]] = local.with_suffix(".safetensors")
            arrays = {"states": clip.truth.states, "picture": clip.truth.picture}
            write_truth(result.files[item["shard"]], video.name, clip.truth.masks, arrays)
            item["scene"] = scene_of(clip.truth).model_dump(mode="json")
        result.items.append(item)
    return result


def scene_of(truth: Truth) -> Scene:
    """The entry for a video in `truth.json`."""
    bodies = zip(truth.bodies, truth.shapes, truth.sizes.astype(float).round(4).tolist(), strict=True)
    return Scene(
        bodies=tuple(Body(name=name, shape=shape, size=size) for name, shape, size in bodies),
        contacts=tuple(FirstContact(bodies=pair, frame=frame) for pair, frame in truth.contacts.items()),
    )
