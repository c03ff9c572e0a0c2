"""The `physion` command: its commands, and how errors end it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from physion import __version__
from physion.commands import JSON_VERSION, CacheFolder, CacheLimit, cache_options
from physion.commands.compare import compare
from physion.commands.config import config_app
from physion.commands.contact_sheet import contact_sheet
from physion.commands.doctor import doctor
from physion.commands.launch import launch
from physion.commands.logs import logs
from physion.commands.plan import plan
from physion.commands.run import run
from physion.commands.runs import runs
from physion.commands.stage import stage
from physion.commands.status import status
from physion.commands.store import store_app
from physion.commands.submit import submit
from physion.commands.tensorboard import tensorboard
from physion.commands.weights import weights_app
from physion.config.schema import without_secrets
from physion.errors import ConfigError, Interrupted, PhysionError, TransientError
from physion.progress import Output
from physion.store.keys import shown

app = typer.Typer(
    help="Will the red object touch the yellow one? The whole Physion study, from video to report, as resumable stages.",
    epilog="Exit codes: 0 done, 2 configuration or usage, 3 bad data, 75 try again later, 130/143 interrupted, state saved.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
TERMINATION_LOG = Path("/dev/termination-log")  # exists only in a pod
app.command(epilog="Example: physion run --preset tiny --store runs/tiny")(run)
app.command(
    epilog="Examples: physion stage frames --subset test -p tiny -s runs/tiny    |    "
    "physion stage train-readout --features rollout --seed 0 -p tiny -s runs/tiny    |    "
    "physion stage simulate --subset training --share 2/8 -p tiny -s runs/tiny"
)(stage)
app.command(
    epilog="Examples: physion plan -p paper -s runs/paper    |    physion plan train-steve --why -p paper -s runs/paper"
)(plan)
app.command(epilog="Example: physion runs -s runs/tiny")(runs)
app.command(
    epilog="Examples: physion compare 1a2b3c 4d5e6f -s runs/tiny    |    physion compare runs/a@ runs/b@tiny --report page.html"
)(compare)
app.command(epilog="Example: physion tensorboard train-steve -s runs/tiny")(tensorboard)
app.command(epilog="Example: physion doctor --store s3://bucket/physion")(doctor)
app.command(epilog="Example: physion launch train-steve -p paper -s s3://physion/study --nodes 2 --gpus 8")(launch)
app.command(
    epilog="Examples: physion submit -p paper --set train-steve.optim.lr=2e-4 --param train-steve-gpus=8 --wait    |    "
    "physion submit -p tiny --sweep train-steve.optim.lr=1e-4,3e-4"
)(submit)
app.command(epilog="Examples: physion status    |    physion status @latest")(status)
app.command(epilog="Examples: physion logs @latest --follow    |    physion logs physion-vqa-1a2b3c train-steve")(logs)
app.command("contact-sheet", epilog="Example: physion contact-sheet sheet.png --seed 3")(contact_sheet)
app.add_typer(config_app, name="config")
app.add_typer(store_app, name="store")
app.add_typer(weights_app, name="weights")


def main() -> NoReturn:
    """Run the command line and turn expected failures into one clear line and their exit code."""
    # OpenMP threads that spin while they wait slow everything down if cores are shared or limited (benchmarks/README.md); this
    # is read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a character that the locale lacks must not end a command
    argo_file = os.environ.get("ARGO_PROGRESS_FILE")
    Output.argo_file = Path(argo_file) if argo_file else None
    code = None
    try:
        code = app(prog_name="physion", standalone_mode="--json" not in sys.argv)
    except PhysionError as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(Interrupted("interrupted; progress is saved, and the same command resumes from there"))
    except Exception as error:
        if hasattr(error, "format_message"):  # a ClickException; it depends on typer whether it is click's or typer's own copy
            _fail(ConfigError(error.format_message()))
        if _disk_is_full(error):
            _fail(TransientError(f"no space left on the disk ({error}); free some and run the same command again"))
        raise
    sys.exit(code if isinstance(code, int) else 0)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    cache: CacheFolder = Path("~/.cache/physion"),
    cache_limit: CacheLimit = None,
) -> None:
    if version:
        print(f"physion {__version__}")
        raise typer.Exit
    cache_options.folder, cache_options.limit = cache.expanduser().absolute(), cache_limit


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or f"os error {errno.ENOSPC}" in str(error):  # safetensors reports the code only in its text
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(error: PhysionError) -> NoReturn:
    if not error.quiet:
        text = shown(without_secrets(f"{error}"))  # a wrong override is shown in full
        facts = {"version": JSON_VERSION, "error": text, "exit_code": error.exit_code}
        line = json.dumps(facts, ensure_ascii=False) if "--json" in sys.argv else f"error: {text}"
        print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # Kubernetes shows it as the pod's reason of failure, Argo in its node
            if TERMINATION_LOG.exists():
                TERMINATION_LOG.write_text(text, encoding="utf-8")
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
