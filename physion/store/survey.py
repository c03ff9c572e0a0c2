"""What a store holds: artifacts, unfinished work and leftovers; which of these a name refers to; which of them no run needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from physion.errors import ConfigError, DataError, PhysionError, nearest
from physion.store.artifacts import MANIFEST, ArtifactWriter, Manifest, prefix_of, read_manifest
from physion.store.keys import WORD
from physion.store.protocol import Store

AT_ONCE = 16  # small requests to the store


@dataclass(frozen=True)
class Found:
    """Everything at `artifacts/<stage>/<fingerprint>/`: an artifact, or work that has no manifest yet."""

    stage: str
    fingerprint: str
    keys: list[str]
    manifest: Manifest | None
    problem: str | None = None
    """Why the manifest cannot be read, if so, or why this is not an artifact at all."""

    @property
    def prefix(self) -> str:
        """Where it is."""
        return prefix_of(self.stage, self.fingerprint)

    @property
    def bytes(self) -> int:
        """Total size of the files that the manifest names."""
        return sum(record.size for record in self.manifest.files) if self.manifest else 0

    @property
    def leftovers(self) -> list[str]:
        """Keys that no manifest names: for an artifact, what was not cleaned up; for unfinished work, everything."""
        named = {f"{self.prefix}/{record.name}" for record in self.manifest.files} if self.manifest else set()
        return [key for key in self.keys if key not in named and key != f"{self.prefix}/{MANIFEST}"]


@dataclass(frozen=True)
class Verdict:
    """What happens to some of an entry's keys, and why."""

    found: Found
    remove: bool
    keys: list[str]
    reason: str


def survey(store: Store) -> list[Found]:
    """Everything below `artifacts/`, by stage and fingerprint."""
    places: dict[tuple[str, str], list[str]] = {}
    strays = []
    for key in store.list("artifacts"):
        parts = key.split("/", 3)
        if len(parts) == 4 and all(map(WORD.fullmatch, parts[1:3])):
            places.setdefault((parts[1], parts[2]), []).append(key)
        else:
            problem = f"{store.uri}/{key} is part of no artifact, and only stages write there: remove it"
            strays.append(Found(parts[1], "", [key], None, problem))

    def look(place: tuple[str, str]) -> Found:
        keys = places[place]
        try:
            published = f"{prefix_of(*place)}/{MANIFEST}" in keys
            return Found(*place, keys, read_manifest(store, *place) if published else None)
        except PhysionError as error:
            if isinstance(error, ConfigError | DataError):
                return Found(*place, keys, None, str(error))
            raise

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [*pool.map(look, places), *strays]


def select(everything: Sequence[Found], name: str) -> list[Found]:
    """The artifacts that a name means: an instance (`frames-test`), a stage, the start of a fingerprint or `stage/fingerprint`.

    Raises ConfigError if there are none.
    """
    name = name.removeprefix("artifacts/").rstrip("/")
    chosen = [found for found in everything if name == found.stage or (found.manifest and name == found.manifest.instance)]
    chosen = chosen or [
        f for f in everything if f.fingerprint.startswith(name) or f"{f.stage}/{f.fingerprint}".startswith(name)
    ]
    if not chosen:
        known = {found.stage for found in everything} | {f.manifest.instance for f in everything if f.manifest}
        raise ConfigError(f"no artifact is called '{name}'{nearest(name, sorted(known))}: `physion store ls` lists them")
    return chosen


def judge(store: Store, everything: Sequence[Found], keep: set[str] | None, days: float) -> list[Verdict]:
    """What to remove and what to keep.

    To remove: leftovers beside published artifacts; unfinished work that nobody touched for `days`; and, if `keep`
    (fingerprints) says what is needed, all other artifacts. Besides those in `keep`, everything that may belong to a running
    job stays: whatever was written within `days`, the studies it belongs to, and the inputs of all these.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ages = dict(zip((f.prefix for f in everything), pool.map(partial(_age, store), everything), strict=True))
    fresh = {found.fingerprint for found in everything if ages[found.prefix] < days * 86400}
    everything, studies, unknown = _studies(store, everything, fresh)
    unknown |= any(found.problem and found.fingerprint in fresh for found in everything)  # what it was made from is not known
    needed = _with_inputs(everything, (keep or set()) | fresh | studies)
    verdicts = []
    for found in everything:
        if found.problem:
            verdicts.append(Verdict(found, False, found.keys, found.problem))
        elif found.manifest is None:
            untouched = f"unfinished, last written {ages[found.prefix] / 86400:.1f} days ago"
            verdicts.append(Verdict(found, not (unknown or found.fingerprint in needed), found.keys, untouched))
        elif keep is not None and found.fingerprint not in needed and unknown:
            verdicts.append(Verdict(found, False, found.keys, "a damaged study or manifest hides whether it is still needed"))
        elif keep is not None and found.fingerprint not in needed:
            verdicts.append(Verdict(found, True, found.keys, "no preset that is kept and no recent run needs it"))
        else:
            if found.leftovers:
                verdicts.append(Verdict(found, True, found.leftovers, "left beside a published artifact"))
            rest = [key for key in found.keys if key not in set(found.leftovers)]
            verdicts.append(Verdict(found, False, rest, "needed" if keep is not None else "published"))
    return verdicts


def remove(store: Store, verdict: Verdict, days: float) -> bool:
    """Carry out a verdict; False if somebody has worked there since the survey."""
    if store.list(verdict.found.prefix) != verdict.found.keys:
        return False
    if verdict.found.manifest is None and _age(store, verdict.found) < days * 86400:  # `study.json` alone was rewritten
        return False
    if len(verdict.keys) == len(verdict.found.keys):
        ArtifactWriter(store, verdict.found.stage, verdict.found.fingerprint).erase()
    else:
        for key in verdict.keys:
            store.delete(key)
    return True


def sizes(store: Store, keys: Iterable[str]) -> int:
    """Total size of these objects in bytes."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(size or 0 for size in pool.map(store.size, keys))


def _age(store: Store, found: Found) -> float:
    """Seconds since the last write."""
    if found.manifest:
        return found.manifest.age
    return min((age for key in found.keys if (age := store.age(key)) is not None), default=0.0)


def _studies(store: Store, everything: Sequence[Found], fresh: set[str]) -> tuple[list[Found], set[str], bool]:
    """What was found, with damaged `study.json` files as problems; the fingerprints of the studies in progress; any problem?"""
    known, needed, unknown = [], set[str](), False
    for found in everything:
        if found.manifest is None and found.problem is None and found.fingerprint in fresh:
            try:
                begun = ArtifactWriter(store, found.stage, found.fingerprint).begun()
                needed |= set(begun.study.values()) if begun else set()
            except DataError as error:
                found, unknown = replace(found, problem=str(error)), True
        known.append(found)
    return known, needed, unknown


def _with_inputs(everything: Sequence[Found], roots: set[str]) -> set[str]:
    inputs = {
        found.fingerprint: {record.fingerprint for record in found.manifest.inputs.values()}
        for found in everything
        if found.manifest
    }
    needed: set[str] = set()
    new = roots
    while new:
        needed |= new
        new = set().union(*(inputs.get(fingerprint, set()) for fingerprint in new)) - needed
    return needed
