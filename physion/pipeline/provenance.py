"""Which code makes an artifact: the commit, the source of what computes it, and the packages that this imports.

A record, and no part of the fingerprints of the package's own stages, whose versions say when results change. The source of a
plug-in, which nobody else looks after, is part of its identity.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from physion.models.kinds import MODELS
from physion.stages import Kind, Params, Stage
from physion.store.artifacts import Manifest, Program

if TYPE_CHECKING:
    from physion.pipeline.graph import Node

PACKAGE = "physion"
HERE = Path(__file__).parents[2]  # the folder that the package lies in
PATIENCE = 10.0  # seconds for git
SHOWN = 3  # names in a warning
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn", "yaml": "pyyaml"}
STRING_OR_COMMENT = re.compile(
    r'("""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')|#[^\n]*', re.DOTALL
)
DECIDING_NOTHING = (
    *("config", "errors", "machine", "models.flops", "models.kinds", "progress", "stages.registry", "store"),
    *("training.watchdog", "training.watching"),
)
"""Of the package what declares, carries or shows: what of it decides results is in the identity, or in no artifact."""
WATCHED = ("report.pictures",)  # what a training only draws with, to be watched
INSTALLED = {Path(path) for path in sysconfig.get_paths().values()}


def program_of(node: Node, graph: Mapping[str, Node]) -> Program:
    """Which code makes an instance in this process. To be asked before it runs: files may change while it does."""
    commit, dirty = this_commit()
    source, packages = _source(node, graph)
    return Program(commit=commit, dirty=dirty, source=source, packages=_versions(packages))


def changed_since(manifest: Manifest, node: Node, graph: Mapping[str, Node]) -> list[str]:
    """The modules that are others now than those that made the artifact of an instance.

    None of an artifact that does not say what made it.
    """
    then = manifest.program.source
    now = _source(node, graph)[0] if then else {}
    return [name for name in sorted(then | now) if then.get(name) != now.get(name)]


