"""The studies in a store, finished or running, and how to distinguish them, and artifacts of one instance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from physion.config.load import load_config, preset_names
from physion.errors import DataError
from physion.pipeline.graph import build_graph
from physion.pipeline.why import leaves
from physion.stages import last_stage
from physion.store.artifacts import ArtifactWriter, Manifest
from physion.store.protocol import Store
from physion.store.survey import survey

Options = dict[str, dict[str, Any]]  # for each instance, those in its fingerprint


@dataclass(frozen=True)
class RecordedStudy:
    """A study in a store.

    preset: the nearest of those included with the package; changed: option -> value, where the study differs from it. report:
    the manifest of its report, None while it is running. done, total: stage instances, as far as known.
    """

    preset: str
    changed: dict[str, Any]
    done: int
    total: int
    report: Manifest | None
    options: dict[str, Any]
    """All options that affect results, by stage and name; for stages with several instances, those of the last."""


def studies(store: Store) -> list[RecordedStudy]:
    """The studies of a store, newest report first, then those still running. Raises the errors of a store that does not answer.

    A study is known by its report or, while one of its stages is running, by that stage; unreadable manifests are ignored.
    """
    everything = survey(store)
    made = {found.manifest.fingerprint: found.manifest for found in everything if found.manifest}
    presets = {name: _options_of(name) for name in preset_names()}
    recorded = []
    for report in sorted((m for m in made.values() if m.stage == last_stage().name), key=lambda m: m.created, reverse=True):
        members, wanted = dict[str, Manifest](), [report.fingerprint]
        while wanted:
            manifest = made.get(wanted.pop())
            if manifest and manifest.instance not in members:
                members[manifest.instance] = manifest
                wanted += [record.fingerprint for record in manifest.inputs.values()]
        recorded.append(_recorded(members, presets, len(members), report))
    at_work: dict[tuple[tuple[str, str], ...], None] = {}
    for found in everything:
        if found.manifest or found.problem:
            continue
        try:
            begun = ArtifactWriter(store, found.stage, found.fingerprint).begun()
        except DataError:
            continue
        if begun and begun.study:
            at_work[tuple(sorted(begun.study.items()))] = None
    for study in at_work:
        members = {name: made[fingerprint] for name, fingerprint in study if fingerprint in made}
        recorded.append(_recorded(members, presets, len(study), None))
    return recorded


def apart(manifests: Sequence[Manifest]) -> list[str]:
    """For each artifact, what distinguishes it from the others of its instance, such as `optim.lr=0.001`; otherwise nothing."""
    of_instance: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        of_instance.setdefault(manifest.instance, []).append(manifest)
    return [", ".join(_differs(manifest, of_instance[manifest.instance])) for manifest in manifests]


def _differs(manifest: Manifest, others: Iterable[Manifest]) -> list[str]:
    found = dict[str, None]()
    for other in others:
        for (area, *rest), _, value in leaves(other.identity, manifest.identity):
            name = ".".join(rest if area == "config" and rest else [area, *rest])  # nothing if one has no such part at all
            found[f"another {rest[0]}" if area == "inputs" and rest else f"{name}={value}"] = None
    return list(found)


def _options_of(preset: str) -> Options:
    return {name: node.identity["config"] for name, node in build_graph(load_config(preset, [])).items()}


def _recorded(
    members: Mapping[str, Manifest], presets: Mapping[str, Options], total: int, report: Manifest | None
) -> RecordedStudy:
    changes = {name: _changes(members.values(), options) for name, options in presets.items()}
    # Compare the shape of the study first: a preset without a training lacks a whole section, which would count as little.
    nearest = min(changes, key=lambda name: (len(members.keys() - presets[name].keys()), len(changes[name])))
    options = {
        ".".join([manifest.stage, *path]): value for manifest in members.values() for path, value in _flat(manifest.config)
    }
    return RecordedStudy(nearest, changes[nearest], len(members), total, report, options)


def _flat(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value below, with its path."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, (*above, key))
        else:
            yield (*above, key), value


def _changes(members: Iterable[Manifest], preset: Options) -> dict[str, Any]:
    """Options that differ from the preset."""
    changed: dict[str, Any] = {}
    for manifest in members:
        for path, _, value in leaves(preset.get(manifest.instance, {}), manifest.config):
            changed[".".join([manifest.stage, *path])] = value
    return changed
