"""`physion weights`: import and export published checkpoints, and copy named weights between stores."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from physion.commands import (
    AsJSON,
    Overrides,
    Preset,
    StoreURI,
    cache_options,
    chosen_store,
    print_json,
    print_table,
    raise_each,
)
from physion.config.load import load_config
from physion.config.schema import Study
from physion.errors import ConfigError, nearest
from physion.models.kinds import MODELS, ReadoutKind
from physion.pipeline.graph import Node, build_graph, select_one
from physion.stages import copied_here, last_stage, trained
from physion.store.artifacts import Artifact, Manifest
from physion.store.card import option
from physion.store.checksums import sha256_of
from physion.store.keys import shown
from physion.store.pretrained import (
    PREFIX,
    SHIPPED,
    copy_weights,
    find_weights,
    list_weights,
    publish_weights,
    remove_weights,
    role_of,
    shared_weights,
)
from physion.store.protocol import Store
from physion.store.uri import BUILTIN

weights_app = typer.Typer(help="Import published checkpoints, share and fetch named weights.", no_args_is_help=True)
Source = Annotated[str, typer.Argument(help="pretrained/<name>, builtin/<name>, or a trained stage such as train-steve.")]
Features = Annotated[str | None, typer.Option(help="For a trained readout: observed, rollout or full.")]
Seed = Annotated[int | None, typer.Option(help="For a trained readout.")]
Reference = Annotated[str, typer.Argument(help="pretrained/<name>, or just the name.")]


@weights_app.command(
    "import", epilog="Example: physion weights import model_10.pth --as steve --name steve-physion -s runs/paper"
)
def import_command(
    file: Annotated[Path, typer.Argument(help="Published .pth file: a state dict, bare or under `state_dict` or `model`.")],
    kind: Annotated[str, typer.Option("--as", help=f"Which model it holds: {', '.join(MODELS)}.")],
    store: StoreURI,
    name: Annotated[str | None, typer.Option(help="Name to give it; default: the model and the file's name.")] = None,
    preset: Preset = "paper",
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Check a published checkpoint against the configured model and store it as named weights."""
    from physion.models.published import form_of, read_published, take_apart

    config = load_config(preset, overrides)
    if kind not in MODELS:
        raise ConfigError(f"unknown model '{kind}'{nearest(kind, list(MODELS))}; models: {', '.join(MODELS)}")
    form_of(kind)
    target = chosen_store(store)
    sizes = {name: _sizes(config, name) for name in (kind, *MODELS[kind].copied())}
    model, frozen = take_apart(read_published(file), kind, sizes, str(file))
    origin = {"file": shown(file.name), "sha256": sha256_of(file)}
    _say(target, _publish(target, f"{kind}-{file.stem}" if name is None else name, kind, sizes[kind], model, frozen, origin))


@weights_app.command("export", epilog="Example: physion weights export train-steve steve.pth -p gpu -s runs/gpu")
def export(
    source: Source,
    file: Annotated[Path, typer.Argument(help="File to write, for the authors' code.")],
    store: StoreURI,
    preset: Preset = "paper",
    overrides: Overrides = [],  # noqa: B006
    features: Features = None,
    seed: Seed = None,
) -> None:
    """Write weights as a published .pth: the same keys, including the frozen copies and stored constants."""
    import torch

    from physion.models.published import to_published

    if file.exists():
        raise ConfigError(f"{file} exists; choose another name, or remove it first")
    config = load_config(preset, overrides)
    if source.startswith((f"{PREFIX}/", f"{SHIPPED}/")):
        kind, model, frozen = _named(source, chosen_store(store))
    else:
        kind, model, frozen, _ = _trained(source, chosen_store(store), config, preset, features, seed)
    state = {key: value.contiguous() for key, value in to_published(kind, model, frozen).items()}
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        torch.save({"state_dict": state}, partial)
        partial.replace(file)
    except (OSError, RuntimeError) as error:  # torch reports a missing folder as a RuntimeError
        raise ConfigError(f"{file}: cannot be written ({str(error).splitlines()[0]})") from error
    finally:
        partial.unlink(missing_ok=True)
    print(file)


