"""`physion store ...`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from physion.commands import AsJSON, StoreURI, chosen_store, copy_out, folder, print_json, print_table, raise_each
from physion.commands.serve import serve
from physion.config.load import load_config
from physion.errors import ConfigError, DataError
from physion.pipeline.graph import build_graph
from physion.pipeline.studies import apart
from physion.progress import byte_count, progress
from physion.store.artifacts import MANIFEST, Artifact, FileRecord, read_manifest
from physion.store.keys import checked_key
from physion.store.local import LocalStore
from physion.store.pairs import Pair, pair_up
from physion.store.pretrained import PREFIX
from physion.store.protocol import Store, Upload
from physion.store.survey import Found, Verdict, judge, remove, select, sizes, survey
from physion.store.uri import open_store

if TYPE_CHECKING:
    from physion.data.differences import Differences

VERIFIERS = 4  # files at once
NAME = "An instance such as frames-test, a stage, or the start of a fingerprint (or of stage/fingerprint)."

store_app = typer.Typer(help="Manage stores.", no_args_is_help=True)
store_app.command("serve", epilog="Example: physion store serve runs/s3")(serve)


@store_app.command(epilog="Example: physion store create -s s3://physion/study")
def create(store: StoreURI) -> None:
    """Create the bucket of an S3 store (the folder of a local one), unless it exists."""
    target = chosen_store(store)
    target.create()
    print(target.uri)


@store_app.command(epilog="Examples: physion store ls -s runs/tiny    |    physion store ls train-dvae --files -s runs/tiny")
def ls(
    store: StoreURI,
    name: Annotated[str | None, typer.Argument(metavar="[ARTIFACT]", help=NAME)] = None,
    files: Annotated[bool, typer.Option("--files", help="List files, with the keys that `get` takes.")] = False,
    as_json: AsJSON = False,
) -> None:
    """List artifacts and unfinished work."""
    target = chosen_store(store)
    everything = survey(target)
    chosen = everything if name is None else select(everything, name)
    if as_json:
        print_json([_facts(found, files) for found in chosen])
    elif files:
        for found in chosen:
            for record in _files(found):
                print(f"{byte_count(record.size):>8}  {found.prefix}/{record.name}")
    else:
        manifests = [found.manifest for found in chosen if found.manifest]
        differs = dict(zip((m.fingerprint for m in manifests), apart(manifests), strict=True))
        columns = ["artifact", "fingerprint", "created", "files", "size", *(["differs in"] if any(differs.values()) else [])]
        table = Table(title=escape(f"store {target.uri}"), title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in ("size", "files") else "left")
        for found in chosen:
            cells = ("", str(len(found.keys)), "")
            if found.manifest:
                created = found.manifest.created[:16].replace("T", " ")
                cells = (created, str(len(found.manifest.files)), byte_count(found.bytes))
            row = (_title(found), found.fingerprint[:12], *cells, differs.get(found.fingerprint, ""))
            table.add_row(*map(escape, row[: len(columns)]))
        print_table(table)
    raise_each([found.problem for found in chosen if found.problem])


@store_app.command(
    epilog="Examples: physion store get evaluate report -s runs/tiny    |    "
    "physion store get artifacts/evaluate/FINGERPRINT/report.html . -s runs/tiny"
)
def get(
    store: StoreURI,
    name: Annotated[str, typer.Argument(metavar="ARTIFACT|KEY", help=NAME + " Or the key of one file.")],
    destination: Annotated[
        Path, typer.Argument(parser=folder, metavar="DEST", help="A folder; for one file, also the file to write.")
    ],
) -> None:
    """Copy an artifact, or one file, out of the store. Files of artifacts are verified."""
    target = chosen_store(store)
    if "/" in name and target.size(name) is not None:
        copy_out(_local(target, name), destination / Path(name).name if destination.is_dir() else destination)
        return
    chosen = [found for found in select(survey(target), name) if found.manifest]
    if len(chosen) != 1:
        names = ", ".join(f"{_title(found)} ({found.fingerprint[:12]})" for found in chosen) or "nothing that is finished"
        raise ConfigError(f"'{name}' means {names}: name one artifact")
    records = _files(chosen[0])
    with progress("get", sum(record.size for record in records), "bytes") as bar:
        for record in records:
            copy_out(_local(target, f"{chosen[0].prefix}/{record.name}"), destination / record.name)
            bar.advance(record.size)
    print(destination)


@store_app.command(epilog="Example: physion store put slots.pkl published/slots.pkl -s runs/tiny")
def put(
    store: StoreURI,
    path: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The file to copy.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name in the store, such as published/slots.pkl.")],
) -> None:
    """Copy a file of your own into the store; nothing is ever overwritten."""
    if checked_key(key).split("/")[0] in ("artifacts", PREFIX) or key.startswith("."):
        raise ConfigError(
            f"key '{key}': only stages and `physion weights` write there; choose another, such as files/{path.name}"
        )
    target = chosen_store(store)
    scratch = target.scratch()
    try:
        copy = Path(shutil.copyfile(path, scratch / "file"))
        if not target.upload(key, copy):
            raise ConfigError(f"{target.uri}/{key} is there already, and nothing was written: choose another key")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{target.uri}/{key}")


@store_app.command(epilog="Examples: physion store verify -s runs/tiny    |    physion store verify train-dvae -s runs/tiny")
def verify(
    store: StoreURI,
    names: Annotated[list[str] | None, typer.Argument(metavar="[ARTIFACT...]", help=NAME)] = None,
    as_json: AsJSON = False,
) -> None:
    """Read every file of artifacts from the store, not from the cache, and check its SHA-256."""
    target = open_store(store)
    everything = survey(target)
    if not everything:
        raise ConfigError(f"there are no artifacts in {target.uri}: check the name of the store")
    chosen = [found for name in names for found in select(everything, name)] if names else everything
    work = [(found, record) for found in chosen for record in _files(found)]
    problems = [found.problem for found in chosen if found.problem]
    with (
        progress("verify", sum(record.size for _, record in work), "bytes") as bar,
        ThreadPoolExecutor(VERIFIERS) as pool,
    ):
        for (_, record), problem in zip(work, pool.map(lambda item: _problem(target, *item), work), strict=True):
            problems += [problem] if problem else []
            bar.advance(record.size)
    if as_json:
        print_json({"files": len(work), "problems": problems})
    if problems:
        raise DataError(f"{len(problems)} of {len(work)} files are bad:\n" + "\n".join(problems))
    if not as_json:
        print(f"{len(work)} files of {len(chosen)} artifacts match their manifests")


@store_app.command(
    epilog="Examples: physion store diff runs/a s3://bucket/b    |    physion store diff runs/a runs/b train-dvae --json"
)
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A store: a path, file:///path or s3://bucket/prefix.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another store.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[ARTIFACT...]", help=NAME)] = None,
    as_json: AsJSON = False,
) -> None:
    """Say which artifacts that both stores have differ, in which files and by how much; exit code 1 if any does.

    Artifacts whose inputs are all equal come first: the others may follow from them. Files that contain times are skipped.
    """
    from physion.data.differences import differences, differing_values  # imports numpy

    stores = [chosen_store(uri) for uri in (one, other)]
    everything = [survey(store) for store in stores]
    for store, there in zip(stores, everything, strict=True):
        if not there:
            raise ConfigError(f"there are no artifacts in {store.uri}: check the name of the store")
    union = [*everything[0], *everything[1]]
    chosen = {found.fingerprint for name in names for found in select(union, name)} if names else {f.fingerprint for f in union}
    problems = [found.problem for found in union if found.problem and found.fingerprint in chosen]
    pairs = [pair for pair in pair_up(*everything) if pair.a.fingerprint in chosen]
    if not pairs and not problems:
        raise ConfigError(f"{stores[0].uri} and {stores[1].uri} have no {'such ' if names else ''}artifact in common")
    both = {pair.a.fingerprint for pair in pairs}
    alone = [[f.prefix for f in there if f.manifest and f.fingerprint in chosen - both] for there in everything]
    differing = sorted((pair for pair in pairs if pair.differs), key=lambda pair: bool(pair.after))
    found: list[tuple[Pair, dict[str, Differences | str]]] = []
    with progress("diff", sum(len(pair.files) for pair in differing), "files") as bar:
        for pair in differing:
            files: dict[str, Differences | str] = {}
            for name in pair.files:
                try:
                    files[name] = differences(name, Artifact(stores[0], pair.a), Artifact(stores[1], pair.b))
                except DataError as error:
                    problems.append(str(error))
                bar.advance()
            if pair.a.metrics != pair.b.metrics:
                files[MANIFEST] = differing_values({"metrics": pair.a.metrics}, {"metrics": pair.b.metrics})
            found.append((pair, files))
    if as_json:
        facts = {"a": stores[0].uri, "b": stores[1].uri, "same": len(pairs) - len(differing), "problems": problems}
        facts |= {"only_in_a": alone[0], "only_in_b": alone[1], "differ": [_differing(*each) for each in found]}
        print_json(facts)
    else:
        for pair, files in found:
            _show(pair, files)
        alone_in = f"only in A: {len(alone[0])}; only in B: {len(alone[1])}"
        print(f"artifacts in both: {len(pairs)}, of which {len(differing)} differ; {alone_in}")
    raise_each(problems)
    if differing:
        raise typer.Exit(1)


@store_app.command(
    epilog="Examples: physion store gc -s runs/tiny    |    physion store gc --keep tiny --keep mine.yaml --delete -s runs/tiny"
)
def gc(
    store: StoreURI,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRESET",
            help="Remove artifacts that this preset does not need. Repeatable: removes what none of them needs.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value in each --keep. Repeatable.")
    ] = None,
    days: Annotated[float, typer.Option(min=0, help="Spare what was written in the last N days, and all it needs.")] = 7.0,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; otherwise nothing is removed.")] = False,
    as_json: AsJSON = False,
) -> None:
    """Show, or with --delete remove, what no run needs: leftovers, forgotten work, dead uploads, artifacts of no preset."""
    target = chosen_store(store)
    graphs = [build_graph(load_config(preset, overrides or []), target) for preset in keep or ()]
    needed = {node.fingerprint for graph in graphs for node in graph.values()}
    verdicts = judge(target, survey(target), needed if keep else None, days)
    if delete:
        shutil.rmtree(target.scratch())  # making one removes those of dead processes
    uploads = [(upload, upload.age >= days * 86400) for upload in target.unfinished_uploads()]
    removed = "removed" if delete else "would remove"
    problems = [verdict.found.problem for verdict in verdicts if verdict.found.problem]
    rows = []
    for verdict in verdicts:
        size = sizes(target, verdict.keys) if verdict.remove or not verdict.found.manifest else verdict.found.bytes
        action = removed if verdict.remove else "keep"
        if verdict.remove and delete and not remove(target, verdict, days):
            action, verdict = "keep", Verdict(verdict.found, False, verdict.keys, "somebody is at work there")
        rows.append((action, verdict, size))
    for upload, dead in uploads:
        if dead and delete:
            target.abort(upload)
    if as_json:
        facts = [_judged(*row) for row in rows]
        facts += [_unfinished(removed if dead else "keep", upload) for upload, dead in uploads]
        print_json(facts)
        raise_each(problems)
        return
    for action, verdict, size in rows:
        if verdict.remove or not verdict.found.manifest:
            what = f"{_title(verdict.found)} {verdict.found.fingerprint[:12]}"
            print(f"{action} {byte_count(size):>8}  {what}: {verdict.reason}")
    for upload, dead in uploads:
        action = removed if dead else "keep"
        print(f"{action} {byte_count(upload.bytes):>8}  {upload.key}: {_unfinished(action, upload)['reason']}")
    kept = [size for _, verdict, size in rows if verdict.found.manifest and not verdict.remove]
    freed = sum(size for _, verdict, size in rows if verdict.remove) + sum(upload.bytes for upload, dead in uploads if dead)
    done = "freed" if delete else "--delete would free"
    print(f"keep {byte_count(sum(kept))} in {len(kept)} artifacts; {done} {byte_count(freed)}")
    raise_each(problems)


def _show(pair: Pair, files: Mapping[str, Differences | str]) -> None:
    """Print how an artifact's files differ, in more detail if it is the first; files that differ only in bytes come last."""
    most = 2 if pair.after else 5
    cause = f"inputs that differ: {', '.join(pair.after)}" if pair.after else "first to differ"
    print(f"{pair.a.instance} {pair.a.fingerprint[:12]}, {cause}")
    for name, found in sorted(files.items(), key=lambda item: not isinstance(item[1], str) and item[1].unit == "bytes")[:most]:
        print(f"  {name}: {found}")
    if len(files) > most:
        print(f"  and {len(files) - most} more, which --json shows")


