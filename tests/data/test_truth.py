import json

import numpy as np
import pytest

from physion.data.layout import Video
from physion.data.shards import index_bytes, index_item
from physion.data.truth import TRUTH, Scene, TruthShards, write_truth


class Published:
    """The little of an artifact that shards read."""

    def __init__(self, root):
        self.root = root

    def path(self, name):
        return self.root / name

    def json(self, name):
        return json.loads((self.root / name).read_bytes())


def contact(*bodies, frame):
    return {"bodies": bodies, "frame": frame}


def scene(*contacts):
    bodies = [{"name": name, "shape": "box", "size": [1, 1, 1]} for name in ("agent", "patient", "wall")]
    return Scene.model_validate({"bodies": bodies, "contacts": contacts})


@pytest.mark.parametrize(
    "masks",
    [
        np.zeros((150, 64, 64), np.uint8),  # one run that is longer than an int16
        np.random.default_rng(0).integers(0, 7, (5, 6, 8), np.uint8),
        np.repeat(np.uint8([[[255, 0]], [[255, 255]]]), 40_000, 0),
        np.uint8([[[3]]]),
    ],
    ids=["empty", "noise", "long runs", "one pixel"],
)
def test_masks_come_back_as_they_were(masks, tmp_path):
    video = Video("a", "a.mp4", "Collide", True)
    states = np.arange(26, dtype=np.float32).reshape(1, 2, 13)
    write_truth(tmp_path / "a.safetensors", "a", masks, {"states": states, "picture": states[..., :3]})
    item = index_item(video, "a.safetensors") | {"scene": scene().model_dump(mode="json")}
    (tmp_path / TRUTH).write_bytes(index_bytes([item]))
    truth = TruthShards(Published(tmp_path))
    np.testing.assert_array_equal(truth.masks("a"), masks)
    np.testing.assert_array_equal(truth.states("a"), states)
    assert truth.videos == [video]


def test_first_contact_is_that_of_agent_and_patient():
    assert scene().first_contact is None
    assert scene(contact("agent", "wall", frame=3), contact("patient", "floor", frame=0)).first_contact is None
    assert scene(contact("agent", "floor", frame=1), contact("agent", "patient", frame=61)).first_contact == 61