@weights_app.command(
    epilog="Examples: physion weights push train-steve --name my-steve --to s3://bucket/physion -p gpu -s runs/gpu    |    "
    "physion weights push pretrained/steve-physion --to s3://bucket/physion -s runs/paper"
)
def push(
    source: Source,
    store: StoreURI,
    to: Annotated[str | None, typer.Option(help="Store to share in; default: the store it is in.")] = None,
    name: Annotated[str | None, typer.Option(help="Name to share a trained stage's weights under.")] = None,
    preset: Preset = "paper",
    overrides: Overrides = [],  # noqa: B006
    features: Features = None,
    seed: Seed = None,
    licence: Annotated[str | None, typer.Option("--license", help="For the model card: an SPDX name such as mit.")] = None,
) -> None:
    """Share what was trained or imported here, as named weights in a store."""
    origin, target = chosen_store(store), chosen_store(store if to is None else to)
    if source.startswith((f"{PREFIX}/", f"{SHIPPED}/")):
        if name is not None:
            raise ConfigError(f"{source} has a name already; --name is for the weights of a trained stage")
        if licence is not None:
            raise ConfigError(f"{source} has a model card already; --license is for the weights of a trained stage")
        _say(target, copy_weights(find_weights(origin, source), target, cache_options.pulls))
        return
    if name is None:
        raise ConfigError(f"give {source} a name to share it under: --name my-{source.removeprefix('train-')}")
    config = load_config(preset, overrides)
    kind, model, frozen, node = _trained(source, origin, config, preset, features, seed)
    facts = _facts(origin, config, node) | ({"license": licence} if licence else {})
    _say(target, _publish(target, name, kind, _sizes(config, kind), model, frozen, facts))


@weights_app.command(
    epilog="Examples: physion weights pull steve-physion --from s3://bucket/physion -s runs/paper    |    "
    "physion weights pull https://example.org/steve-physion -s runs/paper"
)
def pull(
    name: Annotated[str, typer.Argument(help="A name in another store; or a folder, or web address, with a manifest.json.")],
    store: StoreURI,
    source: Annotated[
        str | None, typer.Option("--from", help="Store to fetch a name from, such as s3://bucket/prefix.")
    ] = None,
) -> None:
    """Fetch named weights from elsewhere; an interrupted download resumes where it stopped."""
    target = chosen_store(store)
    given = find_weights(chosen_store(source), name) if source is not None else shared_weights(name)
    _say(target, copy_weights(given, target, cache_options.pulls))


