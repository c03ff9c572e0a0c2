"""The sections of the configuration, one per stage: pydantic only, so reading it never loads torch.

A field marked `Knob` does not change results (workers, intervals) and stays out of fingerprints.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

KNOB: JsonDict = {"knob": True}
LATER: JsonDict = {"later": True}
"""An option added after artifacts had been made without it: at its default it stays out of fingerprints."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
Item = TypeVar("Item")


def _distinct(values: tuple[Item, ...]) -> tuple[Item, ...]:
    if len(set(values)) < len(values):
        raise ValueError("the values must differ from each other")
    return values


Distinct = Annotated[tuple[Item, ...], Field(min_length=1), AfterValidator(_distinct)]


def _divided(size: str, *heads: str) -> Any:
    """A check of a section: each number of attention heads divides the size."""

    def check(section: Any) -> Any:
        values = section.model_dump(by_alias=True)
        for each in heads:
            if values[size] % values[each]:
                raise ValueError(f"{size} {values[size]} is not divisible by {each} {values[each]}")
        return section

    return model_validator(mode="after")(check)


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        """A part that has a default needs only the values that differ from it."""
        defaults = {f.alias or n: f.default.model_dump() for n, f in cls.model_fields.items() if isinstance(f.default, Section)}
        if not isinstance(given, dict):
            return given
        return {key: defaults.get(key, {}) | value if isinstance(value, dict) else value for key, value in given.items()}


# ---------------------------------------------------------------------------------------------------- models
class DVAEModel(Section):
    """Sizes of the dVAE; the defaults are the published ones (0.68 M parameters)."""

    codes: Annotated[int, Field(ge=1, le=32768)] = Field(4096, description="size V of the visual vocabulary; tokens are int16")
    channels: PositiveInt = Field(64, description="width of every hidden block")
    initial_logit_scale: PositiveFloat = Field(
        1.0,
        description="factor on the last encoder layer's initial weights; above 1, codes differ from the start and short "
        "trainings use more of them",
    )


class STEVEModel(Section):
    """Sizes of STEVE; the defaults are the published ones (6.87 M trainable parameters)."""

    slots: Annotated[int, Field(ge=2)] = Field(6, description="slots S per frame; the readout compares pairs")
    slot_size: PositiveInt = Field(192, description="slot size D, also the width of the decoder")
    slot_iterations: PositiveInt = Field(2, description="slot-attention iterations per frame")
    slot_mlp: PositiveInt = Field(384, description="hidden size of the slot MLP")
    encoder_channels: PositiveInt = Field(64, description="width of the four 5x5 convolutions")
    encoder_stride: Literal[2, 4] = Field(
        2, description="stride of the first convolution; 4, which is not in the paper, leaves a quarter of the positions"
    )
    residual_guess: bool = Field(
        False,
        description="start a frame's slots from the layer norm of the last ones plus the predictor's output; not in the "
        "paper. Keeps slots in place, which no predictor learns from clips of few frames",
    )
    predictor_layers: PositiveInt = 2
    predictor_heads: PositiveInt = 4
    predictor_ffn: PositiveInt = 768
    predictor_lstm: PositiveInt = Field(384, description="hidden size of the LSTM that carries slots from frame to frame")
    decoder_layers: PositiveInt = 4
    decoder_heads: PositiveInt = 4
    dropout: Fraction = 0.1

    _heads_divide = _divided("slot-size", "predictor-heads", "decoder-heads")


# Some slots say what they see, at their end: a color of three values from -1 to 1, times COLOR; a place, its coordinates times
# PLACE; and the logarithm of an extent in each coordinate. So scaled they weigh in losses on slots: a content has variance 1.
COLOR, PLACE = 2.0, 4.0
LARGEST = 1.0  # the most that is read as the logarithm of an extent: a predicted slot may say anything
MOMENTS = 7  # values of an ISA slot besides its content: color, place and extent