def _differing(pair: Pair, files: Mapping[str, Differences | str]) -> dict[str, Any]:
    """As JSON."""
    facts: dict[str, Any] = {"stage": pair.a.stage, "instance": pair.a.instance, "fingerprint": pair.a.fingerprint}
    changed = {name: found if isinstance(found, str) else asdict(found) for name, found in files.items()}
    return facts | {"after": pair.after, "files": json.loads(json.dumps(changed), parse_constant=str)}  # JSON has no Infinity


def _title(found: Found) -> str:
    state = "damaged manifest" if found.problem else "unfinished"
    return found.manifest.instance if found.manifest else f"{found.stage} ({state})"


def _files(found: Found) -> list[FileRecord]:
    return found.manifest.files if found.manifest else []


def _facts(found: Found, files: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"stage": found.stage, "fingerprint": found.fingerprint, "published": found.manifest is not None}
    if found.manifest:
        facts |= {"instance": found.manifest.instance, "created": found.manifest.created, "bytes": found.bytes}
    if files:
        facts["files"] = [record.model_dump() for record in _files(found)]
    return facts


def _judged(action: str, verdict: Verdict, size: int) -> dict[str, Any]:
    return {**_facts(verdict.found, False), "action": action, "reason": verdict.reason, "bytes": size, "keys": verdict.keys}


