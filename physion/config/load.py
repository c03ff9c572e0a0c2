"""Presets and overrides: YAML and `--set stage.key=value` in, a checked configuration out."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import re
import traceback
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, create_model, model_validator
from pydantic.fields import FieldInfo

from physion.config.schema import Study
from physion.errors import ConfigError, nearest
from physion.models.kinds import MODELS, SlotModelKind
from physion.stages import STAGES, Kind, Stage, instances


def preset_names() -> list[str]:
    """The presets included with the package, sorted."""
    return sorted(p.name.removesuffix(".yaml") for p in _presets().iterdir() if p.name.endswith(".yaml"))


def preset_text(preset: str) -> str:
    """The YAML of an included preset (by name) or of a file (by path).

    Raises ConfigError if there is none with that name, suggesting the nearest.
    """
    if preset.endswith((".yaml", ".yml")) or "/" in preset:
        try:
            return Path(preset).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"preset file {preset}: cannot be read ({error})") from error
    if preset not in preset_names():
        raise ConfigError(f"unknown preset '{preset}'{nearest(preset, preset_names())}; presets: {', '.join(preset_names())}")
    text: str = (_presets() / f"{preset}.yaml").read_text(encoding="utf-8")
    return text


def study_class() -> type[Study]:
    """The configuration's class: `Study` with a section for each stage, and their checks."""
    return _study_class(tuple(STAGES.values()))


@functools.cache
def _study_class(stages: tuple[Stage, ...]) -> type[Study]:
    fields: dict[str, typing.Any] = {}
    for stage in stages:
        if (section := stage.section) is not None:
            if not any(field.is_required() for field in section.model_fields.values()):
                fields[stage.key] = (section, section())
            elif stage.kind is Kind.TRAINING:  # for a model that a study need not use
                fields[stage.key] = (section | None, None)
            else:
                fields[stage.key] = (section, ...)

    def check(study: Study) -> Study:
        known = STAGES.that_make("dataset")
        if study.dataset not in known:
            raise ValueError(
                f"'dataset': {study.dataset!r} is unknown{nearest(study.dataset, known)}; there are {', '.join(known)}"
            )
        MODELS.named(study.slot_model, SlotModelKind)
        used = dict.fromkeys(instance.stage for instance, _ in instances(study).values())
        absent = [stage for stage in stages if stage.section and study.section(stage.name) is None]
        if missing := [_missing(stage.name, _options(stage.section)) for stage in absent if stage.name in used]:
            raise ValueError("\n".join(missing))
        for stage in stages:
            if stage not in absent:
                stage.check(study)
        return study

    validators: dict[str, typing.Any] = {"check": model_validator(mode="after")(check)}
    made: type[Study] = create_model("Config", __base__=Study, __validators__=validators, **fields)
    return made


def read_preset(preset: str, overrides: typing.Sequence[str] = ()) -> dict[str, Any]:
    """The content of a preset, with `key.path=value` overrides (values are YAML), unchecked; its plug-ins are imported.

    A preset may build on another with `base: <preset>` and list only its changes.

    Raises ConfigError.
    """
    tree = _tree(preset)
    tree["preset"] = Path(preset).stem
    for override in overrides:
        _apply(tree, override)
    _import_plugins(preset, tree.get("plugins"))
    return tree


