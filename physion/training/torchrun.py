"""torchrun that ends with physion's exit code, so that a scheduler can act on it; torchrun itself always fails with 1.

    python -m physion.training.torchrun --nproc-per-node=8 --max-restarts=3 stage train-steve -p paper -s ...

Everything before `stage` is an option of torchrun; options may also come from the environment (PET_NPROC_PER_NODE and so on).
"""

from __future__ import annotations

import os
import signal
import sys
import time

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousError

from physion.errors import ConfigError, TransientError

PAUSE = 2.0  # seconds


def main() -> int:
    """Run `physion stage ...` on several ranks. Returns the exit code of the first rank that failed, 128 + n for signal n."""
    arguments = sys.argv[1:]
    if "stage" not in arguments:
        print("error: usage: python -m physion.training.torchrun [options of torchrun] stage ...", file=sys.stderr)
        return ConfigError.exit_code
    # If agents share one store with all attempts of the ranks, it keeps the addresses of dead ones.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # It kills ranks that are still saving so many seconds after SIGTERM, 30 by itself; a pod has 120 (jobs/).
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "110")
    run.logger.addFilter(lambda record: "OMP_NUM_THREADS" not in record.msg)  # one thread per rank: noise in every worker's log
    at = arguments.index("stage")
    while True:
        try:
            run.main([*arguments[:at], "--module", "physion.cli", *arguments[at:]])
            return 0
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            return code if code >= 0 else 128 - code
        except SignalException as stopped:
            return 128 + signal.Signals(stopped.sigval)
        except RendezvousConnectionError:
            # Several nodes meet at the first one. If it is not there yet, or is lost, the others wait; whoever started them
            # decides for how long.
            print("the first worker is not there, or was lost; waiting for it", file=sys.stderr, flush=True)
            time.sleep(PAUSE)
        except RendezvousError as error:
            print(f"error: the workers of this training did not meet ({error}); run it again", file=sys.stderr)
            return TransientError.exit_code


if __name__ == "__main__":
    sys.exit(main())
