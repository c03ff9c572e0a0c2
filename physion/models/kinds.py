"""The kinds of models in one table: configuration, build, FLOPs, published keys, frozen copies. Importing this loads no torch.

`MODELS.register` adds a kind from outside the package: docs/extend.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, TypeVar

from physion.errors import ConfigError, nearest
from physion.models import flops

Sizes = dict[str, Any]
# Slots and slot size of the slot model `bodies`: as many as a PhysionSim scene has bodies at most, and what each is.
BODIES = (10, 20)


@dataclass(frozen=True)
class Imported:
    """A callable `package.module:name` that is imported when first called: code that builds models loads torch."""

    path: str

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it."""
        return self.load()(*arguments, **keywords)

    def load(self) -> Any:
        """The object itself."""
        module, _, name = self.path.partition(":")
        return attrgetter(name)(importlib.import_module(module))


class Copy(NamedTuple):
    """A frozen copy of another model: its kind, and which module of it (default: all of it)."""

    kind: str
    module: str = ""


@dataclass(frozen=True)
class Published:
    """How a kind's published state dict differs from ours, whose parameters carry the published names.

    mark: prefix of keys that only this kind has. prefix: of all our keys there. frozen: copies of other models, by the first
    name of their keys; they come before our first key that begins with `frozen_before`. constants: suffixes of the keys that
    the published modules store besides parameters, such as masks; the model's `published_constants(state)` computes them.
    """

    mark: str
    prefix: str = ""
    frozen: Mapping[str, Copy] = field(default_factory=dict)
    frozen_before: str = ""
    constants: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """A kind of model.

    make: the class, or another callable, that builds one with fresh weights from its sizes as keyword arguments. sizes: their
    values in the configured study, plain JSON. stage: what trains it. published: if there are published checkpoints.

    For the plan, and 0 if unknown: parameters; flops, of a forward pass for one frame; sample_flops, also forward, for one
    training sample.
    """

    name: str = field(kw_only=False)
    make: Callable[..., Any]
    sizes: Callable[[Any], Sizes]
    stage: str
    parameters: Callable[[Any], float] = lambda config: 0.0
    flops: Callable[[Any], float] = lambda config: 0.0
    sample_flops: Callable[[Any], float] = lambda config: 0.0
    published: Published | None = None

    what: ClassVar[str] = "model"
    protocol: ClassVar[Imported] = Imported("torch.nn:Module")

    @property
    def origin(self) -> str:
        """Where its code is, for people."""
        make = self.make
        return make.path if isinstance(make, Imported) else f"{make.__module__}:{getattr(make, '__qualname__', make)}"

    def frozen(self) -> Mapping[str, Copy]:
        """The copies of other models in its published state dict, by the first name of their keys."""
        return self.published.frozen if self.published else {}

    def copied(self) -> list[str]:
        """The kinds of models that these are copies of."""
        return list(dict.fromkeys(copy.kind for copy in self.frozen().values()))


@dataclass(frozen=True, kw_only=True)
class SlotModelKind(ModelKind):
    """A kind of slot model: `make` makes a `physion.models.slots.SlotModel`.

    shape: slots S and slot size D of the configured study. decodes_with: kinds of models that it needs to turn slots into
    pictures; if they are available, `with_others(model, **{kind: model})` is the slot model. places: in how many coordinates
    its slots say their place, after their color and before their extent (`physion.config.schema.PLACE`); 0 if they do not.
    from_truth: nothing is trained; the slots are the dataset's ground truth of the bodies (`physion.data.truth.bodies`).
    """

    shape: Callable[[Any], tuple[int, int]]
    decodes_with: tuple[str, ...] = ()
    with_others: Callable[..., Any] = lambda model: model
    places: int = 0
    from_truth: bool = False

    what: ClassVar[str] = "slot model"
    protocol: ClassVar[Imported] = Imported("physion.models.slots:SlotModel")


def _slot_sizes(config: Any) -> Sizes:
    slots, size = slot_model_kind(config).shape(config)
    return {"slots": slots, "slot_size": size}


def _slot_size_and_places(config: Any) -> tuple[int, int]:
    kind = slot_model_kind(config)
    return kind.shape(config)[1], kind.places


@dataclass(frozen=True, kw_only=True)
class ReadoutKind(ModelKind):
    """A kind of readout, trained by `train-readout`: `make(slots, slot_size)` makes a `physion.models.readout.ReadoutModel`.

    version: raise it when a code change affects its predictions. needs_places: it needs slots that say their place, and `make`
    has a third argument, `places` (`SlotModelKind.places`). sample_flops follow from the frames that it sees.
    """

    sizes: Callable[[Any], Sizes] = _slot_sizes
    stage: str = "train-readout"
    version: int = 1
    needs_places: bool = False

    what: ClassVar[str] = "readout"
    protocol: ClassVar[Imported] = Imported("physion.models.readout:ReadoutModel")


KindT = TypeVar("KindT", bound=ModelKind)