class ISAModel(Section):
    """Sizes of ISA (0.1 M parameters at 64 pixels), the slot model `isa`, which is not in the paper."""

    slots: Annotated[int, Field(ge=2)] = Field(7, description="slots S per frame; walls and floor take two or three")
    slot_size: Annotated[int, Field(ge=8)] = Field(64, description="slot size D; 7 of it are color, place and extent")
    slot_iterations: PositiveInt = Field(2, description="slot-attention iterations per frame")
    slot_mlp: PositiveInt = Field(128, description="hidden size of the slot MLP")
    encoder_channels: PositiveInt = Field(32, description="width of the four 5x5 convolutions")
    encoder_stride: Literal[2, 4] = Field(4, description="stride of the first convolution")
    predictor_layers: PositiveInt = 1
    predictor_heads: PositiveInt = 4
    predictor_ffn: PositiveInt = 128
    decoder_width: PositiveInt = Field(64, description="width of the decoder, which draws each patch by itself")
    patch: Literal[1, 2, 4] = Field(2, description="pixels per side of a patch")

    _heads_divide = _divided("slot-size", "predictor-heads")


class SlotFormerModel(Section):
    """Sizes of the rollouter; the defaults are the published ones (6.42 M parameters)."""

    burn_in: PositiveInt = Field(15, description="frames of context, the constant length of the sliding window")
    stride: PositiveInt = Field(3, description="video frames between two frames of the window")
    d_model: PositiveInt = 256
    layers: PositiveInt = 8
    heads: PositiveInt = 8
    ffn: PositiveInt = 1024
    dropout: Fraction = 0.1
    residual: bool = Field(
        False,
        json_schema_extra=LATER,
        description="predict how slots change, not what they will be; not in the paper. What rests, rests exactly",
    )

    _heads_divide = _divided("d-model", "heads")


# ---------------------------------------------------------------------------------------------------- stages
Features = Literal["observed", "rollout", "full"]
Subset = Literal["training", "readout", "test"]
SUBSETS: tuple[Subset, ...] = ("training", "readout", "test")


class Videos(Section):
    """Videos of each subset, spread evenly over the eight scenarios. The default is the benchmark PhysionSim-v1."""

    training: PositiveInt = 4000
    readout: PositiveInt = 2000
    test: PositiveInt = 1000


class Simulate(Section):
    """PhysionSim videos: simulated with MuJoCo, ray cast and encoded, in Physion's own layout."""

    videos: Videos = Videos()
    seed: NonNegativeInt = 0
    image_size: Annotated[int, Field(ge=32, le=512, multiple_of=2)] = Field(128, description="pixels per side of the MP4")
    antialias: Annotated[int, Field(ge=1, le=4)] = Field(2, description="rays per pixel and axis")
    truth: tuple[Subset, ...] = Field(
        SUBSETS, description="subsets whose ground truth is kept: masks, states, contacts (about 65 kB per video)"
    )
    videos_per_part: PositiveInt = Field(
        8, json_schema_extra=KNOB, description="videos saved together; a crash loses at most this many"
    )
    workers: PositiveInt | None = Field(None, json_schema_extra=KNOB, description="processes; default: one per core")


_PUBLISHED = "https://physics-benchmarking-neurips2021-dataset.s3.amazonaws.com"
_TRAINING = f"{_PUBLISHED}/PhysionTrainMP4s.tar.gz"
_LABELS = "https://raw.githubusercontent.com/cogtoolslab/physics-benchmarking-neurips2021/master/data/readout_labels.csv"
# Matches names of query parameters that carry a signature: such a query differs each time, for the same place.
_SIGNATURE = re.compile("(^|[-_])(sig|token|key|secret|pass|pwd?$|cred|auth|private)|accesskey", re.IGNORECASE)
_ADDRESS = re.compile(r"(?!file:)\b[a-z][a-z0-9+.-]*://[^\s,\]}'\"]*[^\s,\]}'\":;.)]", re.IGNORECASE)
_HIDDEN = re.compile(r"hidden-[0-9a-f]{6}")
_EXPECTED = re.compile(r"#sha256=([0-9a-f]{64})$")
GLITCHY_CHOICES = ("leave-out", "keep")


def expected_sha256(source: str) -> str | None:
    """The SHA-256 that the configuration gives for a source: `...#sha256=<64 hexadecimal digits>`."""
    match = _EXPECTED.search(source)
    return match and match[1]


