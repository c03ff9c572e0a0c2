"""`physion weights`: published checkpoints in and out, and named weights from store to store."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from physion.commands import AsJSON, Overrides, Preset, StoreURI, cache_options, chosen_store, print_json, raise_each
from physion.config.load import load_config
from physion.config.schema import Study
from physion.errors import ConfigError, nearest
from physion.models.kinds import MODELS, ReadoutKind
from physion.pipeline.graph import Node, build_graph, select_one
from physion.stages import copied_here, trained
from physion.store.artifacts import Artifact, Manifest
from physion.store.checksums import sha256_of
from physion.store.keys import shown
from physion.store.pretrained import PREFIX, copy_weights, find_weights, list_weights, publish_weights, remove_weights, role_of
from physion.store.protocol import Store

weights_app = typer.Typer(help="Bring in published checkpoints, share and fetch named weights.", no_args_is_help=True)
Source = Annotated[str, typer.Argument(help="pretrained/<name>, or a trained stage such as train-steve.")]
Features = Annotated[str | None, typer.Option(help="Of a trained readout: observed, rollout or full.")]
Seed = Annotated[int | None, typer.Option(help="Of a trained readout.")]
Reference = Annotated[str, typer.Argument(help="pretrained/<name>, or the name alone.")]


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
    """Check a published checkpoint against the configured model and make it named weights of the store."""
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


@weights_app.command("export", epilog="Example: physion weights export train-steve steve.pth -p small -s runs/small")
def export(
    source: Source,
    file: Annotated[Path, typer.Argument(help="File to write, for the authors' code.")],
    store: StoreURI,
    preset: Preset = "paper",
    overrides: Overrides = [],  # noqa: B006
    features: Features = None,
    seed: Seed = None,
) -> None:
    """Write weights as a published .pth: the same keys, the frozen copies and stored constants included."""
    import torch

    from physion.models.published import to_published

    if file.exists():
        raise ConfigError(f"{file} exists; choose another name, or remove it first")
    config = load_config(preset, overrides)
    if source.startswith(f"{PREFIX}/"):
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
    epilog="Examples: physion weights push train-steve --name my-steve --to s3://bucket/physion -p small -s runs/small    |    "
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
) -> None:
    """Share what was trained or imported here, as named weights of a store."""
    origin, target = chosen_store(store), chosen_store(to or store)
    if source.startswith(f"{PREFIX}/"):
        if name is not None:
            raise ConfigError(f"{source} has a name already; --name is for the weights of a trained stage")
        _say(target, copy_weights(find_weights(origin, source), target, cache_options.pulls))
        return
    if name is None:
        raise ConfigError(f"say under which name to share {source}: --name my-{source.removeprefix('train-')}")
    config = load_config(preset, overrides)
    kind, model, frozen, node = _trained(source, origin, config, preset, features, seed)
    facts = {"stage": node.name, "fingerprint": node.fingerprint}
    _say(target, _publish(target, name, kind, _sizes(config, kind), model, frozen, facts))


@weights_app.command(epilog="Example: physion weights pull steve-physion --from s3://bucket/physion -s runs/paper")
def pull(
    name: Reference,
    source: Annotated[str, typer.Option("--from", help="Store to fetch from, such as s3://bucket/prefix.")],
    store: StoreURI,
) -> None:
    """Fetch named weights from another store; a download that broke off goes on where it was."""
    target = chosen_store(store)
    _say(target, copy_weights(find_weights(chosen_store(source), name), target, cache_options.pulls))


@weights_app.command("list")
def list_command(store: StoreURI, as_json: AsJSON = False) -> None:
    """List the named weights of a store."""
    found, problems = list_weights(chosen_store(store))
    if as_json:
        print_json([json.loads(manifest.model_dump_json()) for manifest in found])
        raise_each(problems)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "for", "parameters", "bytes", "made", "from"):
        table.add_column(column, overflow="fold", justify="right" if column in ("parameters", "bytes") else "left")
    for manifest in found:
        size = sum(record.size for record in manifest.files)
        origin = str(manifest.origin.get("file") or manifest.origin.get("stage", ""))
        cells = (f"{manifest.metrics['parameters']:,}", f"{size:,}", manifest.created[:10], origin)
        table.add_row(manifest.instance, manifest.stage, *map(escape, cells))
    Console().print(table if found else escape(f"no named weights in {store}"))
    raise_each(problems)


@weights_app.command()
def remove(name: Reference, store: StoreURI) -> None:
    """Remove named weights, whole or broken; artifacts made with them stay."""
    remove_weights(chosen_store(store), name)


def _named(source: str, store: Store) -> tuple[str, Any, dict[str, Any]]:
    """Kind, model and frozen copies of `pretrained/<name>`."""
    from physion.models.published import load_copies
    from physion.models.weights import kind_of_weights, load_model

    artifact = find_weights(store, source)
    path, frozen = role_of(artifact, "weights"), role_of(artifact, "frozen")
    assert path is not None
    return kind_of_weights(path), load_model(path), load_copies(frozen) if frozen else {}


def _trained(
    source: str, store: Store, config: Study, preset: str, features: str | None, seed: int | None
) -> tuple[str, Any, dict[str, Any], Node]:
    """Kind, model, frozen copies and node of a stage that was trained here. Raises ConfigError when it is no such stage."""
    from physion.models.published import copies_for
    from physion.models.weights import kind_of_weights, load_model
    from physion.training.engine import WEIGHTS

    if source not in MODELS.trainings():
        raise ConfigError(f"'{source}' is neither {PREFIX}/<name> nor a trained stage ({', '.join(MODELS.trainings())})")
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


def _sizes(config: Study, kind: str) -> dict[str, Any]:
    """What a kind of model is built from in this study."""
    for stage in (MODELS[other].stage for other in (kind, *MODELS[kind].copied())):
        if config.section(stage) is None:
            raise ConfigError(f"preset {config.preset} has no {stage}, which says how large a {kind} is: name another --preset")
    return MODELS[kind].sizes(config)


def _publish(store: Store, name: str, kind: str, sizes: Any, model: Any, frozen: dict[str, Any], origin: Any) -> Manifest:
    """Save and publish; the manifest tells by digests which models these weights belong with."""
    from physion.models.published import digests, save_copies
    from physion.models.weights import save_weights

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
    reference = f"{PREFIX}/{manifest.instance}"
    option = f"{manifest.stage}.weights={reference}"
    if any(isinstance(kind, ReadoutKind) for kind in MODELS.trained_by(manifest.stage)):  # given by feature mode
        option = f"{manifest.stage}.weights.rollout={reference}"
    print(f"{store.uri}/{reference}\nuse it with: --set {option}")
