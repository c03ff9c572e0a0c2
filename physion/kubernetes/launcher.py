"""Makes a training's job, or joins the one that runs, and follows it to its end."""

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
from physion.kubernetes.jobs import JobKind
from physion.kubernetes.pods import PodLog, ending, has_ended, has_started, last_lines, name_of, obstacle
from physion.kubernetes.queue import QUEUED
from physion.progress import say, tell_argo

INTERVAL = 0.5  # seconds between looks at the job; a list cannot expire, as a watch can
LATE = 15.0  # seconds after a pod's grace period at which its node must be gone
STAYS = 5.0  # seconds after a forced deletion at which a pod must be gone
LOG_END = 30.0  # seconds to wait for the rest of a log when the job has ended
SHOWN_LINES = 20
LOSSES = 5  # of each worker, without progress in between, after which something must be wrong
NO_START = ("StartError", "ContainerCannotRun")
CREATED_BY = "physion/created-by"
STAGE_CODES = (1, 2, 3, 75, 130, 143)  # with which a stage ends; a killed one ends with others


class Launcher:
    """One training's way through a job.

    documents: as they are to be created, the last one the job. owner: the pod this runs in, as an ownerReference, or None
    outside of a cluster; when all its owners are gone, Kubernetes deletes the job. published: whether the artifact is there.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: JobKind,
        documents: list[dict[str, Any]],
        owner: dict[str, Any] | None,
        published: Callable[[], bool],
    ) -> None:
        self._cluster, self._kind, self._owner, self._published = cluster, kind, owner, published
        self._name = name_of(documents[-1])
        self._title = f"{kind.name} {self._name}"
        self._me = uuid.uuid4().hex  # tells a job of this launcher from another's, also when the answer to its creation is lost
        mine = {"ownerReferences": [owner] if owner else []}
        self._documents = [each | {"metadata": each["metadata"] | mine} for each in documents]
        job = self._documents[-1]
        job["metadata"]["annotations"] = job["metadata"].get("annotations", {}) | {CREATED_BY: self._me}
        self._replicas = kind.nodes(job)  # pods that train together
        self._told: dict[str, str] = {}
        self._leaving: dict[str, float] = {}  # when pods that are being deleted were first seen so
        self._forced: dict[str, float] = {}  # and when their deletion was forced
        self._asked = False  # whether the job is being deleted on our behalf, which goes on when we are interrupted
        self._logs: dict[str, PodLog] = {}  # by pod
        self._progress: tuple[int, int] | None = None
        self._farthest = 0
        self._workers: set[str] = set()  # seen since the training last got further than ever

    def run(self) -> None:
        """Return when the artifact is published.

        Raises the PhysionError that the training ended with; Interrupted and Preempted once the job is gone, state saved, or
        left to another launcher.
        """
        try:
            while (job := self._take()) and not self._follow(job):
                pass
        except (Interrupted, Preempted):
            self._cluster.stop = Stop()  # one is enough: a second Ctrl-C is a KeyboardInterrupt
            self._let_go()
            raise

    def _take(self) -> dict[str, Any] | None:
        """The job, created or joined; None if the artifact has been published in the meantime."""
        while True:
            job = self._cluster.find(self._kind.resource, self._name)
            # Without an owner they were orphaned on purpose, and the training operator gives them to the new job.
            left = [pod for pod in self._pods() if pod["metadata"].get("ownerReferences")]
            if job is None and not left:
                try:
                    made = self._kind.create(self._cluster, self._documents)
                    say(f"created {self._title} in namespace {self._cluster.namespace}")
                    return made
                except Conflict:  # another launcher was faster
                    self._cluster.pause(INTERVAL)
                    continue
            if job is None or "deletionTimestamp" in job["metadata"]:
                self._tell("", f"waiting for an earlier {self._name} to be gone")
                self._release_lost(left)
            elif result := self._kind.outcome(job):
                if self._published():
                    return None
                self._tell("", f"an earlier {self._name} has ended ({result}) without an artifact: starting anew")
                self._kind.delete(self._cluster, job)
            elif joined := self._join(job):
                return joined
            self._cluster.pause(INTERVAL)

    def _join(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """The running job with this launcher among its owners; None when it has changed."""
        # One without owners was started from a desk, where it is followed without being owned: it stays that launcher's.
        owners = job["metadata"].get("ownerReferences", [])
        if self._owner and owners and self._owner["uid"] not in [each["uid"] for each in owners]:
            try:
                joined = self._own(job, [*owners, self._owner])
            except Conflict:
                return None
        else:
            joined = job
        if not self._is_mine(job):
            say(f"{self._title} runs already: following it")
        return joined

    def _follow(self, job: dict[str, Any]) -> bool:
        """Until it has ended well; False if it has to be made anew."""
        identity = job["metadata"]["uid"]
        while True:
            found = self._cluster.find(self._kind.resource, self._name)
            if found is None or found["metadata"]["uid"] != identity or "deletionTimestamp" in found["metadata"]:
                if self._published():
                    return True
                if self._forced:
                    return False  # by another launcher, which saw the same
                raise TransientError(
                    f"{self._title} was deleted by someone else; the same command goes on from the last checkpoint"
                )
            self._replicas = self._kind.nodes(found)  # another launcher may have made it of more
            pods = self._pods()
            self._stream(pods)
            if self._release_lost(pods):
                say(f"{self._title} cannot go on without what was lost: making it anew")
                self._let_go(lost=identity)
                return False
            # Once its containers have ended, the operator needs a second or two to hear of it: the store knows.
            if (result := self._kind.outcome(found)) or (self._ended_well(pods) and self._published()):
                break
            self._explain(found, pods)
            if hopeless := self._hopeless(pods):
                self._let_go()
                raise hopeless
            self._cluster.pause(INTERVAL)
        self._end_of_logs()
        if self._published():
            if self._progress:
                tell_argo(self._progress[1], self._progress[1])
            return True
        if result == "Succeeded":
            raise ConfigError(
                f"{self._title} succeeded, but its artifact is not in the store: do its pods and this command "
                "use the same store?"
            )
        raise self._failure(found, self._pods())

    def _stream(self, pods: list[dict[str, Any]]) -> None:
        """Rank 0's log: of the first pod, and of each that takes its place."""
        for pod in pods:
            if (identity := pod["metadata"]["uid"]) in self._logs or not self._kind.is_first(pod):
                continue
            if has_started(pod, self._kind.container):
                self._logs[identity] = PodLog(self._cluster, pod, self._kind.container, self._line)
                self._logs[identity].start()

    def _end_of_logs(self) -> None:
        until = time.monotonic() + LOG_END
        for log in self._logs.values():
            log.join(max(0.0, until - time.monotonic()))

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
        if self._kind.is_suspended(job):
            self._tell("", f"{self._title} is suspended: {QUEUED}")
            self._workers.clear()  # a queue may take them as often as it wants
            return
        if "is suspended" in self._told.pop("", ""):
            say(f"{self._title} has been admitted")
        for pod in pods:
            if reason := obstacle(pod):
                self._tell(name_of(pod), f"{name_of(pod)} waits: {reason}")
            elif end := ending(pod, self._kind.container):
                if end["exitCode"]:
                    self._tell(name_of(pod), f"{name_of(pod)} ended with {_ended(end)}")
            elif has_started(pod, self._kind.container):
                self._told.pop(name_of(pod), None)
        if len(pods) < self._replicas:
            for text in self._kind.refusals(self._cluster, job):
                self._tell(text, f"{self._kind.maker} cannot create a pod: {text}")

    def _ended_well(self, pods: list[dict[str, Any]]) -> bool:
        ends = [end for pod in pods if (end := ending(pod, self._kind.container))]
        return len(ends) == self._replicas and not any(end["exitCode"] for end in ends)

    def _hopeless(self, pods: list[dict[str, Any]]) -> PhysionError | None:
        """Why the training should be stopped, whose killed workers would be made anew for ever."""
        self._workers |= {pod["metadata"]["uid"] for pod in pods}
        lost = len(self._workers) - self._replicas
        if lost >= LOSSES * self._replicas:
            return TransientError(
                f"{self._title}: {lost} workers in a row were lost without getting the training any further; "
                "the lines above say how they ended"
            )
        for pod in pods:
            end = ending(pod, self._kind.container)
            if end and end.get("reason") in NO_START:
                image = pod["spec"]["containers"][0]["image"]
                why = end.get("message", end["reason"])
                return ConfigError(f"{name_of(pod)} cannot be started ({why}): does {image} hold this version of physion?")
        return None

    def _release_lost(self, pods: list[dict[str, Any]]) -> bool:
        """Force the deletion of pods whose node cannot confirm it any more, so that others can have their names.

        If one runs on unseen, it leaves its successor's checkpoints alone (docs/training.md). True if even so one stays, as
        that of a Job with a podFailurePolicy does: it waits to hear how the pod ended, until it is deleted itself.
        """
        stays = False
        self._forced = {uid: self._forced[uid] for pod in pods if (uid := pod["metadata"]["uid"]) in self._forced}
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"] or has_ended(pod):
                continue
            uid, now = pod["metadata"]["uid"], time.monotonic()
            grace = pod["metadata"].get("deletionGracePeriodSeconds", 0)
            since = self._leaving.setdefault(uid, now)
            if uid in self._forced:
                stays |= now - self._forced[uid] > STAYS
            elif now - since > grace + LATE:
                node = pod["spec"].get("nodeName", "no node")
                say(f"{name_of(pod)} on {node} does not end: its node must be lost, deleting it by force")
                self._forced[uid] = now
                self._cluster.delete("pods", pod, grace=0)
        return stays

    def _failure(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> PhysionError:
        """What the job ended with: its workers' last words, and the exit code of the one that failed first."""
        failed = [pod for pod in pods if has_ended(pod) and pod["status"]["phase"] == "Failed"]
        for pod in failed:
            if pod["metadata"]["uid"] in self._logs:
                continue  # was streamed
            for line in last_lines(self._cluster, pod, self._kind.container, SHOWN_LINES):
                say(f"{name_of(pod)} | {line}")
        ends = [(end, pod) for pod in failed if (end := ending(pod, self._kind.container))]
        said = "; ".join(f"{name_of(pod)} ended with {_ended(end)}" for end, pod in ends)
        if not said:
            said = self._kind.why_failed(job)
        return of_exit_code(first_failure([end for end, _ in ends]), f"{self._title} failed: {said}")

    def _let_go(self, *, lost: str | None = None) -> None:
        """Delete the job and wait until its pods have saved their state, unless it is another launcher's, too.

        lost: the uid of a job to be deleted even so, for it cannot go on: all that follow it see that, and one makes it anew.
        """
        while True:
            job, pods = self._cluster.find(self._kind.resource, self._name), self._pods()
            if job is None and not (self._asked and pods):
                break
            if job is not None and lost and job["metadata"]["uid"] != lost:
                break  # made anew already
            if job is not None and "deletionTimestamp" not in job["metadata"]:
                owners = job["metadata"].get("ownerReferences", [])
                others = [each for each in owners if not self._owner or each["uid"] != self._owner["uid"]]
                joined = len(others) < len(owners)
                if not lost and (not (joined or self._is_mine(job)) or any(self._is_alive(each) for each in others)):
                    try:
                        if joined:
                            self._own(job, others)
                    except Conflict:
                        continue
                    stops = f"kubectl delete {self._kind.name.lower()} stops it"
                    say(f"{self._title} goes on: another launcher follows it ({stops})")
                    return
                self._kind.delete(self._cluster, job)
            if not self._asked:
                say(f"{self._title} is being deleted: waiting for its workers to save their state")
            self._asked = True
            self._stream(pods)
            self._release_lost(pods)
            self._cluster.pause(INTERVAL)
        self._asked = False
        self._end_of_logs()

    def _own(self, job: dict[str, Any], owners: list[dict[str, Any]]) -> dict[str, Any] | None:
        version = job["metadata"]["resourceVersion"]  # another launcher may be doing the same
        body = {"metadata": {"resourceVersion": version, "ownerReferences": owners}}
        return self._cluster.patch(self._kind.resource, self._name, body)

    def _is_mine(self, job: dict[str, Any]) -> bool:
        return bool(job["metadata"].get("annotations", {}).get(CREATED_BY) == self._me)

    def _is_alive(self, owner: dict[str, Any]) -> bool:
        pod = self._cluster.find("pods", owner["name"]) if owner["kind"] == "Pod" else None
        if pod is None or pod["metadata"]["uid"] != owner["uid"]:
            return False
        return not has_ended(pod) and "deletionTimestamp" not in pod["metadata"]

    def _pods(self) -> list[dict[str, Any]]:
        return self._kind.pods(self._cluster, self._name)

    def _tell(self, about: str, text: str) -> None:
        if self._told.get(about) != text:
            self._told[about] = text
            say(text)


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
        return "out of memory: give it more (resources in jobs/, or --patch), or make batches smaller"
    return f"exit code {end['exitCode']}"
