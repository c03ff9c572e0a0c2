"""The stages of the study, each declared here once; its module holds its `run`. docs/extend.md shows how to add others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from physion.config import schema
from physion.data.layout import left_out
from physion.models.kinds import MODELS, ModelKind, ReadoutKind, SlotModelKind, slot_model_kind
from physion.stages.registry import STAGES, Cost, Instance, Kind, Named, Params, Source, Stage, training_cost

__all__ = ["STAGES", "Cost", "Instance", "Kind", "Named", "Params", "Source", "Stage", "instances", "last_stage", "trained"]

JPEG_BYTES_A_PIXEL = 0.33  # about 5.4 kB per frame of 128 x 128 at quality 95
MP4_BYTES_A_PIXEL = 1.1  # for a whole 150-frame clip: 18 kB at 128 x 128
OFFICIAL = {"training": 15_998, "readout": 8_005, "test": 1_174}
OFFICIAL_TEST = 1_200  # including the glitchy ones
OFFICIAL_BYTES = {"training": 0.53e9, "readout": 0.27e9, "test": 0.28e9}  # of the archives, divided by number of videos


# ------------------------------------------------------------------------------------------------------ inputs
def last_stage() -> Instance:
    """The instance that completes the study."""
    return Instance("evaluate")


def instances(config: Any) -> dict[str, tuple[Instance, Mapping[str, Source]]]:
    """Every instance that the study's report needs, by name, with its inputs, which come before it."""
    found: dict[str, tuple[Instance, Mapping[str, Source]]] = {}

    def add(instance: Instance) -> None:
        if instance.name not in found:
            sources = STAGES[instance.stage].reads(config, instance.params)
            for source in sources.values():
                if isinstance(source, Instance):
                    add(source)
            found[instance.name] = instance, sources

    add(last_stage())
    return found


def of_subset(stage: str, subset: str | int) -> Instance:
    """A stage's instance for a subset of the videos."""
    return Instance(stage, {"subset": subset})


def trained(config: Any, kind: str, **params: str | int) -> Instance:
    """The instance that makes a model's weights: its training, or the use of named weights given in its place."""
    stage = MODELS[kind].stage
    if given(config, kind, params) is not None:
        return Instance("take-weights", {"model": kind, **params})
    return Instance(stage, params)


def given(config: Any, kind: str, params: Params) -> str | None:
    """The named weights that the configuration gives for a model, if any."""
    weights = getattr(config.section(MODELS[kind].stage), "weights", None)
    if isinstance(weights, Mapping):  # by feature mode
        weights = weights.get(params["features"])
        return weights and weights.replace("{seed}", str(params["seed"]))
    return weights


def copied_here(config: Any, kind: ModelKind) -> list[str]:
    """The models copied in this one's published state dict (`ModelKind.copied`) that are part of this study."""
    return [other for other in kind.copied() if other in {config.slot_model, *slot_model_kind(config).decodes_with}]


def slot_model(config: Any) -> dict[str, Instance]:
    """The training of the slot model, if there is one to train."""
    return {} if slot_model_kind(config).from_truth else {"slot-model": trained(config, config.slot_model)}


def slots_for(config: Any, features: str | int, subset: str) -> Instance:
    """The slots that a feature mode sees. True ones (observed, full) do not wait for the rollouter."""
    return of_subset("rollout" if features == "rollout" else "extract-slots", subset)


def known(config: Any, subset: str) -> dict[str, Instance]:
    """The dataset of a subset, if it has ground truth about its videos."""
    return {"dataset": of_subset(config.dataset, subset)} if STAGES[config.dataset].tells_truth(config, subset) else {}


def heldout(config: Any) -> dict[str, Instance]:
    """The videos held out from the slot model's training, and their ground truth; nothing without a training here."""
    if slot_model_kind(config).from_truth or given(config, config.slot_model, {}) is not None:
        return {}
    truth = known(config, "training")
    return {"heldout": of_subset("frames", "training")} | {f"heldout-{role}": source for role, source in truth.items()}


def readouts(config: Any) -> dict[str, Instance]:
    """Every readout of the study, by its role in the test."""
    section = config.train_readout
    return {
        f"readout-{mode}-{seed}": trained(config, section.model, features=mode, seed=seed)
        for mode in section.features
        for seed in section.seeds
    }


def regressions(config: Any) -> dict[str, Instance]:
    """Every regression of the study, by its role in the test.

    Those on true states, in the room or in the picture, need a dataset with ground truth, those on tokens a slot model that
    decodes through the dVAE, those on places one whose slots say them.
    """
    without = set[str]()
    if not all(known(config, subset) for subset in ("readout", "test")):
        without |= {"states", "picture"}
    if "dvae" not in slot_model_kind(config).decodes_with:
        without.add("tokens")
    if not slot_model_kind(config).places:
        without.add("places")
    wanted = [on for on in config.regress.on if on.partition("-")[0] not in without]
    return {f"regress-{on}": Instance("regress", {"on": on}) for on in wanted}


