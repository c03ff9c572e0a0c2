"""The kinds of models in one table: how each is built, how large it is, how its published state dict is taken apart.

Importing this loads no torch. `register` adds a kind from outside the package: docs/extend.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from physion.errors import ConfigError, nearest
from physion.models.flops import slots_flops

if TYPE_CHECKING:
    from torch import nn

Role = Literal["tokenizer", "slots", "dynamics", "readout"]
Sizes = dict[str, Any]


@dataclass(frozen=True)
class ModelKind:
    """A kind of model.

    module: `package.module:Class`, whose `from_sizes(sizes)` makes one with fresh weights. stage: what trains it. sizes: of the
    configured study, what it is built from, plain JSON. mark: how keys begin that only its published state dict has. frozen:
    copies of other models in that, by the prefix of their keys.
    """

    name: str
    title: str
    role: Role
    stage: str
    module: str
    sizes: Callable[[Any], Sizes]
    mark: str = ""
    frozen: Mapping[str, str] = field(default_factory=dict)

    def build(self, sizes: Sizes) -> nn.Module:
        """Construct one with fresh weights. Raises KeyError, TypeError or ValueError if the sizes do not fit."""
        model: nn.Module = _imported(self.module).from_sizes(sizes)
        return model


@dataclass(frozen=True)
class SlotModelKind(ModelKind):
    """A kind of slot model: a `physion.models.slots.SlotModel` once loaded.

    shape: slots S and slot size D of the configured study. encode_flops: of one frame. decodes_with: kinds of models without
    which its slots cannot become pictures; they are handed to `load` of its module, `load(weights, {kind: weights})`.
    """

    shape: Callable[[Any], tuple[int, int]] = lambda config: (0, 0)
    encode_flops: Callable[[Any], float] = lambda config: 0.0
    decodes_with: tuple[str, ...] = ()

    def load(self, weights: Any, others: Mapping[str, Any]) -> Any:
        """The slot model of a weights file; with the files of `decodes_with`, one that can also decode."""
        module = self.module.partition(":")[0]
        return importlib.import_module(module).load(weights, others)


MODELS: dict[str, ModelKind] = {}


def register(kind: ModelKind) -> ModelKind:
    """Add a kind of model to the table. A name is taken once; the same kind again changes nothing."""
    known = MODELS.setdefault(kind.name, kind)
    if known.module != kind.module:
        raise ConfigError(f"two kinds of models are called '{kind.name}': {known.module} and {kind.module}")
    return known


def kind_of_model(name: str, role: Role) -> ModelKind:
    """The kind of that name, which must have that role. Raises ConfigError naming those that have."""
    known = [kind.name for kind in MODELS.values() if kind.role == role]
    if name not in known:
        raise ConfigError(f"there is no {role} model '{name}'{nearest(name, known)}; there are: {', '.join(known)}")
    return MODELS[name]


def slot_model_kind(config: Any) -> SlotModelKind:
    """The kind of slot model that the study uses."""
    kind = kind_of_model(config.slot_model, "slots")
    assert isinstance(kind, SlotModelKind)
    return kind


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _slots(config: Any) -> Sizes:
    slots, size = slot_model_kind(config).shape(config)
    return {"slots": slots, "slot_size": size}


for _kind in (
    ModelKind(
        "dvae",
        title="a dVAE",
        role="tokenizer",
        stage="train-dvae",
        module="physion.models.dvae:DVAE",
        sizes=lambda config: {"model": config.train_dvae.model.model_dump()},
        mark="encoder.0.m.",
    ),
    SlotModelKind(
        "steve",
        title="STEVE",
        role="slots",
        stage="train-steve",
        module="physion.models.steve:STEVE",
        sizes=lambda config: {
            "model": config.train_steve.model.model_dump(),
            "image_size": config.frames.image_size,
            "codes": config.train_dvae.model.codes,
        },
        mark="slot_attention.",
        frozen={"dvae.": "dvae"},
        shape=lambda config: (config.train_steve.model.slots, config.train_steve.model.slot_size),
        encode_flops=lambda config: slots_flops(config.train_steve.model, config.frames.image_size),
        decodes_with=("dvae",),
    ),
    ModelKind(
        "slotformer",
        title="SlotFormer",
        role="dynamics",
        stage="train-slotformer",
        module="physion.models.slotformer:SlotFormer",
        sizes=lambda config: {"model": config.train_slotformer.model.model_dump(), **_slots(config)},
        mark="rollouter.",
        frozen={"dvae.": "dvae", "decoder.": "steve"},
    ),
    ModelKind(
        "readout",
        title="a readout",
        role="readout",
        stage="train-readout",
        module="physion.models.readout:Readout",
        sizes=_slots,
        mark="linear1.",
    ),
):
    register(_kind)
