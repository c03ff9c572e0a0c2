"""The last pod of a workflow says what was made, what it gave and what went wrong: workflows/template.yaml runs this.

It takes the study from PHYSION_PRESET, PHYSION_STORE and PHYSION_SET as every stage does, its variants from PHYSION_SWEEP, and
WORKFLOW, STATUS and FAILURES from Argo.
"""

from __future__ import annotations

import json
import os
import re
import sys

from physion.config.load import load_config, variants
from physion.errors import PhysionError
from physion.pipeline.graph import build_graph
from physion.progress import duration
from physion.store.uri import open_store

ADVICE = {
    "2": "configuration: correct the parameters and submit again",
    "3": "bad input data: its log names what is wrong",
    "75": "the store or the network failed: argo retry, or submit again",
    "137": "killed, most likely for its memory: give it more, or a smaller batch",
    "143": "stopped, state saved: argo retry, or submit again",
}


def main() -> int:
    """Print the summary. Never fails: the workflow has its status from its stages."""
    name, status = os.environ["WORKFLOW"], os.environ["STATUS"]
    print(f"workflow {name}: {status}\n")
    try:
        print_study()
    except PhysionError as error:
        print(f"error: {error}")
    failures = parsed(os.environ.get("FAILURES", ""))
    for failure in failures:
        print(f"\nfailed: {failure.get('displayName')}: {failure.get('message')}\n  {advice(failure.get('message', ''))}")
    if failures:
        print(f"\nlogs: argo logs {name}, or physion logs {name}")
    return 0


def advice(message: str) -> str:
    """What to do about a failed node, by the exit code in Argo's message."""
    code = re.search(r"exit code (\d+)", message)
    return ADVICE.get(code[1] if code else "", "physion status and physion logs say more")


def print_study() -> None:
    """One line a stage instance: done or not, how long it took, what it gave; at last the accuracy and where the report is.

    Of a further variant only what it does not share with those above.
    """
    store = open_store(os.environ["PHYSION_STORE"])
    overrides, shown = os.environ.get("PHYSION_SET", "").split(), set[str]()
    for variant in variants(os.environ.get("PHYSION_SWEEP", "").split()):
        if variant:
            print(f"\nvariant {' '.join(variant)}")
        for node in build_graph(load_config(os.environ["PHYSION_PRESET"], [*overrides, *variant]), store).values():
            manifest = node.manifest(store)
            took = f"{duration(manifest.seconds):>14}" if manifest else f"{'not done':>14}"
            if node.fingerprint not in shown:
                print(f"{node.name:<28}{node.fingerprint[:12]}  {took}")
            shown.add(node.fingerprint)
            if node.stage.name == "evaluate" and manifest:
                report = f"{store.uri}/{node.prefix}/report.html"
                print(f"\n{manifest.metrics.get('headline', '')}\nreport: {report}")


def parsed(failures: str) -> list[dict[str, str]]:
    """Argo's list of failed nodes, which it hands over as JSON, quoted once more."""
    try:
        found = json.loads(failures or "null")
        return list((json.loads(found) if isinstance(found, str) else found) or [])  # null: nothing failed
    except json.JSONDecodeError:
        return []


if __name__ == "__main__":
    sys.exit(main())