def shown_source(source: str) -> str:
    """A source as it is printed, stored and fingerprinted, without possible secrets.

    A path becomes absolute. An address keeps its scheme, host and path. A query may be a password: it becomes a few
    digits of its hash, which distinguish two places but reveal nothing. A signature differs each time, so it is dropped:
    one place has one name.
    """
    source = _EXPECTED.sub("", source)
    if "://" not in source:
        return os.path.abspath(re.sub("^//+", "/", source))  # POSIX leaves two slashes, and what they mean, to the system
    try:
        url = urlsplit(source)
        if url.port is None and url.netloc.endswith(":"):
            raise ValueError("no port")
    except ValueError:  # the part before a slash may then be half a password
        return f"{source.partition('://')[0]}://..."
    query = url.query
    if not _HIDDEN.fullmatch(query):
        signed = any(_SIGNATURE.search(key) for key, _ in parse_qsl(query, keep_blank_values=True))
        query = f"hidden-{hashlib.sha256(query.encode()).hexdigest()[:6]}" if query and not signed else ""
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2], query=query, fragment=""))


def without_secrets(text: str) -> str:
    """A text in which addresses that may hold secrets are replaced by what may be shown."""
    return _ADDRESS.sub(lambda match: shown_source(match[0]) if _secret(match[0]) else match[0], text)


def holds_secret(text: str) -> bool:
    """Whether a text contains an address that may hold a secret."""
    return any(map(_secret, _ADDRESS.findall(text)))


def _secret(address: str) -> bool:
    return shown_source(address) != _EXPECTED.sub("", address)


def _checked_source(source: str) -> str:
    source = source.removeprefix("file://")
    if not source.strip():
        raise ValueError("is empty: give a path or an address")
    if "://" in source and source.partition("://")[0].lower() not in ("http", "https"):
        raise ValueError(f"{shown_source(source)}: neither a path nor an address that begins with https:// or http://")
    if shown_source(source).endswith("://..."):
        raise ValueError(f"{shown_source(source)}: not a valid address")
    if "://" in source and not urlsplit(source).hostname:
        raise ValueError(f"{shown_source(source)}: an address without a host")
    if "#sha256=" in source and not _EXPECTED.search(source):
        raise ValueError(f"{shown_source(source.partition('#')[0])}: after #sha256= come 64 hexadecimal digits (0-9, a-f)")
    return source


def _checked_glitchy(choice: str) -> str:
    return choice if choice in GLITCHY_CHOICES else _checked_source(choice)


def _shown_glitchy(choice: str) -> str:
    return choice if choice in GLITCHY_CHOICES else shown_source(choice)


DataSource = Annotated[str, AfterValidator(_checked_source), PlainSerializer(shown_source)]
"""A path or an address. `config show`, manifests and fingerprints use `shown_source` of it."""


class Fetch(Section):
    """The official Physion videos, from a directory or from the published archives."""

    root: DataSource | None = Field(None, description="directory with the scenarios' folders somewhere below it")
    archives: dict[Subset, tuple[DataSource, ...]] = Field(
        {"training": (_TRAINING,), "readout": (_TRAINING, _LABELS), "test": (f"{_PUBLISHED}/Physion.zip",)},
        description="read if `root` is not set; by subset, or one list for all: .zip and .tar.gz archives and label files "
        "(.csv), as URLs or paths, and directories. Append #sha256=... to require a digest",
    )
    glitchy: Annotated[str, AfterValidator(_checked_glitchy), PlainSerializer(_shown_glitchy)] = Field(
        "leave-out",
        description="test stimuli with glitches: leave-out (those on the included list by the authors, or on a "
        "glitchy_stimuli.txt among the videos), keep, or your own list (URL or path)",
    )

    largest_gb: PositiveFloat = Field(
        100.0,
        json_schema_extra=KNOB,
        description="size limit, in gigabytes, of a download and of what is read from an archive or a folder; the official "
        "videos have 1.1",
    )

    @field_validator("archives", mode="before")
    @classmethod
    def _by_subset(cls, value: Any) -> Any:
        """A plain list applies to all subsets, label files by their names; subsets not given keep the published sources."""

        def several(given: Any) -> Any:
            return (given,) if isinstance(given, str) else given

        if isinstance(value, str | list | tuple):
            owner = {"readout_labels.csv": "readout", "labels.csv": "test"}
            names = {given: re.split("[?#]", str(given))[0].rpartition("/")[2] for given in several(value)}
            value = {s: [given for given, name in names.items() if owner.get(name, s) == s] for s in SUBSETS}
        if not isinstance(value, dict):
            return value
        return cls.model_fields["archives"].default | {subset: several(given) for subset, given in value.items()}


