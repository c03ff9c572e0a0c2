"""A study in Python, for notebooks: its results as numpy arrays, models and tables. `physion.open` opens one.

Shapes: T frames, S slots, D slot size, H W pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from physion.config.load import load_config
from physion.data.layout import Video
from physion.data.shards import FrameShards, Shards
from physion.errors import ConfigError, nearest
from physion.models.kinds import MODELS
from physion.pipeline.graph import Node, build_graph
from physion.pipeline.runner import published_input
from physion.stages import last_stage
from physion.store.artifacts import Artifact
from physion.store.cache import ShardCache, default_limit
from physion.store.uri import open_store


class PerVideo(Mapping[str, np.ndarray]):
    """One array per video of a subset, by name, read on access."""

    def __init__(self, shards: Shards, read: Callable[[str], np.ndarray]) -> None:
        self._names, self._read = [video.name for video in shards.videos], read

    def __getitem__(self, video: str) -> np.ndarray:
        if video not in self._names:
            raise KeyError(f"no video '{video}'{nearest(video, self._names)}")
        return self._read(video)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Study:
    """A preset with overrides in a store. Everything is read on access, and nothing is written.

    Reading what has not been made yet raises ConfigError, which names the command that makes it; damaged files raise DataError,
    a store that does not answer raises TransientError.
    """

    def __init__(self, store: str, preset: str, overrides: Sequence[str] = (), cache: Path | None = None) -> None:
        folder = (cache or Path("~/.cache/physion")).expanduser().absolute() / "physion-cache"
        remote = "://" in store and not store.startswith("file:")
        self.store = open_store(store, ShardCache(folder, default_limit(folder)) if remote else None)
        self.config = load_config(preset, list(overrides))
        self.graph = build_graph(self.config, self.store)

    def artifact(self, name: str) -> Artifact:
        """The artifact of an instance such as `frames-test`: its `manifest`, `names()`, and the `path(name)` of each file."""
        return published_input(self._node(name), self.graph, self.store)

    def videos(self, subset: str) -> list[Video]:
        """The videos of a subset (training, readout, test): name, scenario, label."""
        return Shards(self.artifact(f"frames-{subset}")).videos

    def frames(self, subset: str) -> PerVideo:
        """The frames of each video, uint8 [T, H, W, 3], RGB."""
        shards = FrameShards(self.artifact(f"frames-{subset}"))
        return PerVideo(shards, lambda video: shards.images(video, 0, shards.video_frames))

    def slots(self, subset: str) -> PerVideo:
        """The slots of each video, float32 [T, S, D], as the slot model found them."""
        return self._arrays(f"extract-slots-{subset}")

    def rollout(self, subset: str) -> PerVideo:
        """As `slots`, but with SlotFormer's predictions after the observed frames (readout, test)."""
        return self._arrays(f"rollout-{subset}")

    def masks(self, subset: str) -> PerVideo:
        """Where each of the `slots` looks, float32 [T, S, H, W], summing to 1 over the slots: computed by the slot model."""
        import torch

        from physion.data.clips import to_unit
        from physion.models.slots import masks_of

        frames, slots = FrameShards(self.artifact(f"frames-{subset}")), self.slots(subset)
        model = self.model(self._node(f"extract-slots-{subset}").inputs["slot-model"])

        @torch.inference_mode()
        def read(video: str) -> np.ndarray:
            def clip() -> torch.Tensor:
                return to_unit(torch.from_numpy(frames.images(video, 0, frames.video_frames)).permute(0, 3, 1, 2)[None])

            return masks_of(model, torch.from_numpy(slots[video])[None], clip, frames.image_size)[0].numpy()

        return PerVideo(frames, read)

    @property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json` of the report: accuracies with their intervals, by feature mode and scenario."""
        metrics: dict[str, Any] = self.artifact(last_stage().name).json("metrics.json")
        return metrics

    def predictions(self) -> Any:
        """The probabilities of each readout for each test video: a pandas DataFrame, or a list of dicts without pandas.

        Columns: video, scenario, label, then one for each feature mode and seed, such as `rollout-0`.
        """
        path = self.artifact(last_stage().name).path("predictions.csv")
        try:
            import pandas
        except ImportError:
            with path.open(encoding="utf-8", newline="") as file:
                return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]
        return pandas.read_csv(path)

    def model(self, name: str) -> Any:
        """A trained model, a torch module on the CPU in eval mode. name: its kind (`steve`), or an instance of a training."""
        from physion.models.weights import load_model
        from physion.training.engine import WEIGHTS

        return load_model(self.artifact(self._trained(name)).path(WEIGHTS))

    def _trained(self, name: str) -> str:
        if name in self.graph or name not in MODELS:
            return name
        stage = MODELS[name].stage
        makers = [each.name for each in self.graph.values() if stage == each.stage.name or each.params.get("model") == name]
        if not makers:
            raise ConfigError(f"this study trains no {name}")
        if len(makers) > 1:
            raise ConfigError(f"several trainings make a {name} ({', '.join(makers)}): name one")
        return makers[0]

    def _arrays(self, name: str) -> PerVideo:
        shards = Shards(self.artifact(name))
        return PerVideo(shards, lambda video: shards.read(video, "slots"))

    def _node(self, name: str) -> Node:
        if name not in self.graph:
            raise ConfigError(f"the study has no '{name}'{nearest(name, list(self.graph))}; it has {', '.join(self.graph)}")
        return self.graph[name]


def _value(column: str, text: str) -> Any:
    if column in ("video", "scenario"):
        return text
    return text == "True" if column == "label" else float(text)
