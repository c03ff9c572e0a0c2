"""What a pod is doing: why it waits and what to do about it, how it ended, and its log, line by line."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import urllib3

from physion.errors import PhysionError
from physion.kubernetes.cluster import Cluster
from physion.kubernetes.queue import QUEUED

IMAGE_TROUBLE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
MISSING = re.compile(r'(secret|configmap) "([^"]+)" not found')
GATED = "SchedulingGated"
SECOND = len("2026-01-01T00:00:00")
LOG_PAUSE = 0.5  # between two attempts to read a log
LOG_TRIES = 4  # of the end of a log, none of which gets any further


def name_of(thing: dict[str, Any]) -> str:
    """The name of an object."""
    return str(thing["metadata"]["name"])


def obstacle(pod: dict[str, Any]) -> str | None:
    """Why a pod does not start or go on, and what to do; None when nothing is known to be in its way."""
    status = pod.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    holds = {name: condition["status"] == "True" for name, condition in conditions.items()}
    if not holds.get("PodScheduled", True):
        return _unscheduled(conditions["PodScheduled"].get("reason", ""), conditions["PodScheduled"].get("message", ""))
    if not holds.get("Ready", True) and holds.get("ContainersReady") and not has_ended(pod):
        # The kubelet sets both alike; only for a node that is not heard of any more does another set the first.
        node = pod["spec"]["nodeName"]
        return (
            f"its node {node} does not answer: it goes on when the node is back; if that is gone for good, "
            f"kubectl delete node {node} (clouds do it by themselves), and it goes on elsewhere"
        )
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in IMAGE_TROUBLE:
            return (
                f"image {container['image']} cannot be had ({reason}: {message}): check its name and tag, that the nodes reach "
                "the registry, and imagePullSecrets of the service account"
            )
        if missing := MISSING.search(message):
            what, name = missing.groups()
            return f"{what} {name} is missing: create it in namespace {pod['metadata']['namespace']}"
        if reason.startswith("Create") or reason == "RunContainerError":
            return f"its container cannot be made ({reason}: {message})"
    return None


def is_gated(pod: dict[str, Any]) -> bool:
    """Whether a queue keeps a pod from being scheduled."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "PodScheduled" and each.get("reason") == GATED for each in conditions)


def refusal(message: str) -> str:
    """Why the API server did not let a pod be made, and what to do."""
    if "exceeded quota" in message:
        return f"{message}; ask for less, or have the quota of the namespace raised"
    if "violates PodSecurity" in message:
        return f"{message}; a --patch or an added container lacks the securityContext that jobs/ has"
    return message


def _unscheduled(reason: str, message: str) -> str:
    if reason == GATED:
        return QUEUED
    if "nvidia.com/gpu" in message:
        advice = "no node has that many free GPUs: ask for fewer a node, wait for those that are busy, or add nodes"
    elif "Insufficient" in message:
        advice = "ask for less (resources in jobs/, or --patch), wait for what is busy, or add nodes"
    elif "taint" in message or "selector" in message or "affinity" in message:
        advice = (
            "kubectl describe nodes shows their labels and taints (a full disk is one, too); "
            "give tolerations or a nodeSelector that fit (--patch), or add nodes"
        )
    else:
        advice = "kubectl describe pod says more"
    return f"no node can take it ({message.removesuffix('.')}): {advice}"


def ending(pod: dict[str, Any], container: str) -> dict[str, Any] | None:
    """How a pod's container ended: Kubernetes' exitCode, reason, finishedAt; None while it has not."""
    for status in pod.get("status", {}).get("containerStatuses", []):
        if status["name"] == container:
            found: dict[str, Any] | None = status.get("state", {}).get("terminated")
            return found
    return None


def has_ended(pod: dict[str, Any]) -> bool:
    """Whether a pod is over, by whatever cause."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def has_started(pod: dict[str, Any], container: str) -> bool:
    """Whether there is a log of this container."""
    return any(
        status["name"] == container and not status.get("state", {}).get("waiting")
        for status in pod.get("status", {}).get("containerStatuses", [])
    )


class PodLog(threading.Thread):
    """Hands each line of one container's log to `take` as it comes, none twice, until the container has ended.

    With `follow` false, until the end of what it has written so far. `trouble`: why the log could not be read to its end.
    """

    def __init__(
        self, cluster: Cluster, pod: dict[str, Any], container: str, take: Callable[[str], None], follow: bool = True
    ) -> None:
        super().__init__(daemon=True)
        self._cluster, self._pod, self._container, self._take = cluster.impatient(), pod, container, take
        self._follow = follow
        self.trouble = ""
        self._newest = ""  # the latest time that a line came from
        self._recent: set[bytes] = set()  # lines that come again when the log is asked for from shortly before it

    def run(self) -> None:
        """Read, and after every break read on."""
        last, failures, before = not self._follow, 0, ""
        while True:
            try:
                pod = self._cluster.find("pods", name_of(self._pod))
                if pod is None or pod["metadata"]["uid"] != self._pod["metadata"]["uid"]:
                    return
                last = not self._follow or has_ended(pod) or ending(pod, self._container) is not None
                if has_started(pod, self._container):
                    self._read(last)
                if last:
                    return
            except (urllib3.exceptions.HTTPError, PhysionError) as error:  # who follows the job says that the API is away
                failures, before = failures + 1 if before == self._newest else 1, self._newest
                if last and failures >= LOG_TRIES:
                    self.trouble = " ".join(str(error).split())
                    return
            time.sleep(LOG_PAUSE)

    def _read(self, last: bool) -> None:
        rest = b""
        for chunk in self._cluster.log(name_of(self._pod), self._container, follow=self._follow, since=self._since()):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._line(line)
        if rest and last:  # else it comes again, whole
            self._line(rest)

    def _line(self, raw: bytes) -> None:
        if raw in self._recent:
            return
        stamp, _, text = raw.decode(errors="replace").partition(" ")
        self._take(text)
        newer, self._newest = stamp[:SECOND] > self._newest[:SECOND], max(stamp, self._newest)
        if newer:
            floor = self._since()[:SECOND].encode()
            self._recent = {line for line in self._recent if line[:SECOND] >= floor}
        self._recent.add(raw)

    def _since(self) -> str:
        """A time from which on all lines seen are in `_recent`; one second back, for two streams' lines may swap places."""
        if not self._newest:
            return ""
        moment = datetime.fromisoformat(self._newest).replace(microsecond=0) - timedelta(seconds=1)
        return moment.isoformat().replace("+00:00", "Z")


def last_lines(cluster: Cluster, pod: dict[str, Any], container: str, count: int) -> list[str]:
    """The end of a container's log; empty where it is gone."""
    try:
        text = b"".join(cluster.log(name_of(pod), container, follow=False, tail=count)).decode(errors="replace")
    except urllib3.exceptions.HTTPError:
        return []
    return [line.partition(" ")[2] for line in text.splitlines()]