@weights_app.command("list", epilog="Examples: physion weights list builtin    |    physion weights list -s runs/paper")
def list_command(
    which: Annotated[Literal["builtin"] | None, typer.Argument(help="Those included with physion; default: a store's.")] = None,
    store: Annotated[
        str | None, typer.Option("--store", "-s", envvar="PHYSION_STORE", help="The store whose weights to list.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """List the named weights included with physion, or those in a store."""
    if which is None and store is None:
        raise ConfigError("say whose weights to list: `physion weights list builtin`, or --store")
    place = BUILTIN if which else str(store)
    found, problems = list_weights(chosen_store(place))
    if as_json:
        print_json([json.loads(manifest.model_dump_json()) for manifest in found])
        raise_each(problems)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("reference", "for", "parameters", "made", "from"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for manifest in found:
        trained = f"preset {manifest.origin['preset']}" if "preset" in manifest.origin else ""
        origin = str(manifest.origin.get("file", trained))
        cells = (f"{manifest.metrics['parameters']:,}", manifest.created[:10], origin)
        table.add_row(f"{which or PREFIX}/{manifest.instance}", manifest.stage, *map(escape, cells))
    if found:
        print_table(table)
    else:
        print(f"no named weights in {place}")
    raise_each(problems)


@weights_app.command()
def remove(name: Reference, store: StoreURI) -> None:
    """Remove named weights, complete or damaged; artifacts made with them stay."""
    remove_weights(chosen_store(store), name)


def _named(source: str, store: Store) -> tuple[str, Any, dict[str, Any]]:
    """Kind, model and frozen copies of named weights."""
    from physion.models.published import load_copies
    from physion.models.weights import kind_of_weights, load_model

    artifact = find_weights(store, source)
    path, frozen = role_of(artifact, "weights"), role_of(artifact, "frozen")
    assert path is not None
    return kind_of_weights(path), load_model(path), load_copies(frozen) if frozen else {}


def _trained(
    source: str, store: Store, config: Study, preset: str, features: str | None, seed: int | None
) -> tuple[str, Any, dict[str, Any], Node]:
    """Kind, model, frozen copies and node of a stage that was trained here. Raises ConfigError if it is not such a stage."""
    from physion.models.published import copies_for
    from physion.models.weights import kind_of_weights, load_model
    from physion.training.engine import WEIGHTS

    if source not in MODELS.trainings():
        raise ConfigError(
            f"'{source}' is neither {PREFIX}/<name>, {SHIPPED}/<name> nor a trained stage ({', '.join(MODELS.trainings())})"
        )
    graph = build_graph(config, store)
    node = select_one(graph, source, {"features": features, "seed": seed})

    def weights(stage: str) -> Path:
        manifest = graph[stage].manifest(store)
        if manifest is None:
            raise ConfigError(
                f"{stage} of preset {preset} is not in {store.uri}: give the preset and overrides of its training"
            )
        return Artifact(store, manifest).path(WEIGHTS)

    kind = kind_of_weights(weights(node.name))
    copied = {other: load_model(weights(trained(config, other).name)) for other in copied_here(config, MODELS[kind])}
    return kind, load_model(weights(node.name)), copies_for(kind, copied), node


def _facts(store: Store, config: Study, node: Node) -> dict[str, Any]:
    """Facts about a stage trained here: how, on what, with what results, including the whole study's if it is evaluated."""
    manifest = node.manifest(store)
    assert manifest is not None
    data = {role: record.model_dump(exclude_defaults=True) for role, record in manifest.inputs.items()}
    facts: dict[str, Any] = {"stage": node.name, "fingerprint": node.fingerprint, "preset": config.preset}
    if "features" in node.params:
        facts["features"] = node.params["features"]
    facts |= {"training": manifest.config, "metrics": manifest.metrics, "inputs": data, "host": manifest.host}
    evaluated = build_graph(config, store)[last_stage().name].manifest(store)
    return facts | ({"answers": evaluated.metrics["headline"]} if evaluated else {})


def _sizes(config: Study, kind: str) -> dict[str, Any]:
    """What a kind of model is built from in this study."""
    for stage in (MODELS[other].stage for other in (kind, *MODELS[kind].copied())):
        if config.section(stage) is None:
            raise ConfigError(f"preset {config.preset} has no {stage}, which says how large a {kind} is: name another --preset")
    return MODELS[kind].sizes(config)


def _publish(store: Store, name: str, kind: str, sizes: Any, model: Any, frozen: dict[str, Any], origin: Any) -> Manifest:
    """Save and publish; the manifest's digests show which models these weights belong with."""
    from physion.models.published import digests, save_copies
    from physion.models.weights import save_weights

    if isinstance(MODELS[kind], ReadoutKind):
        origin = {"features": "rollout", **origin}  # a file does not say which frames it saw; those of the paper are rolled out
    scratch = store.scratch()
    try:
        files = {"weights": scratch / "weights"}
        save_weights(files["weights"], model, kind, sizes)
        if frozen:
            files["frozen"] = scratch / "frozen"
            save_copies(files["frozen"], frozen)
        metrics = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "digests": digests(kind, model.state_dict(), frozen),
        }
        return publish_weights(store, name, MODELS[kind].stage, files, sizes, metrics, origin)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _say(store: Store, manifest: Manifest) -> None:
    print(f"{store.uri}/{PREFIX}/{manifest.instance}\nuse it with: --set {option(manifest)}")
