"""Artifacts that two stores both have: which of them differ, judged by their manifests alone, and which differ first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from physion.errors import DataError
from physion.store.artifacts import WITH_TIMES, Manifest
from physion.store.survey import Found


@dataclass(frozen=True)
class Pair:
    """An artifact as it is in the first store and in the second."""

    a: Manifest
    b: Manifest
    files: list[str]
    """Names of files that differ or that only one of them has; files that contain times do not count."""
    after: list[str]
    """Which of its inputs differ as well: its own differences may follow from those."""

    @property
    def differs(self) -> bool:
        """Whether anything in it differs."""
        return bool(self.files) or self.a.metrics != self.b.metrics


def pair_up(a: Sequence[Found], b: Sequence[Found]) -> list[Pair]:
    """The artifacts whose fingerprint both stores have, inputs before what is made from them."""
    there = {found.fingerprint: found.manifest for found in b}
    both = {
        found.fingerprint: (found.manifest, other)
        for found in sorted(a, key=lambda found: found.manifest.instance if found.manifest else "")
        if found.manifest and (other := there.get(found.fingerprint))
    }
    pairs: dict[str, Pair] = {}
    sorter = TopologicalSorter({key: _inputs(one) for key, (one, _) in both.items()})
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        raise DataError(f"manifests name each other as inputs ({' -> '.join(error.args[1])}): make these anew") from error
    for fingerprint in order:
        if fingerprint in both:
            one, other = both[fingerprint]
            ours, theirs = ({record.name: record.sha256 for record in manifest.files} for manifest in (one, other))
            files = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
            inputs = [pairs[source] for source in _inputs(one) if source in pairs]
            after = [pair.a.instance for pair in inputs if pair.differs]
            pairs[fingerprint] = Pair(one, other, [name for name in files if name not in WITH_TIMES], after)
    return list(pairs.values())


def _inputs(manifest: Manifest) -> list[str]:
    """Fingerprints of its inputs."""
    return list(dict.fromkeys(record.fingerprint for record in manifest.inputs.values()))
