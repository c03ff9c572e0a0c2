"""What Argo and Kubernetes add to the stages of a workflow: python benchmarks/workflow.py NAMESPACE WORKFLOW

For each task on the way from submit to report: the gap between the last end of any pod and the making of its first one (Argo's
controller; too short where another branch's pod ended meanwhile); how long its pods took to start their main container
(scheduler, kubelet, Argo's init container); for a training, from there to the start of its workers (the launcher, the operator,
their pods); and how long it ran from then on. Kubernetes tells times in whole seconds, and its events stay for an hour: look
soon after the workflow has ended.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from datetime import datetime
from typing import Any


def ask(namespace: str, *what: str) -> Any:
    """What kubectl gets."""
    words = ["kubectl", "-n", namespace, "get", *what, "-o", "json"]
    return json.loads(subprocess.run(words, check=True, capture_output=True).stdout)


def seconds(time: str) -> float:
    """Since 1970."""
    return datetime.fromisoformat(time).timestamp()


def main() -> None:
    """Print one line a task, and what that means for a stage."""
    namespace, name = sys.argv[1:3]
    workflow = ask(namespace, "workflow", name)
    started: dict[str, dict[str, float]] = {}  # by pod, when its containers started
    for event in ask(namespace, "events", "--field-selector", "reason=Started,involvedObject.kind=Pod")["items"]:
        pod = event["involvedObject"]
        container = pod.get("fieldPath", "").partition("{")[2].rstrip("}")
        started.setdefault(pod["name"], {})[container] = seconds(event["firstTimestamp"])
    tasks: dict[str, list[tuple[float, float, float]]] = {}  # of each pod: made, began, ended
    for node in workflow["status"]["nodes"].values():
        if node["type"] == "Pod":
            made, ended = seconds(node["startedAt"]), seconds(node["finishedAt"])
            # A pod's name ends with what its node's ends with.
            ends = f"-{node['id'].rpartition('-')[2]}"
            begins = [each["main"] for pod, each in started.items() if pod.startswith(name) and pod.endswith(ends)]
            tasks.setdefault(node["displayName"].partition("(")[0], []).append((made, *(begins or [made]), ended))
    every = [pod for pods in tasks.values() for pod in pods]
    print(f"{'task':<28}{'pods':>6}{'gap':>6}{'start':>7}{'launch':>8}{'ran':>6}  s")
    added = []
    submitted, done = seconds(workflow["metadata"]["creationTimestamp"]), seconds(workflow["status"]["finishedAt"])
    for task, pods in sorted(tasks.items(), key=lambda item: min(item[1])):
        first, last = min(made for made, _, _ in pods), max(ended for _, _, ended in pods)
        gap = first - max([ended for _, _, ended in every if ended <= first] or [submitted])
        start = statistics.mean(began - made for made, began, _ in pods)
        begins = min(began for _, began, _ in pods)
        workers = [
            moment
            for pod, each in started.items()
            for moment in each.values()
            if pod.startswith(f"{task}-") and "-worker-" in pod and begins <= moment <= last
        ]
        launch = min(workers) - begins if workers else 0.0
        added.append((gap, start, launch))
        print(f"{task:<28}{len(pods):>6}{gap:>6.0f}{start:>7.1f}{launch:>8.0f}{last - begins - launch:>6.0f}")
    gap, start, launch = (statistics.mean(column) for column in zip(*added, strict=True))
    print(f"\nadded to a stage: {gap:.1f} s gap + {start:.1f} s start + {launch:.1f} s launch = {gap + start + launch:.1f} s")
    peak = max(sum(made <= moment < ended for made, _, ended in every) for moment, _, _ in every)
    print(f"submit to end {done - submitted:.0f} s, {len(every)} pods, {peak} at most at once (and the workers of trainings)")


if __name__ == "__main__":
    main()