class Kinds(dict[str, ModelKind]):
    """The kinds of models by name."""

    def register(self, kind: ModelKind) -> None:
        """Add a kind. Each name can be used once; adding the same kind again changes nothing.

        Raises ConfigError, also for a class that is not what the kind requires, or lacks a part of it.
        """
        if isinstance(kind.make, type):
            protocol = kind.protocol.load()
            if not issubclass(kind.make, protocol):
                raise ConfigError(f"{kind.what} '{kind.name}': {kind.origin} is not a subclass of {kind.protocol.path}")
            if missing := ", ".join(sorted(getattr(kind.make, "__abstractmethods__", ()))):
                raise ConfigError(f"{kind.what} '{kind.name}': {kind.origin} does not define {missing} of {kind.protocol.path}")
        known = self.setdefault(kind.name, kind)
        if known.make != kind.make:
            raise ConfigError(f"two kinds of models are called '{kind.name}': {known.origin} and {kind.origin}")

    def named(self, name: str, of: type[KindT]) -> KindT:
        """The kind with that name, which must be an instance of `of`. Raises ConfigError naming those that are."""
        kind = self.get(name)
        if isinstance(kind, of):
            return kind
        known = [other.name for other in self.values() if isinstance(other, of)]
        hint = f": it is registered as a {kind.what}" if kind else nearest(name, known)
        raise ConfigError(f"there is no {of.what} '{name}'{hint}; there are: {', '.join(known)}")

    def trained_by(self, stage: str) -> list[ModelKind]:
        """The kinds that a stage trains."""
        return [kind for kind in self.values() if kind.stage == stage]

    def trainings(self) -> list[str]:
        """Names of the stages that train a model."""
        return list(dict.fromkeys(kind.stage for kind in self.values() if kind.stage))


MODELS = Kinds()


def shared_parts() -> dict[str, Copy]:
    """The parts of models that other models' published state dicts hold copies of, by the first name of the copies' keys."""
    return {part: copy for kind in MODELS.values() for part, copy in kind.frozen().items()}


def slot_model_kind(config: Any) -> SlotModelKind:
    """The kind of slot model that the study uses."""
    return MODELS.named(config.slot_model, SlotModelKind)


for _kind in (
    ModelKind(
        "dvae",
        make=Imported("physion.models.dvae:DVAE.from_sizes"),
        sizes=lambda config: {"model": config.train_dvae.model.model_dump()},
        stage="train-dvae",
        parameters=lambda config: flops.dvae_parameters(config.train_dvae.model),
        flops=lambda config: flops.encode_flops(config.train_dvae.model, config.frames.image_size),
        sample_flops=lambda config: flops.reconstruct_flops(config.train_dvae.model, config.frames.image_size),
        published=Published(mark="encoder.0.m."),
    ),
    SlotModelKind(
        "steve",
        make=Imported("physion.models.steve:STEVE.from_sizes"),
        sizes=lambda config: {
            "model": config.train_steve.model.model_dump(),
            "image_size": config.frames.image_size,
            "codes": config.train_dvae.model.codes,
        },
        stage="train-steve",
        parameters=lambda config: flops.steve_parameters(
            config.train_steve.model, config.frames.image_size, config.train_dvae.model.codes
        ),
        flops=lambda config: flops.slots_flops(config.train_steve.model, config.frames.image_size),
        sample_flops=lambda config: flops.steve_clip_flops(
            config.train_steve, config.frames.image_size, config.train_dvae.model.codes
        ),
        published=Published(
            mark="slot_attention.",
            frozen={"dvae": Copy("dvae")},
            frozen_before="encoder.",
            constants=("encoder_pos_embedding.grid", ".self_attn_mask"),
        ),
        shape=lambda config: (config.train_steve.model.slots, config.train_steve.model.slot_size),
        decodes_with=("dvae",),
        with_others=Imported("physion.models.steve:STEVEWithDVAE"),
    ),
    SlotModelKind(
        "isa",
        make=Imported("physion.models.isa:ISA.from_sizes"),
        sizes=lambda config: {"model": config.train_isa.model.model_dump(), "image_size": config.frames.image_size},
        stage="train-isa",
        parameters=lambda config: flops.isa_parameters(config.train_isa.model),
        flops=lambda config: flops.isa_flops(config.train_isa.model, config.frames.image_size),
        sample_flops=lambda config: flops.isa_clip_flops(config.train_isa, config.frames.image_size),
        shape=lambda config: (config.train_isa.model.slots, config.train_isa.model.slot_size),
        places=2,
    ),
    SlotModelKind(
        "bodies",
        make=Imported("physion.data.truth:bodies"),
        sizes=lambda config: {},
        stage="",
        shape=lambda config: BODIES,
        places=3,
        from_truth=True,
    ),
    ModelKind(
        "slotformer",
        make=Imported("physion.models.slotformer:SlotFormer.from_sizes"),
        sizes=lambda config: {"model": config.train_slotformer.model.model_dump(), **_slot_sizes(config)},
        stage="train-slotformer",
        parameters=lambda config: flops.slotformer_parameters(config.train_slotformer.model),
        flops=lambda config: flops.predict_flops(config.train_slotformer.model, *slot_model_kind(config).shape(config)),
        sample_flops=lambda config: flops.slotformer_clip_flops(
            config.train_slotformer, *slot_model_kind(config).shape(config)
        ),
        published=Published(
            mark="rollouter.",
            prefix="rollouter.",
            frozen={"dvae": Copy("dvae"), "decoder": Copy("steve", "trans_decoder")},
            constants=(".self_attn_mask", "enc_t_pe"),
        ),
    ),
    ReadoutKind(
        "readout",
        make=Imported("physion.models.readout:Readout"),
        version=2,
        parameters=lambda config: flops.readout_parameters(slot_model_kind(config).shape(config)[1]),
        flops=lambda config: flops.readout_flops(*slot_model_kind(config).shape(config)),
        published=Published(mark="linear1.", constants=("comb_idx",)),
    ),
    ReadoutKind(
        "touch",
        make=Imported("physion.models.readout:TouchReadout"),
        needs_places=True,
        sizes=lambda config: _slot_sizes(config) | {"places": slot_model_kind(config).places},
        parameters=lambda config: flops.touch_parameters(*_slot_size_and_places(config)),
        flops=lambda config: flops.touch_flops(*_slot_size_and_places(config)),
    ),
):
    MODELS.register(_kind)