def _unfinished(action: str, upload: Upload) -> dict[str, Any]:
    reason = f"an unfinished upload, last added to {upload.age / 86400:.1f} days ago"
    return {"upload": upload.id, "action": action, "reason": reason, "bytes": upload.bytes, "keys": [upload.key]}


def _local(store: Store, key: str) -> Path:
    """A local file with the content of a key, verified if a manifest names it."""
    parts = key.split("/", 3)
    if parts[0] == "artifacts" and len(parts) == 4 and (manifest := read_manifest(store, parts[1], parts[2])):
        artifact = Artifact(store, manifest)
        if parts[3] in artifact.names():
            return artifact.path(parts[3])
    return store.fetch(key)


def _problem(store: Store, found: Found, record: FileRecord) -> str | None:
    """What is wrong with a file in the store, in one line; None if nothing is."""
    key = f"{found.prefix}/{record.name}"
    advice = f"run `physion stage {found.stage} --force` with the options of {_title(found)} to make it again"
    try:
        path = store.fetch(key, size=record.size, sha256=record.sha256)
    except FileNotFoundError:
        return f"{store.uri}/{key} is missing; {advice}"
    except (DataError, ConfigError) as error:  # the latter: no file, or one that this user may not read
        return f"{error}; {advice}"
    if not isinstance(store, LocalStore):
        path.unlink()  # our own copy
    return None
