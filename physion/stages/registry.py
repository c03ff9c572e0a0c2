"""What a stage declares about itself, once; graph, plan, workflow, estimates and command line all derive from it.

A stage is a pure function from its settings, its inputs and its parameters to one artifact. Importing this loads no torch.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from physion.config.schema import Section
from physion.errors import ConfigError
from physion.job import Job
from physion.models.kinds import MODELS

Params = Mapping[str, str | int]
BYTES_A_FLOP = (
    0.05  # share of a forward pass kept for the backward pass, from the dVAE, which keeps most (690 MiB for 8 published images)
)


class Kind(enum.Enum):
    """How a stage's work is done."""

    PARTS = "parts"
    """A list of parts, which several processes or pods can divide."""
    TRAINING = "training"
    """Ranks that train together; on a cluster, a separate job."""
    PROCESS = "process"
    """One process."""


@dataclass(frozen=True)
class Cost:
    """Estimated output in bytes, work in floating-point operations, and memory on a CPU on top of the program's own."""

    bytes: float = 0.0
    flops: float = 0.0
    memory: float = 0.0


def training_cost(model: str, sample_flops: Callable[[Any], float] | None = None) -> Callable[[Any, Params], Cost]:
    """The cost of training a kind of model, from the table of kinds. sample_flops: replaces the kind's."""

    def cost(config: Any, params: Params) -> Cost:
        kind = MODELS[model]
        optim = config.section(kind.stage).optim
        forward = (sample_flops or kind.sample_flops)(config)
        weights = 4 * kind.parameters(config)
        batch = forward * optim.batch_size
        # Backward costs twice as much as forward. Gradients, Adam's two moments and a checkpoint copy are each as large as the
        # weights.
        return Cost(weights, 3 * batch * optim.steps, 5 * weights + BYTES_A_FLOP * batch)

    return cost


@dataclass(frozen=True)
class Instance:
    """A stage with its parameters, as an input of another or an element of the graph."""

    stage: str
    params: Params = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as frames-test or train-readout-rollout-0."""
        return "-".join([self.stage, *map(str, self.params.values())])


@dataclass(frozen=True)
class Named:
    """Named weights in the store, `pretrained/<name>`, as an input."""

    reference: str


Source = Instance | Named


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the study.

    version: raise it when a code change affects the output. module: where its `run(job)` is; default: in physion.stages under
    its name. section: its section of the configuration, named like the stage; `replaced` lists the fields of it that the stage
    reads through `settings` instead. settings: what else of the configuration it reads, by name, for these parameters. Section
    (except knobs and replaced fields) and settings form its identity, together with the version, `facts` (about the machine,
    where they affect results) and its inputs. reads: its inputs by role. check: raises ValueError for a configuration that
    cannot work. makes: what other stages can make in its place, such as a dataset. fans_out: the parameter whose values one
    workflow task covers. For people: summary; note: what else the plan should say, from the configuration and, once it is made,
    its metrics; absent: why a study does not have it, and what would add it.
    """

    name: str = field(kw_only=False)
    version: int = 1
    kind: Kind
    summary: str
    module: str = ""
    reads: Callable[[Any, Params], Mapping[str, Source]] = lambda config, params: {}
    section: type[Section] | None = None
    replaced: tuple[str, ...] = ()
    settings: Callable[[Any, Params], Mapping[str, Any]] = lambda config, params: {}
    cost: Callable[[Any, Params], Cost] = lambda config, params: Cost()
    check: Callable[[Any], None] = lambda config: None
    facts: Callable[[], Mapping[str, str]] = dict
    note: Callable[[Any, Params, Mapping[str, Any] | None], str] = lambda config, params, metrics: ""
    makes: str = ""
    tells_truth: Callable[[Any, str], bool] = lambda config, subset: False
    """For a stage that makes datasets: whether it publishes ground truth about a subset's videos (`physion.data.truth`)."""
    fans_out: str = ""
    absent: str = ""
    gpu: bool = False
    """Whether it computes on a GPU if there is one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", self.module or f"physion.stages.{self.key}")

    @property
    def key(self) -> str:
        """The name of its section as a field of the configuration."""
        return self.name.replace("-", "_")

    def load(self) -> Callable[[Job], dict[str, Any]]:
        """The stage's `run(job) -> headline metrics`; loading it may load torch. Raises ConfigError if there is none."""
        run: Callable[[Job], dict[str, Any]] | None = getattr(importlib.import_module(self.module), "run", None)
        if run is None:
            raise ConfigError(f"stage {self.name}: module {self.module} has no run(job)")
        return run


class Registry(dict[str, Stage]):
    """The stages by name, each after those that it reads."""

    def register(self, stage: Stage) -> None:
        """Add a stage. Each name can be used once; adding the same stage again changes nothing. Raises ConfigError."""
        known = self.setdefault(stage.name, stage)
        if known.module != stage.module:
            raise ConfigError(f"two stages are called '{stage.name}': {known.module} and {stage.module}")

    def that_make(self, what: str) -> list[str]:
        """Names of the stages that can make it."""
        return [stage.name for stage in self.values() if stage.makes == what]

    def of_kind(self, kind: Kind) -> list[str]:
        """Names of the stages of a kind."""
        return [stage.name for stage in self.values() if stage.kind is kind]


STAGES = Registry()