def warning(changed: Mapping[str, Sequence[str]]) -> str:
    """A line about artifacts that are kept although other code made them: instance -> changed modules."""
    kept, modules = [name for name in changed if changed[name]], sorted({name for names in changed.values() for name in names})
    return (
        f"{_few(kept)}: made by other code of the same version, and kept; {_few(modules)} changed since "
        "(for more, plan --why; physion stage ... --force makes one again)"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def plugin_source(stage: Stage, params: Params, section: Any) -> dict[str, str]:
    """Module -> digest, of what a stage, or a model that it trains or takes, has from outside of the package."""
    roots = [module for module in (stage.module, *_models(stage, params, section)) if not _is_of(module, PACKAGE)]
    return {module: digest for module, digest in _read_all(tuple(roots))[0].items() if not _is_of(module, PACKAGE)}


@functools.cache
def this_commit() -> tuple[str, bool]:
    """The commit of the checkout that the package lies in, or of the image, and whether the package differs from it.

    Empty where nothing tells.
    """
    if (HERE / ".git").exists():
        # A hook's variables would lead to its own repository.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=all", "--", PACKAGE]
        with suppress(OSError, subprocess.SubprocessError):
            ended = subprocess.run(
                command, cwd=HERE, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=True
            )
            lines = ended.stdout.decode(errors="replace").splitlines()
            if found := re.search(r"^# branch\.oid ([0-9a-f]+)$", "\n".join(lines), re.MULTILINE):
                return found[1], any(not line.startswith("#") for line in lines)
    given = os.environ.get("PHYSION_COMMIT", "")  # of the image
    return (given if re.fullmatch(r"[0-9a-f]{6,64}", given) else ""), False


def _source(node: Node, graph: Mapping[str, Node]) -> tuple[dict[str, str], frozenset[str]]:
    """Digests and packages of a stage, and of the models that it trains or reads the weights of."""
    nodes = [node, *(graph[source] for source in node.inputs.values())]
    models = [module for each in nodes for module in _models(each.stage, each.params, each.section)]
    roots = tuple(dict.fromkeys([node.stage.module, *models]))
    return _read_all(roots, WATCHED if node.stage.kind is Kind.TRAINING else ())


def _models(stage: Stage, params: Params, section: Any) -> list[str]:
    """The modules of the models that a stage trains or takes."""
    taken, chosen = MODELS.get(str(params.get("model"))), getattr(section, "model", None)
    kinds = [taken] if taken else MODELS.trained_by(stage.name)
    # A training of one kind has its options there, one of any readout the name of it.
    return [kind.origin.partition(":")[0] for kind in kinds if taken or not isinstance(chosen, str) or kind.name == chosen]


# ------------------------------------------------------------------------------------------------- from file to file
def _read_all(roots: tuple[str, ...], leave_out: tuple[str, ...] = ()) -> tuple[dict[str, str], frozenset[str]]:
    """Module -> digest, of these modules and all that they import, and the names of the packages that these import."""
    return _follow(roots, frozenset(folder for module in roots if (folder := _folder(module))), leave_out)


@functools.cache
def _follow(
    roots: tuple[str, ...], folders: frozenset[Path], leave_out: tuple[str, ...]
) -> tuple[dict[str, str], frozenset[str]]:
    found, packages, waiting = dict[str, str](), set[str](), list(roots)
    left_out = [f"{PACKAGE}.{name}" for name in (*DECIDING_NOTHING, *leave_out)]
    own = frozenset({PACKAGE, *(root.partition(".")[0] for root in roots)})
    while waiting:
        module = waiting.pop()
        if module in found or module == f"{PACKAGE}.stages" or any(_is_of(module, name) for name in left_out):
            continue
        path = _file(module, own, folders)
        if path is None:
            packages.add(module.partition(".")[0])
            continue
        found[module], imports = _digest_and_imports(path, module if path.name == "__init__.py" else module.rpartition(".")[0])
        for base, name in imports:
            below = f"{base}.{name}"
            waiting.append(below if name and _file(below, own, folders) else base)
    return dict(sorted(found.items())), frozenset(packages - {PACKAGE} - sys.stdlib_module_names)


def _folder(module: str) -> Path | None:
    """The folder on Python's path that a module was imported from."""
    if _is_of(module, PACKAGE):
        return HERE
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a notebook, or another __main__
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parents[module.count(".") + (Path(spec.origin).name == "__init__.py")]


@functools.cache
def _file(module: str, own: frozenset[str], folders: frozenset[Path]) -> Path | None:
    """Where the source of a module lies; None of what is Python's, or another distribution's than these `own` ones."""
    first, *rest = module.split(".")
    if first in sys.stdlib_module_names:
        return None
    for folder in folders | {HERE}:
        if first in own or folder not in INSTALLED | {HERE}:
            place = folder.joinpath(first, *rest)
            for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
                if path.is_file():
                    return path
    return None


@functools.cache
def _digest_and_imports(path: Path, package: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Of a file's source but for docstrings, comments and empty lines; and the (module, name) that it imports."""
    data = path.read_bytes()
    lines, imports = data.split(b"\n"), list[tuple[str, str]]()
    try:
        tree = ast.parse(data)
    except SyntaxError:  # somebody is at work on it
        tree = ast.Module([], [])
    for statement in _statements(tree):
        match statement:
            case ast.Expr(ast.Constant(str())):
                first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
                after = lines[last][statement.end_col_offset :]
                lines[first : last + 1] = [lines[first][: statement.col_offset] + after, *[b""] * (last - first)]
            case ast.Import():
                imports += [(alias.name, "") for alias in statement.names]
            case ast.ImportFrom():
                base = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
                imports += [(base, alias.name) for alias in statement.names]
    text = STRING_OR_COMMENT.sub(lambda found: found[1] or "", b"\n".join(lines).decode(errors="replace"))
    kept = "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
    return hashlib.sha256(kept.encode()).hexdigest()[:16], tuple(imports)


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """All statements below, but for those that only type checkers see."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt):
            yield child
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            for_types = isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
            if not for_types:
                yield from _statements(child)


def _versions(packages: frozenset[str]) -> dict[str, str]:
    versions = {}
    for name in sorted(packages):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(DISTRIBUTIONS.get(name, name))
    return versions


def _is_of(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