def _regression_inputs(config: Any, params: Params) -> dict[str, Source]:
    """A regression's inputs, for the videos it trains on and for those it is tested on."""
    kind, _, mode = str(params["on"]).partition("-")
    slots = "rollout" if mode == "rollout" else "extract-slots"
    made_by = {"states": config.dataset, "picture": config.dataset, "slots": slots, "places": slots}.get(kind, "frames")
    inputs: dict[str, Source] = {subset: of_subset(made_by, subset) for subset in ("readout", "test")}
    return inputs | ({"dvae": trained(config, "dvae")} if kind == "tokens" else {})


def _regression_settings(config: Any, params: Params) -> dict[str, Any]:
    """How many frames a regression sees, and in how many coordinates slots say their places."""
    kind, _, mode = str(params["on"]).replace("-frames", "").rpartition("-")
    places = {"places": slot_model_kind(config).places} if kind == "places" else {}
    return {"frames": _frames_seen(config, {"features": mode}) if mode in ("observed", "rollout", "full") else 1, **places}


def _weights_inputs(config: Any, params: Params) -> dict[str, Source]:
    """Weights, what they are compared with before use, and the slots on which a readout's threshold is chosen."""
    kind = MODELS[str(params["model"])]
    rest = {key: value for key, value in params.items() if key != "model"}
    reference = given(config, kind.name, rest)
    assert reference is not None
    inputs: dict[str, Source] = {"weights": Named(reference)}
    inputs |= {other: trained(config, other) for other in copied_here(config, kind)}
    if isinstance(kind, ReadoutKind):
        inputs["slots"] = slots_for(config, rest["features"], "readout")
    return inputs


# ---------------------------------------------------------------------------------------------------- settings
def _frames_seen(config: Any, params: Params) -> int:
    """How many frames of a video a readout sees."""
    features = str(params["features"])
    return int(config.rollout.observed if features == "observed" else getattr(config.train_readout.frames, features))


def _readout_settings(config: Any, params: Params) -> dict[str, Any]:
    """What a readout sees, and the version of its code (`ReadoutKind.version`); nothing for other models that are given."""
    if "features" not in params:
        return {}
    kind = MODELS.named(config.train_readout.model, ReadoutKind)
    places = {"places": slot_model_kind(config).places} if kind.needs_places else {}
    return {"frames": _frames_seen(config, params), "model-version": kind.version, **places}


def _simulated(config: Any, params: Params) -> dict[str, Any]:
    return {
        "videos": getattr(config.simulate.videos, str(params["subset"])),
        "truth": params["subset"] in config.simulate.truth,
    }


def _sources(config: Any, params: Params) -> dict[str, Any]:
    written = config.fetch.model_dump(mode="json")
    read = {"archives": written["archives"][params["subset"]]} if written["root"] is None else {"root": written["root"]}
    return read | ({"glitchy": written["glitchy"]} if params["subset"] == "test" else {})


def _glitchy_note(config: Any, params: Params, metrics: Mapping[str, Any] | None) -> str:
    if params["subset"] != "test":
        return ""
    if metrics is not None:
        return left_out(metrics)
    choice = config.fetch.model_dump(mode="json")["glitchy"]
    if choice == "keep":
        return "glitchy stimuli are kept (fetch.glitchy=keep)"
    if choice != "leave-out":
        return f"glitchy stimuli will be left out ({choice})"
    official = f"{OFFICIAL_TEST - OFFICIAL['test']} of the official {OFFICIAL_TEST:,}"
    return f"glitchy stimuli will be left out (the list among the videos, else the authors', which has {official})"


def _engine() -> dict[str, str]:
    from physion.simulation import ENGINE

    return {"engine": ENGINE}


# ------------------------------------------------------------------------------------------------------- costs
def _videos(config: Any, subset: str | int) -> int:
    return int(getattr(config.simulate.videos, str(subset))) if config.dataset == "simulate" else OFFICIAL[str(subset)]


def _frames(config: Any, params: Params) -> float:
    """Frames of all videos of a subset, by default the training one."""
    return _videos(config, params.get("subset", "training")) * float(config.frames.frames)


