"""Follows README.md to the letter: runs its blocks of commands, in their order, in a fresh clone: `python tests/readme.py`.

Everything is done as it stands, but for what `INSTEAD` and `LEFT_OUT` name, with the reason. On two cores that is `make demo`,
half an hour for three trainings of preset `tiny`, and two installations (12 GB of disk). `--preset smoke` stands in for `tiny`:
that shows that the commands fit together, not that they work at the size README says. `--list` only prints what would be run.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_COMMANDS = {"video ─ frames": "a drawing", "Observed ": "what a command prints"}  # what a block begins with
CLUSTER = "a cluster: tests/cluster runs it"
REPORTS = (
    "$(python -c \"import json, sys; print(*[run['fingerprint'] for run in json.load(sys.stdin)['result']][:2])\" < runs.json)"
)
# A line of README, without comment -> what is run instead, and why.
INSTEAD = {
    "physion compare 1a2b3c 4d5e6f -s runs/mine --report page.html": (
        f"physion runs -s runs/mine --json > runs.json && physion compare {REPORTS} -s runs/mine --report page.html",
        "fingerprints that `physion runs` shows",
    ),
    "physion store diff runs/mine runs/other": (
        "cp -r runs/mine runs/other && physion store diff runs/mine runs/other",
        "a reader has another run; here it is a copy",
    ),
    "python3 -m venv .venv && . .venv/bin/activate": (
        "git clone -q . pip && cd pip && python3 -m venv .venv && . .venv/bin/activate",
        "the other way to install, in another checkout",
    ),
    "pip install --require-hashes -r requirements.lock && pip install --no-deps .": (
        "pip install -q --require-hashes -r requirements.lock && pip install -q --no-deps . && physion doctor && "
        "cd .. && rm -rf pip && . .venv/bin/activate",
        "it is tried, and then the first way goes on",
    ),
}
LEFT_OUT = {
    "make test": "20 minutes that CI spends on every change",
    "uv pip install --torch-backend cpu '.[simulation]'": "PyTorch's own index, which CI's machines do not reach",
    "kubectl apply -k k8s/overlays/local": CLUSTER,
    "argo submit -n physion --watch workflows/physion_vqa.yaml -p preset=tiny": CLUSTER,
    "physion run --preset paper --store runs/paper --set fetch.root=/data/Physion": "the official videos, and a week of a GPU",
}


def blocks(text: str) -> list[list[str]]:
    """The lines of each block of code, indented by four spaces, as README has them."""
    found = re.findall(r"(?<=\n\n)((?:    .*\n)+)", text)
    return [[line[4:] for line in block.splitlines()] for block in found]


def commands(text: str) -> list[tuple[str, str]]:
    """Each line of README's blocks of commands, without its comment, and what is run for it; nothing if it is left out."""
    lines = [line for block in blocks(text) if not block[0].startswith(tuple(NO_COMMANDS)) for line in block]
    bare = [re.sub(r"\s{2,}#.*", "", line).strip() for line in lines]
    bare = [re.sub(r" {2,}", " ", line) for line in bare]
    return [(line, "" if line in LEFT_OUT else INSTEAD.get(line, (line,))[0]) for line in bare]


def script(text: str, preset: str) -> str:
    """What a shell runs."""
    said = []
    for line, run in commands(text):
        run = re.sub(r"(-p |--preset )tiny\b", rf"\g<1>{preset}", run)
        note = f"   # left out: {LEFT_OUT[line]}" if not run else f"   # {INSTEAD[line][1]}" if line in INSTEAD else ""
        said.append(f"cat <<'SAID'\n\n$ {line}{note}\nSAID\n{run}\nended=$?; [ $ended = 0 ] || exit $ended\n")
    return "".join(said)


def main() -> int:
    """Run it. Returns the exit code of the first command that fails."""
    parser = argparse.ArgumentParser(prog="python tests/readme.py", description=__doc__)
    parser.add_argument("--preset", default="tiny", help="in the place of preset tiny")
    parser.add_argument("--list", action="store_true", help="only print what would be run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="readme-") as folder:
        clone = Path(folder) / "physion"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        run = script((clone / "README.md").read_text(encoding="utf-8"), given.preset)
        if given.list:
            print(run)
            return 0
        code = subprocess.run(["bash", "-c", run], cwd=clone).returncode
    print(f"\nREADME {'can be followed' if code == 0 else f'cannot be followed: exit code {code}'}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
