"""torchrun that ends with physion's exit code, so that a scheduler can act on it; torchrun itself always fails with 1.

    python -m physion.training.launch --nproc-per-node=8 --max-restarts=3 stage train-steve -p paper -s ...

Everything before `stage` is an option of torchrun, or comes from the environment (PET_NPROC_PER_NODE and so on).
"""

from __future__ import annotations

import os
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from physion.errors import ConfigError


def main() -> int:
    """Run `physion stage ...` on several ranks. Returns the exit code of the rank that failed first, 128 + n for signal n."""
    arguments = sys.argv[1:]
    if "stage" not in arguments:
        print("error: usage: python -m physion.training.launch [options of torchrun] stage ...", file=sys.stderr)
        return ConfigError.exit_code
    # A store that agents share with all attempts of the ranks keeps the addresses of dead ones.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    at = arguments.index("stage")
    try:
        run.main([*arguments[:at], "--module", "physion.cli", *arguments[at:]])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as stopped:
        return 128 + signal.Signals(stopped.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
