"""What Argo and Kubernetes add to the stages of a study: python benchmarks/workflow.py NAMESPACE -p preset=smoke [-p ...]

Submits the workflow, watches its pods and tells, for each task, the seconds from the end of the last process that it waited for
to the making of its first pod (Argo's sidecar, the kubelet, Argo's controller, a place among its pods); what the pod,
and a training's workers, waited for room on a node; from there to the start of its process (kubelet, Argo's init container);
for a training, what its launcher adds before the start and after the end of its workers; and how long its own processes ran.
Kubernetes tells times in whole seconds, so a single number is off by up to one; their mean is not.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

WORKFLOW = Path(__file__).parents[1] / "workflows" / "physion_vqa.yaml"
Pod = dict[str, Any]


def seconds(time: str) -> float:
    """Since 1970."""
    return datetime.fromisoformat(time).timestamp()


class Watch(threading.Thread):
    """The last known state of every pod of a namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__(daemon=True)
        words = ["kubectl", "-n", namespace, "get", "pods", "--watch", "--output", "json"]
        self.kubectl = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.pods: dict[str, Pod] = {}
        self.start()

    def run(self) -> None:
        """Read one document after the other."""
        document = ""
        for line in self.kubectl.stdout or ():
            document += line
            if line == "}\n":
                pod = json.loads(document)
                self.pods[pod["metadata"]["uid"]] = pod
                document = ""


def made(pod: Pod) -> float:
    """When it was made."""
    return seconds(pod["metadata"]["creationTimestamp"])


def ran(pod: Pod) -> tuple[float, float]:
    """When the process of its main container began and ended."""
    (main,) = (each for each in pod["status"]["containerStatuses"] if each["name"] in ("main", "pytorch"))
    return seconds(main["state"]["terminated"]["startedAt"]), seconds(main["state"]["terminated"]["finishedAt"])


def waited(pod: Pod) -> float:
    """For a node with room for it."""
    (scheduled,) = (each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled")
    return seconds(scheduled["lastTransitionTime"]) - made(pod)


def main() -> None:
    """Print one line a task, and what that means for a stage."""
    namespace, *parameters = sys.argv[1:]
    watch = Watch(namespace)
    words = ["argo", "-n", namespace, "submit", "--output", "name", str(WORKFLOW), *parameters]
    name = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["argo", "-n", namespace, "wait", name], check=True, stdout=sys.stderr)
    words = ["kubectl", "-n", namespace, "get", "workflow", name, "--output", "json"]
    workflow = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    watch.kubectl.terminate()
    watch.join()

    (dag,) = (each["dag"] for each in workflow["status"]["storedWorkflowTemplateSpec"]["templates"] if "dag" in each)
    sources = {task["name"]: re.findall(r"[\w-]+", task.get("depends", "")) for task in dag["tasks"]}
    sources["onExit"] = ["evaluate"]
    tasks: dict[str, list[Pod]] = {}
    stages: set[str] = set()
    workers: list[Pod] = []
    for pod in watch.pods.values():
        if pod["metadata"]["labels"].get("workflows.argoproj.io/workflow") == name:
            node = pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"].removeprefix(name).lstrip(".")
            task, *item = re.findall(
                r"^[\w-]+|(?<=:)[^)]+", node
            )  # frames-test(0:0/2)(0), train-readout-full(1:train-readout-full-1)(0)
            tasks.setdefault(task, []).append(pod)
            stages |= {item[0] if item and "/" not in item[0] else task} - {"plan", "onExit"}
        elif "training.kubeflow.org/job-name" in pod["metadata"]["labels"]:
            workers.append(pod)
    submitted = seconds(workflow["metadata"]["creationTimestamp"])

    def ended(task: str) -> float:
        """The end of its last process; a task that had nothing to do ends as what it waited for."""
        return max(ran(pod)[1] for pod in tasks[task]) if task in tasks else ready(task)

    def ready(task: str) -> float:
        return max([ended(source) for source in sources[task]], default=submitted)

    print(f"{'task':<28}{'pods':>6}{'gap':>6}{'room':>6}{'start':>7}{'launch':>8}{'ran':>6}  s")
    added: dict[str, tuple[float, float, float]] = {}
    for task, pods in sorted(tasks.items(), key=lambda item: min(map(made, item[1]))):
        first = min(pods, key=made)
        (began, _), end, room = ran(first), ended(task), waited(first)
        start, launch, own = began - made(first) - room, 0.0, end - began
        names = [each for each in workers if each["metadata"]["labels"]["training.kubeflow.org/job-name"].startswith(task)]
        if inside := [each for each in names if began <= made(each) <= end]:
            own = max(ran(each)[1] for each in inside) - min(ran(each)[0] for each in inside)
            late = max(map(waited, inside))
            launch, room = end - began - own - late, room + late
        added[task] = made(first) - ready(task), start, launch
        print(f"{task:<28}{len(pods):>6}{added[task][0]:>6.0f}{room:>6.0f}{start:>7.0f}{launch:>8.0f}{own:>6.0f}")
    gap, start, launch = (statistics.mean(column) for column in zip(*added.values(), strict=True))
    print(f"\nadded to a task: {gap:.1f} s gap + {start:.1f} s start + {launch:.1f} s launch = {gap + start + launch:.1f} s")

    path = ["evaluate"]  # back from the report, each time to what was waited for longest
    while sources[path[0]]:
        path.insert(0, max(sources[path[0]], key=ended))
    path = [task for task in path if task in tasks]
    total, beyond = ended("evaluate") - submitted, sum(sum(added[task]) for task in path)
    print(f"submit to report {total:.0f} s, {beyond:.0f} s of them beyond what the {len(path)} tasks on its longest way took:")
    print(f"{beyond / len(stages):.1f} s for each of the {len(stages)} stages")
    every = [pod for pods in (*tasks.values(), workers) for pod in pods]
    peak = max(sum(made(each) <= made(pod) < ran(each)[1] for each in every) for pod in every)
    print(f"{len(every) - len(workers)} pods and {len(workers)} workers of trainings, {peak} at most at once")


if __name__ == "__main__":
    main()
