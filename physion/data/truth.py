"""Ground truth of simulated videos: who is where in every frame, and who touches whom. `simulate` publishes it.

`truth.json` is an index like that of other shards; each entry has a `scene`. A video's file holds its masks, `states` float32
[T, B, 13] and `picture` float32 [T, B, 3]; `physion/simulation/truth.py` describes the columns.

Shapes: T frames, B bodies (0 the agent, 1 the patient), H W pixels, R runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from physion.config.schema import COLOR, PLACE
from physion.data.shards import Shards, write_shard
from physion.store.artifacts import Artifact

TRUTH = "truth.json"
LONGEST = np.iinfo(np.int16).max
AGENT, PATIENT = 0, 1
SPREAD = np.array([0.6] * 3 + [0.5] * 4 + [0.3] * 3 + [1.0] * 3, np.float32)  # of states, about
ROOM = 1.5  # m: half of what the camera shows of the floor, about


class Body(BaseModel):
    """One body; `size` is half its box along its own axes, in meters."""

    model_config = ConfigDict(frozen=True)
    name: str
    shape: str
    size: tuple[float, float, float]


class FirstContact(BaseModel):
    """The first frame at or after the first contact of two bodies, or of a body and `floor`."""

    model_config = ConfigDict(frozen=True)
    bodies: tuple[str, str]
    frame: int


class Scene(BaseModel):
    """The bodies of a video, agent and patient first, and their contacts."""

    model_config = ConfigDict(frozen=True)
    bodies: tuple[Body, ...]
    contacts: tuple[FirstContact, ...]

    @property
    def first_contact(self) -> int | None:
        """The frame in which agent and patient first touch; None if they never do."""
        pair = {self.bodies[AGENT].name, self.bodies[PATIENT].name}
        return next((contact.frame for contact in self.contacts if set(contact.bodies) == pair), None)


class TruthShards(Shards):
    """The ground truth of an artifact's videos."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact, TRUTH)
        self.scenes = {entry["name"]: Scene.model_validate(entry["scene"]) for entry in artifact.json(TRUTH)["videos"]}

    @classmethod
    def of(cls, dataset: Artifact | None) -> TruthShards | None:
        """A dataset's ground truth about its videos; None if it has none, or there is no dataset."""
        return cls(dataset) if dataset is not None and TRUTH in dataset.names() else None

    def states(self, video: str) -> np.ndarray:
        """Float32 [T, B, 13]: center (m), quaternion, velocity (m/s), angular velocity (rad/s), all in the room."""
        return self.read(video, "states")

    def picture(self, video: str) -> np.ndarray:
        """Float32 [T, B, 3]: the centers in the picture, x and y from the upper left corner, 0..1; depth in meters."""
        return self.read(video, "picture")

    def masks(self, video: str) -> np.ndarray:
        """Uint8 [T, H, W]: 1 + the number of the body in each pixel, 0 for floor and walls."""
        frames, height, width = self.read(video, "shape")
        runs = np.repeat(self.read(video, "values"), self.read(video, "lengths"))
        return np.ascontiguousarray(runs.reshape(height, width, frames).transpose(2, 0, 1))


def bodies(truth: TruthShards, video: str, count: int) -> np.ndarray:
    """A slot for each body, float32 [T, count, 20], agent and patient first: what a perfect slot model could say.

    Content: 1, quaternion, velocity and angular velocity, these by their usual spread. Then color (red and yellow for agent and
    patient, gray for others), place (the center) and extent (half the box along the body's own axes) in units of ROOM meters,
    scaled as all slots that say these (`physion.config.schema.PLACE`). 0 where there is no body.
    """
    states, scene = truth.states(video)[:, :count], truth.scenes[video]
    found = np.zeros((len(states), count, 20), np.float32)
    here = found[:, : states.shape[1]]
    here[..., 0], here[..., 1:11] = 1, (states / SPREAD)[..., 3:]
    here[:, AGENT, 11:14], here[:, PATIENT, 11:14] = np.multiply(COLOR, (1, -1, -1)), np.multiply(COLOR, (1, 1, -1))
    here[..., 14:17] = PLACE / ROOM * states[..., :3]
    here[..., 17:] = np.log(np.array([body.size for body in scene.bodies[:count]]) / ROOM)
    return found


def write_truth(path: Path, video: str, masks_THW: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the file of one video: its masks, and `arrays` (states and picture) by kind.

    Masks are stored as runs of equal values along time, pixel by pixel: most pixels never change. The bytes depend only on the
    values.
    """
    flat = masks_THW.transpose(1, 2, 0).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=len(flat))
    pieces = -(-lengths // LONGEST)  # a run too long for int16 becomes several
    split = np.full(pieces.sum(), LONGEST, np.int16)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST
    runs = {"shape": np.array(masks_THW.shape, np.int64), "values": np.repeat(flat[starts], pieces), "lengths": split}
    named = {f"{video}/{kind}": array for kind, array in (runs | dict(arrays)).items()}
    write_shard(path, named, named.items())
