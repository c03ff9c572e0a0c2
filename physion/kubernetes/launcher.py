"""Makes a training's PyTorchJob, or joins the one that runs, and follows it to its end."""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from physion.errors import ConfigError, Interrupted, PhysionError, Preempted, TransientError, of_exit_code
from physion.job import Stop
from physion.kubernetes.cluster import Cluster, Conflict
from physion.kubernetes.manifest import CONTAINER
from physion.kubernetes.pods import PodLog, ending, has_ended, has_started, last_lines, name_of, obstacle, refusals
from physion.progress import say, tell_argo

INTERVAL = 0.5  # seconds between looks at the job; a list cannot expire, as a watch can
LATE = 15.0  # seconds after a pod's grace period at which its node must be gone
LOG_END = 30.0  # seconds to wait for the rest of a log when the job has ended
SHOWN_LINES = 20
LOSSES = 5  # of each worker, without progress in between, after which something must be wrong
NO_START = ("StartError", "ContainerCannotRun")
CREATED_BY = "physion/created-by"
STAGE_CODES = (1, 2, 3, 75, 130, 143)  # with which a stage ends; a killed one ends with others


class Launcher:
    """One training's way through a PyTorchJob.

    job: as it is to be created. owner: the pod this runs in, as an ownerReference, or None outside of a cluster; when all its
    owners are gone, Kubernetes deletes the job. published: whether the artifact is there.
    """

    def __init__(
        self, cluster: Cluster, job: dict[str, Any], owner: dict[str, Any] | None, published: Callable[[], bool]
    ) -> None:
        self._cluster, self._owner, self._published = cluster, owner, published
        self._name = name_of(job)
        self._me = uuid.uuid4().hex  # tells a job of this launcher from another's, also when the answer to its creation is lost
        self._job = job | {"metadata": job["metadata"] | {"ownerReferences": [owner] if owner else []}}
        self._job["metadata"]["annotations"] = job["metadata"].get("annotations", {}) | {CREATED_BY: self._me}
        self._replicas = job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]
        self._selector = f"training.kubeflow.org/job-name={self._name}"
        self._told: dict[str, str] = {}
        self._leaving: dict[str, float] = {}  # when pods that are being deleted were first seen so
        self._log: tuple[str, PodLog] | None = None
        self._progress: tuple[int, int] | None = None
        self._farthest = 0
        self._workers: set[str] = set()  # seen since the training last got further than ever

    def run(self) -> None:
        """Return when the artifact is published.

        Raises the PhysionError that the training ended with; Interrupted and Preempted once the job is gone, state saved, or
        left to another launcher.
        """
        try:
            job = self._take()
            if job is not None:
                self._follow(job)
        except (Interrupted, Preempted):
            self._cluster.stop = Stop()  # one is enough: a second Ctrl-C is a KeyboardInterrupt
            self._let_go()
            raise

    def _take(self) -> dict[str, Any] | None:
        """The job, created or joined; None if the artifact has been published in the meantime."""
        while True:
            job = self._cluster.find("pytorchjobs", self._name)
            # Without an owner they were orphaned on purpose, and the operator gives them to the new job.
            left = [pod for pod in self._pods() if pod["metadata"].get("ownerReferences")]
            if job is None and not left:
                try:
                    made = self._cluster.create("pytorchjobs", self._job)
                    say(f"created PyTorchJob {self._name} in namespace {self._cluster.namespace}")
                    return made
                except Conflict:
                    continue  # another launcher was faster
            if job is None or "deletionTimestamp" in job["metadata"]:
                self._tell("", f"waiting for an earlier {self._name} to be gone")
                self._release_lost(left)
            elif outcome(job):
                if self._published():
                    return None
                self._tell("", f"an earlier {self._name} has ended ({outcome(job)}) without an artifact: starting anew")
                self._cluster.delete("pytorchjobs", job)
            elif joined := self._join(job):
                return joined
            self._cluster.pause(INTERVAL)

    def _join(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """The running job with this launcher among its owners; None when it has changed."""
        owners = job["metadata"].get("ownerReferences", [])
        if self._owner and self._owner["uid"] not in [each["uid"] for each in owners]:
            try:
                joined = self._own(job, [*owners, self._owner])
            except Conflict:
                return None
        else:
            joined = job
        if not self._is_mine(job):
            say(f"PyTorchJob {self._name} runs already: following it")
        return joined

    def _follow(self, job: dict[str, Any]) -> None:
        identity = job["metadata"]["uid"]
        while True:
            found = self._cluster.find("pytorchjobs", self._name)
            if found is None or found["metadata"]["uid"] != identity or "deletionTimestamp" in found["metadata"]:
                if self._published():
                    return
                raise TransientError(
                    f"PyTorchJob {self._name} was deleted by someone else; the same command goes on from the last checkpoint"
                )
            pods = self._pods()
            self._stream(pods)
            self._release_lost(pods)
            # Once its containers have ended, the operator needs a second or two to hear of it: the store knows.
            if (result := outcome(found)) or (self._ended_well(pods) and self._published()):
                break
            self._explain(found, pods)
            if hopeless := self._hopeless(pods):
                self._let_go()
                raise hopeless
            self._cluster.pause(INTERVAL)
        if self._log:
            self._log[1].join(LOG_END)
        if self._published():
            if self._progress:
                tell_argo(self._progress[1], self._progress[1])
            return
        if result == "Succeeded":
            raise ConfigError(
                f"PyTorchJob {self._name} succeeded, but its artifact is not in the store: do its pods and this command "
                "use the same store?"
            )
        raise self._failure(found, self._pods())

    def _stream(self, pods: list[dict[str, Any]]) -> None:
        """Rank 0's log, which is that of the pod with index 0, whichever pod that is at the moment."""
        for pod in pods:
            if pod["metadata"]["labels"].get("training.kubeflow.org/replica-index") != "0" or not has_started(pod, CONTAINER):
                continue
            if self._log is None or self._log[0] != pod["metadata"]["uid"]:
                self._log = (pod["metadata"]["uid"], PodLog(self._cluster, pod, CONTAINER, self._line))
                self._log[1].start()

    def _line(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        if match := re.match(r"[\w-]+: (\d+)/(\d+) \w+ \(", line):
            self._progress = int(match[1]), int(match[2])
            tell_argo(*self._progress)
            if self._progress[0] > self._farthest:
                self._farthest = self._progress[0]
                self._workers.clear()

    def _explain(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        """Say once what keeps the training from running."""
        if job["spec"].get("runPolicy", {}).get("suspend"):
            self._tell("", f"PyTorchJob {self._name} is suspended: it waits to be admitted by its queue")
            return
        for pod in pods:
            if reason := obstacle(pod):
                self._tell(name_of(pod), f"{name_of(pod)} waits: {reason}")
            elif end := ending(pod, CONTAINER):
                if end["exitCode"]:
                    self._tell(name_of(pod), f"{name_of(pod)} ended with {_ended(end)}")
            elif has_started(pod, CONTAINER):
                self._told.pop(name_of(pod), None)
        if len(pods) < self._replicas:
            for text in refusals(self._cluster, job):
                self._tell(text, f"the training operator cannot create a pod: {text}")

    def _ended_well(self, pods: list[dict[str, Any]]) -> bool:
        ends = [end for pod in pods if (end := ending(pod, CONTAINER))]
        return len(ends) == self._replicas and not any(end["exitCode"] for end in ends)

    def _hopeless(self, pods: list[dict[str, Any]]) -> PhysionError | None:
        """Why the operator should be stopped from making workers anew, which it does for ever with those that were killed."""
        self._workers |= {pod["metadata"]["uid"] for pod in pods}
        lost = len(self._workers) - self._replicas
        if lost >= LOSSES * self._replicas:
            return TransientError(
                f"PyTorchJob {self._name}: {lost} workers in a row were lost without getting the training any further; "
                "the lines above say how they ended"
            )
        for pod in pods:
            end = ending(pod, CONTAINER)
            if end and end.get("reason") in NO_START:
                image = pod["spec"]["containers"][0]["image"]
                why = end.get("message", end["reason"])
                return ConfigError(f"{name_of(pod)} cannot be started ({why}): does {image} hold this version of physion?")
        return None

    def _release_lost(self, pods: list[dict[str, Any]]) -> None:
        """Force the deletion of pods whose node cannot confirm it any more, so that others can have their names.

        If one runs on unseen, it leaves its successor's checkpoints alone (docs/training.md).
        """
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                continue
            grace = pod["metadata"].get("deletionGracePeriodSeconds", 0)
            since = self._leaving.setdefault(pod["metadata"]["uid"], time.monotonic())
            if time.monotonic() - since > grace + LATE:
                node = pod["spec"].get("nodeName", "no node")
                self._tell(name_of(pod), f"{name_of(pod)} on {node} does not end: its node must be lost, deleting it by force")
                self._cluster.delete("pods", pod, grace=0)

    def _failure(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> PhysionError:
        """What the job ended with: its workers' last words, and the exit code of the one that failed first."""
        failed = [pod for pod in pods if has_ended(pod) and pod["status"]["phase"] == "Failed"]
        for pod in failed:
            if self._log is not None and self._log[0] == pod["metadata"]["uid"]:
                continue  # was streamed
            for line in last_lines(self._cluster, pod, CONTAINER, SHOWN_LINES):
                say(f"{name_of(pod)} | {line}")
        ends = [(end, pod) for pod in failed if (end := ending(pod, CONTAINER))]
        said = "; ".join(f"{name_of(pod)} ended with {_ended(end)}" for end, pod in ends)
        if not said:
            conditions = job["status"]["conditions"]
            said = next(each["message"] for each in reversed(conditions) if each["type"] == "Failed")
        return of_exit_code(first_failure([end for end, _ in ends]), f"PyTorchJob {self._name} failed: {said}")

    def _let_go(self) -> None:
        """Delete the job and wait until its pods have saved their state, unless it is another launcher's, too."""
        asked = False
        while True:
            job, pods = self._cluster.find("pytorchjobs", self._name), self._pods()
            if job is None and not (asked and pods):
                break
            if job is not None and "deletionTimestamp" not in job["metadata"]:
                owners = job["metadata"].get("ownerReferences", [])
                others = [each for each in owners if not self._owner or each["uid"] != self._owner["uid"]]
                joined = len(others) < len(owners)
                if not (joined or self._is_mine(job)) or any(self._is_alive(each) for each in others):
                    try:
                        if joined:
                            self._own(job, others)
                    except Conflict:
                        continue
                    say(f"PyTorchJob {self._name} goes on: another launcher follows it (kubectl delete pytorchjob stops it)")
                    return
                self._cluster.delete("pytorchjobs", job)
            if not asked:
                say(f"PyTorchJob {self._name} is being deleted: waiting for its workers to save their state")
            asked = True
            self._stream(pods)
            self._release_lost(pods)
            self._cluster.pause(INTERVAL)
        if self._log:
            self._log[1].join(LOG_END)

    def _own(self, job: dict[str, Any], owners: list[dict[str, Any]]) -> dict[str, Any] | None:
        version = job["metadata"]["resourceVersion"]  # another launcher may be doing the same
        body = {"metadata": {"resourceVersion": version, "ownerReferences": owners}}
        return self._cluster.patch("pytorchjobs", self._name, body)

    def _is_mine(self, job: dict[str, Any]) -> bool:
        return bool(job["metadata"].get("annotations", {}).get(CREATED_BY) == self._me)

    def _is_alive(self, owner: dict[str, Any]) -> bool:
        pod = self._cluster.find("pods", owner["name"]) if owner["kind"] == "Pod" else None
        if pod is None or pod["metadata"]["uid"] != owner["uid"]:
            return False
        return not has_ended(pod) and "deletionTimestamp" not in pod["metadata"]

    def _pods(self) -> list[dict[str, Any]]:
        return self._cluster.listed("pods", self._selector)

    def _tell(self, about: str, text: str) -> None:
        if self._told.get(about) != text:
            self._told[about] = text
            say(text)


def outcome(job: dict[str, Any]) -> str | None:
    """Succeeded or Failed; None while a job goes on."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Succeeded", "Failed") and condition["status"] == "True":
            return str(condition["type"])
    return None


def first_failure(ends: list[dict[str, Any]]) -> int:
    """The exit code of the container that failed first; 75 where it was killed, or nothing is known of it."""
    failed = [end for end in ends if end["exitCode"]]
    if not failed:
        return TransientError.exit_code
    # Times are whole seconds; who lost the others (75) within one did so because one of them failed.
    first = min(failed, key=lambda end: (end.get("finishedAt") or "9", end["exitCode"] == TransientError.exit_code))
    code = int(first["exitCode"])
    return code if code in STAGE_CODES else TransientError.exit_code


def _ended(end: dict[str, Any]) -> str:
    if end.get("reason") == "OOMKilled":
        return "out of memory: give it more (resources in jobs/training.yaml, or --patch), or make batches smaller"
    return f"exit code {end['exitCode']}"