def _tokens_cost(config: Any, params: Params) -> Cost:
    frames, size = _frames(config, params), config.frames.image_size
    return Cost(2 * frames * (size // 4) ** 2, frames * MODELS["dvae"].flops(config))


def _slots_cost(config: Any, params: Params) -> Cost:
    kind = slot_model_kind(config)
    slots, size = kind.shape(config)
    return Cost(4 * _frames(config, params) * slots * size, _frames(config, params) * kind.flops(config))


def _rollout_cost(config: Any, params: Params) -> Cost:
    slots, size = slot_model_kind(config).shape(config)
    predicted = _videos(config, params["subset"]) * max(0, config.frames.frames - config.rollout.observed)
    return Cost(4 * _frames(config, params) * slots * size, predicted * MODELS["slotformer"].flops(config))


def _readout_cost(config: Any, params: Params) -> Cost:
    kind = MODELS.named(config.train_readout.model, ReadoutKind)
    return training_cost(kind.name, lambda config: _frames_seen(config, params) * kind.flops(config))(config, params)


# ------------------------------------------------------------------------------------------------------ checks
def _fits(config: Any, what: str, frames: int) -> None:
    """A stage can use only frames that earlier stages keep."""
    if frames > config.frames.frames:
        raise ValueError(f"{what} takes {frames} frames, more than frames.frames={config.frames.frames}")


def _clip_fits(stage: str) -> Callable[[Any], None]:
    """The check of a stage that trains on clips."""
    return lambda config: _fits(config, f"{stage}.clip-frames", getattr(config, stage.replace("-", "_")).clip_frames)


def _check_slots(config: Any) -> None:
    if slot_model_kind(config).from_truth and not all(known(config, subset) for subset in schema.SUBSETS):
        what = f"slot-model={config.slot_model} takes what is true of the videos"
        raise ValueError(f"{what}, which dataset={config.dataset} does not tell of all")


def _check_slotformer(config: Any) -> None:
    section = config.train_slotformer
    clip = (section.model.burn_in + section.rollout_frames - 1) * section.model.stride + 1
    _fits(config, "a clip of train-slotformer (burn-in, rollout-frames, stride)", clip)


def _check_rollout(config: Any) -> None:
    observed, model = config.rollout.observed, config.train_slotformer.model
    _fits(config, "rollout.observed", observed)
    if observed < model.burn_in * model.stride:
        raise ValueError(
            f"rollout.observed={observed} is less than train-slotformer.model burn-in {model.burn_in} "
            f"times stride {model.stride}"
        )


def _check_readout(config: Any) -> None:
    section, observed = config.train_readout, config.rollout.observed
    if MODELS.named(section.model, ReadoutKind).needs_places and not slot_model_kind(config).places:
        able = [kind.name for kind in MODELS.values() if isinstance(kind, SlotModelKind) and kind.places]
        what = f"train-readout.model={section.model} needs slots that say their color and place"
        raise ValueError(f"{what}, as {' and '.join(able)} give, not slot-model={config.slot_model}")
    for mode in section.features:
        if mode != "observed":
            _fits(config, f"train-readout.frames.{mode}", getattr(section.frames, mode))
    if "rollout" in section.features and section.frames.rollout <= observed:
        raise ValueError(f"train-readout.frames.rollout={section.frames.rollout} holds no predicted frame after "
                         f"rollout.observed={observed}")  # fmt: skip
    for mode, template in section.weights.items():
        if len(section.seeds) > 1 and "{seed}" not in template:
            raise ValueError(
                f"train-readout.weights.{mode}={template} names one readout for {len(section.seeds)} seeds: put {{seed}} into "
                "it, or set train-readout.seeds to one"
            )


# ------------------------------------------------------------------------------------------------ declarations
for _stage in (
    Stage(
        "simulate",
        version=3,
        kind=Kind.PARTS,
        summary="simulate, render and encode PhysionSim videos",
        section=schema.Simulate,
        replaced=("videos", "truth"),
        settings=_simulated,
        cost=lambda config, params: Cost(_videos(config, params["subset"]) * config.simulate.image_size**2 * MP4_BYTES_A_PIXEL),
        facts=_engine,
        makes="dataset",
        tells_truth=lambda config, subset: subset in config.simulate.truth,
    ),
    Stage(
        "fetch",
        version=3,
        kind=Kind.PROCESS,
        summary="bring in the official Physion videos",
        section=schema.Fetch,
        replaced=("root", "archives", "glitchy"),
        settings=_sources,
        cost=lambda config, params: Cost(OFFICIAL_BYTES[str(params["subset"])]),
        note=_glitchy_note,
        makes="dataset",
    ),
    Stage(
        "frames",
        version=3,
        kind=Kind.PARTS,
        summary="decode and resize the videos of a subset",
        section=schema.Frames,
        reads=lambda config, params: {"dataset": of_subset(config.dataset, params["subset"])},
        cost=lambda config, params: Cost(_frames(config, params) * config.frames.image_size**2 * JPEG_BYTES_A_PIXEL),
    ),
    Stage(
        "train-dvae",
        version=4,
        kind=Kind.TRAINING,
        summary="train the dVAE that turns frames into tokens",
        section=schema.TrainDVAE,
        reads=lambda config, params: {"frames": of_subset("frames", "training")},
        cost=training_cost("dvae"),
        gpu=True,
    ),
    Stage(
        "tokenize",
        version=4,
        kind=Kind.PARTS,
        summary="dVAE tokens of the training frames",
        section=schema.Tokenize,
        reads=lambda config, params: {"dvae": trained(config, "dvae"), "frames": of_subset("frames", "training")},
        cost=_tokens_cost,
        gpu=True,
    ),
    Stage(
        "train-steve",
        version=5,
        kind=Kind.TRAINING,
        summary="train STEVE, which finds slots in video",
        section=schema.TrainSTEVE,
        reads=lambda config, params: {
            "dvae": trained(config, "dvae"),
            "frames": of_subset("frames", "training"),
            "tokens": Instance("tokenize"),
            **known(config, "training"),
        },
        cost=training_cost("steve"),
        check=_clip_fits("train-steve"),
        gpu=True,
    ),
    Stage(
        "train-isa",
        version=1,
        kind=Kind.TRAINING,
        summary="train ISA, which finds slots in video by drawing it",
        section=schema.TrainISA,
        reads=lambda config, params: {"frames": of_subset("frames", "training"), **known(config, "training")},
        cost=training_cost("isa"),
        check=_clip_fits("train-isa"),
        gpu=True,
    ),
    Stage(
        "extract-slots",
        version=4,
        kind=Kind.PARTS,
        summary="slots of every frame of a subset",
        section=schema.ExtractSlots,
        settings=lambda config, params: (
            {"bodies": [*slot_model_kind(config).shape(config)]} if slot_model_kind(config).from_truth else {}
        ),
        reads=lambda config, params: {
            **slot_model(config),
            **(known(config, str(params["subset"])) if slot_model_kind(config).from_truth else {}),
            "frames": of_subset("frames", params["subset"]),
        },
        cost=_slots_cost,
        check=_check_slots,
        gpu=True,
    ),
    Stage(
        "train-slotformer",
        version=4,
        kind=Kind.TRAINING,
        summary="train SlotFormer, which predicts slots",
        section=schema.TrainSlotFormer,
        reads=lambda config, params: {"slots": of_subset("extract-slots", "training")},
        cost=training_cost("slotformer"),
        check=_check_slotformer,
        gpu=True,
    ),
    Stage(
        "rollout",
        version=3,
        kind=Kind.PARTS,
        summary="predict the slots after the observed frames",
        section=schema.Rollout,
        reads=lambda config, params: {
            "slotformer": trained(config, "slotformer"),
            "slots": of_subset("extract-slots", params["subset"]),
        },
        cost=_rollout_cost,
        check=_check_rollout,
        gpu=True,
    ),
    Stage(
        "train-readout",
        version=3,
        kind=Kind.PROCESS,
        summary="train a readout on slots: will red touch yellow?",
        section=schema.TrainReadout,
        replaced=("frames", "seed"),
        settings=_readout_settings,
        reads=lambda config, params: {"slots": slots_for(config, params["features"], "readout")},
        cost=_readout_cost,
        check=_check_readout,
        fans_out="seed",
        gpu=True,
    ),
    Stage(
        "take-weights",
        version=1,
        kind=Kind.PROCESS,
        summary="take named weights in the place of a training",
        settings=_readout_settings,
        reads=_weights_inputs,
        fans_out="seed",
        absent="no weights are given; --set train-steve.weights=pretrained/<name> would",
    ),
    Stage(
        "regress",
        version=2,
        kind=Kind.PROCESS,
        summary="answer by regression from slots, pixels or states",
        module="physion.stages.regress",
        section=schema.Regress,
        settings=_regression_settings,
        reads=_regression_inputs,
        fans_out="on",
    ),
    Stage(
        "evaluate",
        version=10,
        kind=Kind.PROCESS,
        summary="test the readouts once and write the report",
        section=schema.Evaluate,
        reads=lambda config, params: {
            **slot_model(config),
            **{other: trained(config, other) for other in slot_model_kind(config).decodes_with},
            **heldout(config),
            "slotformer": trained(config, "slotformer"),
            **readouts(config),
            **regressions(config),
            "dataset": of_subset(config.dataset, "test"),
            "frames": of_subset("frames", "test"),
            "slots": of_subset("extract-slots", "test"),
            "rollouts": of_subset("rollout", "test"),
        },
        gpu=True,
    ),
):
    STAGES.register(_stage)