class Frames(Section):
    """Decoded, resized frames as JPEG in shards, and the split of the videos."""

    image_size: Annotated[int, Field(ge=32, le=512, multiple_of=4)] = Field(128, description="pixels per side")
    frames: PositiveInt = Field(150, description="frames kept from each video, from its start")
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 95
    heldout: Fraction = Field(
        0.05, description="share of training and readout videos held out for measurements, in whole families of near twins"
    )
    videos_per_shard: PositiveInt = Field(256, description="videos per shard (about 200 MB at 128 pixels)")
    workers: PositiveInt | None = Field(None, json_schema_extra=KNOB, description="processes; default: one per core")


class Optim(Section):
    """Adam with linear warm-up and cosine decay; `batch_size` is the global one."""

    lr: PositiveFloat
    batch_size: PositiveInt
    steps: PositiveInt
    warmup: Fraction = Field(0.05, description="share of the steps spent warming up from lr * final_lr")
    final_lr: Fraction = Field(0.01, description="last learning rate as a share of lr")
    clip: PositiveFloat | None = Field(None, description="largest global gradient norm")


class TrainingStage(Section):
    """Options of every training."""

    optim: Optim
    seed: NonNegativeInt = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the GPU supports it, fp16 on older GPUs, fp32 on CPU"
    )
    heldout_every: PositiveInt = Field(1000, description="steps between held-out measurements")
    heldout_batches: PositiveInt = Field(20, description="held-out batches per measurement, spread over all held-out clips")
    checkpoint_every: PositiveInt = Field(500, json_schema_extra=KNOB, description="steps between checkpoints")
    ranks: PositiveInt | None = Field(
        None,
        json_schema_extra=KNOB,
        description="processes that train together in `physion run`; default: one per GPU, or one on a CPU. Another number "
        "rounds differently (docs/reproduce.md)",
    )
    threads: PositiveInt | None = Field(
        None,
        json_schema_extra=KNOB,
        description="torch's CPU threads per rank; default: all cores; 1 suits small models",
    )
    loader_workers: Annotated[int, Field(ge=0)] | None = Field(
        None, json_schema_extra=KNOB, description="data processes per rank; default: none on a CPU, up to 8 with a GPU"
    )
    micro_batch: PositiveInt | None = Field(
        None,
        json_schema_extra=KNOB,
        description="samples that a rank computes at a time; default: all of its share, or less for the dVAE on a CPU",
    )
    compile: bool = Field(False, json_schema_extra=KNOB, description="use torch.compile, where the minutes it takes pay off")
    stuck_after: PositiveFloat = Field(
        600.0, json_schema_extra=KNOB, description="end the job after this many seconds without a step, a batch or an answer"
    )


class ReplaceableStage(TrainingStage):
    """A training that given weights can replace."""

    weights: str | None = Field(
        None, json_schema_extra=KNOB, description="use pretrained/<name> in the store, or builtin/<name>, instead of training"
    )


class GumbelTemperature(Section):
    """Temperature of the relaxed codes: a half cosine from `start` to `end` over the first `share` of the steps."""

    start: PositiveFloat = 1.0
    end: PositiveFloat = 0.1
    share: Annotated[float, Field(gt=0, le=1)] = 0.15


class TrainDVAE(ReplaceableStage):
    """The discrete VAE that turns a frame into tokens."""

    model: DVAEModel = DVAEModel()
    tau: GumbelTemperature = GumbelTemperature()


class Tokenize(Section):
    """dVAE tokens of every frame, int16."""

    videos_per_shard: PositiveInt = Field(512, description="videos per shard (about 160 MB at 1024 tokens per frame)")
    batch_size: PositiveInt = Field(64, json_schema_extra=KNOB, description="frames per forward pass")


class TrainSTEVE(ReplaceableStage):
    """Slots from video: slot attention over time, trained by predicting the tokens of every frame."""

    model: STEVEModel = STEVEModel()
    clip_frames: PositiveInt = Field(6, description="successive frames per training clip")
    decoder_lr: PositiveFloat = Field(3e-4, description="peak learning rate of the decoder (everything else uses optim.lr)")
    balance: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        json_schema_extra=LATER,
        description="weight a token in the loss by its code's frequency to the power of minus this; not in the paper. At 1 all "
        "codes have equal weight, and small objects of a rare color as much as the floor",
    )


class TrainISA(ReplaceableStage):
    """Slots from video without a dVAE: slots that have a color, a place and an extent, trained by drawing the frames."""

    optim: Optim = Optim(lr=6e-4, batch_size=16, steps=12_000, final_lr=0.0, clip=0.5)
    model: ISAModel = ISAModel()
    clip_frames: PositiveInt = Field(4, description="successive frames per training clip")
    drawn: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="share of a frame's patches that a training step draws"
    )


