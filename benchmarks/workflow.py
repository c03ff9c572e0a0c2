"""Where a workflow's time went that its stages did not use: python benchmarks/workflow.py -n physion NAME SUMMARY

SUMMARY is a file with the workflow's summary (argo logs NAME), from which the stages' own times are read. For each task on the
way from submit to report: the gap until its pods were made (Argo's), and what its pods took beyond the stage's own time
(scheduling, starting containers and Python, the store, ending).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path


def own_seconds(summary: str) -> dict[str, float]:
    """By instance, seconds, as the summary tells them."""
    units = {"h": 3600, "min": 60, "s": 1}
    found = re.findall(
        r"^.*?([\w-]+)\s+[0-9a-f]{12}\s+((?:\d+ (?:h|min|s) ?)+)$", re.sub(r"\x1b\[\d*m", "", summary), re.MULTILINE
    )
    return {name: sum(int(n) * units[u] for n, u in re.findall(r"(\d+) (h|min|s)", text)) for name, text in found}


def main() -> None:
    """Print one line a task and the sums."""
    namespace, name, summary = sys.argv[2:5]
    words = ["kubectl", "-n", namespace, "get", "workflow", name, "-o", "json"]
    workflow = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    own = own_seconds(Path(summary).read_text())
    pods = [node for node in workflow["status"]["nodes"].values() if node["type"] == "Pod"]
    when = {node["id"]: [datetime.fromisoformat(node[key]).timestamp() for key in ("startedAt", "finishedAt")] for node in pods}
    first = datetime.fromisoformat(workflow["metadata"]["creationTimestamp"]).timestamp()
    last = datetime.fromisoformat(workflow["status"]["finishedAt"]).timestamp()
    tasks: dict[str, list[str]] = {}
    for node in pods:
        tasks.setdefault(node["displayName"].partition("(")[0], []).append(node["id"])
    print(f"{'task':<28}{'gap':>6}{'pods':>6}{'own':>6}{'beyond':>8}")
    total = [0.0, 0.0]
    for task, ids in sorted(tasks.items(), key=lambda item: min(when[i][0] for i in item[1])):
        start, end = min(when[i][0] for i in ids), max(when[i][1] for i in ids)
        before = max([each[1] for each in when.values() if each[1] <= start] or [first])
        works = [seconds for instance, seconds in own.items() if instance == task] or [0.0]
        gap, beyond = start - before, end - start - sum(works)
        total = [total[0] + gap, total[1] + beyond]
        print(f"{task:<28}{gap:>6.0f}{end - start:>6.0f}{sum(works):>6.0f}{beyond:>8.0f}")
    events = sorted([(each[0], 1) for each in when.values()] + [(each[1], -1) for each in when.values()])
    running = peak = 0
    for _, change in events:
        running += change
        peak = max(peak, running)
    print(f"\nsubmit to end {last - first:.0f} s, {len(pods)} pods, {peak} at most at once")


if __name__ == "__main__":
    main()
