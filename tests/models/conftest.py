"""Golden outputs of the published models, and the published weights that follow from a rule (goldens/README.md)."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from physion.config.schema import DVAEModel, SlotFormerModel, STEVEModel
from physion.models.dvae import DVAE
from physion.models.published import from_published, frozen_copies, to_published
from physion.models.readout import Readout
from physion.models.slotformer import SlotFormer
from physion.models.steve import STEVE

GOLDENS = Path(__file__).parent / "goldens"
SEED = 1


def generator(key):
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(f"{SEED}:{key}".encode()).digest()[:8], "little")))


class Goldens:
    """What the published code computed, and the inputs and weights that it computed it from."""

    def __init__(self):
        self.info = json.loads((GOLDENS / "info.json").read_text())
        self.keys = json.loads((GOLDENS / "checkpoint_keys.json").read_text())
        self.initial = json.loads((GOLDENS / "initial_weights.json").read_text())
        self.schedules = json.loads((GOLDENS / "schedules.json").read_text())

    def arrays(self, case):
        with np.load(GOLDENS / f"goldens_{case}.npz") as file:
            return {name: torch.from_numpy(file[name]) if file[name].dtype.kind != "U" else file[name] for name in file.files}

    def published(self, name):
        """The published state dict of a model, but for the constants that the rule does not make."""
        state, digest = {}, hashlib.sha256()
        for key, (*shape, _) in self.keys[name].items():
            if key in self.info["cases"][f"{name}_A"]["left_keys"]:
                continue
            value = generator(key).standard_normal(shape, np.float32)
            value *= np.float32(1 / math.sqrt(math.prod(shape[1:])) if len(shape) >= 2 else 0.02)
            if len(shape) == 1 and key.endswith("weight"):
                value += np.float32(1)
            digest.update(key.encode() + value.tobytes())
            state[key] = torch.from_numpy(value)
        return state

    def checkpoint(self, name):
        """The whole published state dict: what the rule makes, in its order, with the constants that it leaves."""
        whole = to_published(name, self.model(name), frozen_copies(name, self.published(name)))
        return {key: whole[key] for key in self.keys[name]}

    def input(self, case, name):
        facts = self.info["cases"][case]["inputs"][name]
        rng, shape = generator(f"input:{name}"), facts["shape"]
        if facts["kind"] == "uniform[-1,1)":
            value = rng.random(shape, np.float32) * 2 - 1
        elif facts["kind"] == "standard_normal":
            value = rng.standard_normal(shape, np.float32)
        else:
            value = rng.standard_exponential(shape, np.float32)
        assert hashlib.sha256(value.tobytes()).hexdigest() == facts["sha256"]
        return torch.from_numpy(value)

    def fresh(self, name):
        """The published model as constructed."""
        return {
            "dvae": lambda: DVAE(DVAEModel()),
            "steve": lambda: STEVE(STEVEModel(), image_size=128, codes=4096),
            "slotformer": lambda: SlotFormer(SlotFormerModel(), slots=6, slot_size=192),
            "readout": lambda: Readout(slots=6, slot_size=192),
        }[name]()

    def model(self, name):
        """The published model with its golden weights, in eval mode."""
        model = self.fresh(name)
        model.load_state_dict(from_published(name, self.published(name)))
        return model.eval()


@pytest.fixture(scope="session")
def goldens():
    return Goldens()


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)