def _tree(preset: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The YAML of a preset, merged over that of its base. Raises ConfigError."""
    tree = parse_yaml(preset_text(preset), f"preset {preset}")
    if not isinstance(tree, dict):
        raise ConfigError(f"preset {preset}: holds no mapping of stages")
    if (base := tree.pop("base", None)) is None:
        return tree
    if not isinstance(base, str) or base in (*above, preset):
        raise ConfigError(f"preset {preset}: 'base' is not the name of another preset, but {base!r}")
    return _laid_over(_tree(base, (*above, preset)), tree)


def parse_yaml(text: str, what: str, *, quoted: bool = True) -> Any:
    """What a YAML text says. Raises ConfigError, which quotes the place unless the text may hold a secret."""
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(f"{what}: nested too deep") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # of dates and numbers that are none, too
        place = f": {' '.join(str(error).split())}" if quoted else ""
        raise ConfigError(f"{what}: not valid YAML{place}") from error


def _laid_over(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    both = {key: _laid_over(base[key], tree[key]) for key in base.keys() & tree.keys()
            if isinstance(base[key], dict) and isinstance(tree[key], dict)}  # fmt: skip
    return base | tree | both


def variants(sweep: typing.Sequence[str]) -> list[list[str]]:
    """The overrides of each variant of a sweep, all combinations of `key.path=value,value`; one without any for no sweep.

    A comma within brackets belongs to a value. Raises ConfigError.
    """
    return [list(chosen) for chosen in itertools.product(*map(_values, sweep))]


def _values(sweep: str) -> list[str]:
    key, equals, values = sweep.partition("=")
    if not (key and equals and values):
        raise ConfigError(f"--sweep {sweep}: not of the form stage.key=value,value, such as train-steve.optim.lr=1e-4,3e-4")
    return [f"{key}={value}" for value in re.split(r",(?![^\[{]*[\]}])", values)]


def load_config(preset: str, overrides: typing.Sequence[str] = ()) -> Study:
    """Read a preset, apply overrides and check everything.

    Raises ConfigError listing every problem, one per line; an unknown key comes with the nearest known one.
    """
    tree = read_preset(preset, overrides)
    try:
        return study_class().model_validate(tree)
    except ValidationError as error:
        problems = [_explain(e) for e in error.errors()]
        raise ConfigError(f"preset {preset}: " + "\n".join(problems)) from error


def _import_plugins(preset: str, names: typing.Any) -> None:
    """Import modules that register stages and kinds of models. Raises ConfigError naming one that is unsuitable."""
    for name in names if isinstance(names, list) else []:  # the schema rejects anything else
        known = set(STAGES)
        try:
            importlib.import_module(str(name))
            for stage in STAGES.keys() - known:
                STAGES[stage].load()
            for kind in MODELS.values():
                if kind.stage and kind.stage not in STAGES:
                    hint = nearest(kind.stage, list(STAGES))
                    raise ConfigError(f"{kind.what} '{kind.name}': there is no stage '{kind.stage}' to train it{hint}")
        except ModuleNotFoundError as error:
            hint = "; is its folder on PYTHONPATH?" if error.name == str(name).partition(".")[0] else ""
            raise ConfigError(f"preset {preset}: plugin '{name}' cannot be imported ({error}){hint}") from error
        except ConfigError as error:
            raise ConfigError(f"preset {preset}: plugin '{name}': {error}") from error
        except Exception as error:  # whatever error its code raises
            what = " ".join(f"{type(error).__name__}: {error}".split())
            bodies = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
            where = "".join(f"; {frame.filename}, line {frame.lineno}" for frame in bodies[-1:])
            raise ConfigError(f"preset {preset}: plugin '{name}' cannot be imported ({what}{where})") from error


def fingerprinted(section: BaseModel) -> dict[str, Any]:
    """The part of a section that affects results, as plain JSON data: everything but the knobs and unused later options."""
    plain: dict[str, Any] = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        key = field.alias or name
        value = getattr(section, name)
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if extra.get("knob") or (extra.get("later") and value == field.default):
            del plain[key]
        elif isinstance(value, BaseModel):
            plain[key] = fingerprinted(value)
    return plain


def _presets() -> Any:
    return resources.files("physion.config") / "presets"


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: not of the form stage.key=value, such as train-steve.optim.lr=2e-4")
    value = parse_yaml(text, f"--set {override}: the value", quoted=False)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 2e-4 as text
    node = tree
    for key in keys[:-1]:
        below = node.get(key)
        if not isinstance(below, dict | None):
            raise ConfigError(f"--set {override}: '{key}' holds a value, not a section")
        node[key] = dict(below or {})  # a copy: YAML anchors share one mapping between several places
        node = node[key]
    node[keys[-1]] = value


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key '{where}'{nearest(str(error['loc'][-1]), list(_fields_at(error['loc'][:-1])))}"
    if error["type"] == "missing":
        return _missing(where, _fields_at(error["loc"]))
    if error["type"] == "value_error":
        return f"'{where}': {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    return f"'{where}': {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"


def _missing(where: str, options: dict[str, FieldInfo]) -> str:
    needed = ", ".join(key for key, field in options.items() if field.is_required())
    return f"'{where}' is missing" + (f"; of its options these have no default: {needed}" if needed else "")


def _fields_at(location: typing.Sequence[int | str]) -> dict[str, FieldInfo]:
    """The options of a section by name; none if it is not a section."""
    model: Any = study_class()
    for part in location:
        model = _model_of(_options(model)[str(part)].annotation)
    return _options(model)


def _options(model: Any) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in getattr(model, "model_fields", {}).items()}


def _model_of(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return next(_model_of(a) for a in typing.get_args(annotation) if a is not type(None))
    return annotation