class ExtractSlots(Section):
    """Slots of every frame of whole videos."""

    videos_per_shard: PositiveInt = Field(256, description="videos per shard (about 170 MB at 6 slots of 192)")
    batch_size: PositiveInt = Field(8, json_schema_extra=KNOB, description="videos per forward pass")
    chunk_frames: PositiveInt = Field(30, json_schema_extra=KNOB, description="frames per forward pass; the state carries over")


class TrainSlotFormer(ReplaceableStage):
    """The rollouter: slot dynamics, predicted autoregressively."""

    model: SlotFormerModel = SlotFormerModel()
    rollout_frames: PositiveInt = Field(10, description="frames predicted per training clip, after the burn-in")


class Rollout(Section):
    """Predicted slots after the observed frames of a video."""

    observed: PositiveInt = Field(45, description="frames seen (1.5 s)")
    videos_per_shard: PositiveInt = 256
    batch_size: PositiveInt = Field(32, json_schema_extra=KNOB, description="videos per forward pass")


class ReadoutFrames(Section):
    """How many frames of a video a readout sees; with features `observed` it is rollout.observed."""

    rollout: PositiveInt = Field(75, description="mode `rollout`: observed frames, then predicted ones")
    full: PositiveInt = Field(150, description="mode `full`: slots found in the whole video; shows what the rollout costs")


class TrainReadout(TrainingStage):
    """The readout: will red touch yellow?"""

    model: str = Field("readout", description="which kind of readout")
    frames: ReadoutFrames = ReadoutFrames()
    features: Distinct[Features] = Field(
        ("observed", "rollout", "full"), json_schema_extra=KNOB, description="one readout for each"
    )
    weights: dict[Features, str] = Field(
        {},
        json_schema_extra=KNOB,
        description="weights to use instead of training, by feature mode; {seed} in a name stands for the seed",
    )
    seeds: Distinct[NonNegativeInt] = Field((0, 1, 2), json_schema_extra=KNOB, description="one readout for each")
    keep: Literal["last", "best"] = Field(
        "last", description="which weights to use: the last, as published, or those with the lowest held-out loss"
    )


Source = Literal[
    "label-prior",
    "scenario",
    "first-frame",
    "observed-frames",
    "tokens-observed",
    "states-observed",
    "states-rollout",
    "states-full",
    "picture-observed",
    "picture-rollout",
    "picture-full",
    "slots-observed",
    "slots-rollout",
    "slots-full",
    "places-observed",
    "places-rollout",
    "places-full",
]


class Regress(Section):
    """Regressions on slots and on inputs that need no slot model.

    Without ground truth, those on states and on the picture are omitted; those on places, if slots do not say them.
    """

    on: Distinct[Source] = Field(
        get_args(Source), json_schema_extra=KNOB, description="what to predict from, one regression each"
    )
    stride: PositiveInt = Field(5, description="use every frame that is a multiple of this")
    seed: NonNegativeInt = 0


class Evaluate(Section):
    """The test, once: accuracy with intervals, plots and the report."""

    resamples: PositiveInt = Field(2000, description="bootstrap resamples of the 95 % intervals")
    seed: NonNegativeInt = 0
    measured_videos: PositiveInt = Field(
        200, description="test videos, and held-out training videos, on which slots are measured, evenly spaced over all"
    )
    videos: Annotated[int, Field(ge=0)] = Field(8, description="test videos shown in the report")
    people: tuple[str, ...] = Field(
        (),
        json_schema_extra=LATER,
        description="CSV files, or folders of them, with people's answers to the same stimuli (docs/reproduce.md)",
    )
    shown_frames: PositiveInt = Field(15, description="frames of each shown video, evenly spaced over all of it")


class Study(Section):
    """The whole study; loading a preset adds a section for each stage to this class (`physion.config.load`)."""

    preset: str = Field("custom", description="name of the preset; set on loading")
    plugins: tuple[str, ...] = Field((), description="Python modules to import first; they add stages and kinds of models")
    dataset: str = Field("simulate", description="where the videos come from: simulate or fetch")
    slot_model: str = Field("steve", description="the model that finds the slots")

    def section(self, stage: str) -> Any:
        """The section of a stage."""
        return getattr(self, stage.replace("-", "_"))
