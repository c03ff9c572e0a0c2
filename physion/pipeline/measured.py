"""Predicts what a run will take on a machine from what the store's artifacts took on a machine like it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from physion.machine import Machine
from physion.pipeline.graph import Node
from physion.pipeline.why import artifacts_of
from physion.stages import Kind
from physion.store.artifacts import Manifest
from physion.store.protocol import Store

AT_ONCE = 16  # stages queried at once
LATEST = 5  # rates are medians over this many artifacts of a stage: code and machines change


class Measured:
    """Rates and latest times from the published artifacts of some instances' stages.

    device: the name of a GPU or CPU, or part of it, as in manifests (`device_of`); rates use only artifacts made there.
    """

    def __init__(self, nodes: Iterable[Node], store: Store, device: str) -> None:
        stages = sorted({node.stage.name for node in nodes})
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(lambda stage: artifacts_of(store, stage), stages)
            newest_first = [sorted(those, key=lambda m: m.created, reverse=True) for those in found]
        self._of_stage = dict(zip(stages, newest_first, strict=True))
        self._device = device

    def add(self, manifest: Manifest) -> None:
        """Include an artifact made since."""
        self._of_stage.setdefault(manifest.stage, []).insert(0, manifest)

    def last(self, node: Node) -> Manifest | None:
        """The latest artifact of the same instance, with any configuration and from any machine."""
        return next((m for m in self._of_stage[node.stage.name] if m.instance == node.name), None)

    def seconds(self, node: Node) -> float | None:
        """Estimated seconds, as a manifest will report them: for a stage with parts, the sum over the parts. None if unknown.

        Proportional to FLOPs, or to the output's size without FLOPs; for stages that estimate neither, what the same instance
        took.
        """
        here = [m for m in self._of_stage[node.stage.name] if self._device.lower() in device_of(m).lower()]
        if work := node.cost.flops or node.cost.bytes:
            made = [m for m in here if m.work >= 1]
            # One stage can do different work: slots come from a model, or from the dataset's ground truth.
            alike = [m for m in made if m.inputs.keys() == node.inputs.keys()]
            rates = [m.seconds / m.work for m in alike or made][:LATEST]
            return work * statistics.median(rates) if rates else None
        return next((m.seconds for m in here if m.instance == node.name), None)


def device_of(manifest: Manifest) -> str:
    """The GPU that an artifact was made on, otherwise the CPU; empty if the manifest does not say."""
    return str(manifest.host.get("gpu") or manifest.host.get("cpu") or "")


def wall_clock(nodes: Iterable[Node], seconds: Mapping[str, float], machine: Machine) -> float:
    """The least time in seconds that a machine needs for instances that each take so many: that of the longest chain of
    dependent instances, or that of all work spread over cores or GPUs, whichever is longer.
    """
    busy, end = 0.0, dict[str, float]()
    for node in nodes:
        took = seconds.get(node.name, 0.0)
        units = len(machine.gpus) if node.stage.gpu and machine.gpus else machine.cores
        if node.stage.kind is Kind.PARTS:
            alone, share = took / units, took / units
        else:
            ranks = getattr(node.section, "ranks", None) or 1
            threads = getattr(node.section, "threads", None) or (units if node.stage.gpu and not machine.gpus else 1)
            alone, share = took, took * min(1.0, ranks * threads / units)
        busy += share
        end[node.name] = alone + max((end.get(source, 0.0) for source in node.inputs.values()), default=0.0)
    return max([busy, *end.values()])
