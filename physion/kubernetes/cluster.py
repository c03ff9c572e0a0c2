"""The part of the Kubernetes API that physion needs: plain JSON, patience, and errors that say what to do."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3

from physion.errors import ConfigError, PhysionError, TransientError
from physion.job import Stop
from physion.progress import say

try:
    from kubernetes import client, config
except ImportError as error:
    raise ConfigError("the Kubernetes client is not installed: pip install kubernetes") from error

GROUPS = {
    "pods": "/api/v1",
    "configmaps": "/api/v1",
    "events": "/api/v1",
    "secrets": "/api/v1",
    "pytorchjobs": "/apis/kubeflow.org/v1",
    "trainjobs": "/apis/trainer.kubeflow.org/v1alpha1",
    "trainingruntimes": "/apis/trainer.kubeflow.org/v1alpha1",
    "workflows": "/apis/argoproj.io/v1alpha1",
    "workflowtemplates": "/apis/argoproj.io/v1alpha1",
    "workloads": "/apis/kueue.x-k8s.io/v1beta2",
}
INSTALLED_BY = {
    "kubeflow.org": "the Kubeflow training operator",
    "trainer.kubeflow.org": "Kubeflow Trainer",
    "argoproj.io": "Argo Workflows",
    "kueue.x-k8s.io": "Kueue 0.15 or newer",
}
PATIENCE = 600.0  # seconds an API server may be away before a command that follows something gives up
LONGEST_PAUSE = 10.0
TIMEOUT = urllib3.Timeout(connect=5, read=30)
# A silent log is asked for again: a connection whose other end is gone looks just the same.
LOG_TIMEOUT = urllib3.Timeout(connect=5, read=60)
DEFAULT_NAMESPACE = "physion"
IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Conflict(TransientError):
    """The object is there already, or is not what it was when it was read: look again."""


class Cluster:
    """One namespace of a cluster, found as kubectl finds it (KUBECONFIG), or from inside a pod.

    patience: seconds that an API server which does not answer, or answers 429 or 5xx, is asked again. `stop` ends the waiting.
    """

    def __init__(self, namespace: str | None = None, patience: float = 0.0, stop: Stop | None = None) -> None:
        self._api, own = _connect()
        self.namespace = namespace or own or DEFAULT_NAMESPACE
        self.server = self._api.configuration.host
        self.patience = patience
        self.stop = stop or Stop()
        self._silent = False

    def impatient(self) -> Cluster:
        """The same for who has a better use for a failure than to wait."""
        other = copy.copy(self)
        other.patience, other.stop, other._silent = 0.0, Stop(), False
        return other

    def serves(self, kind: str) -> bool:
        """Whether the cluster knows objects of this kind."""
        found = self._ask("GET", kind, path=GROUPS[kind])
        return any(each["name"] == kind for each in (found or {"resources": []})["resources"])

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object, or None where there is none of that name."""
        return self._ask("GET", kind, name)

    def listed(self, kind: str, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        """The objects that match these selectors."""
        query = [("labelSelector", labels), ("fieldSelector", fields)]
        found = self._ask("GET", kind, query=[pair for pair in query if pair[1]])
        return list((found or {})["items"])

    def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object. Raises Conflict when there is one of its name."""
        made = self._ask("POST", kind, body=body)
        if made is None:
            raise ConfigError(f"there is no namespace {self.namespace}: kubectl apply -k k8s/overlays/... makes it")
        return made

    def patch(self, kind: str, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Merge into an object. Raises Conflict when its resourceVersion is not that of the body any more."""
        return self._ask("PATCH", kind, name, body=body)

    def delete(self, kind: str, found: dict[str, Any], grace: int | None = None, propagation: str = "Background") -> None:
        """Delete just this object, what it owns after it, or before (Foreground).

        No error when it is gone or another has its name.
        """
        options: dict[str, Any] = {"preconditions": {"uid": found["metadata"]["uid"]}, "propagationPolicy": propagation}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            self._ask("DELETE", kind, found["metadata"]["name"], body=options)
        except Conflict:
            return

    def log(self, pod: str, container: str, *, follow: bool, since: str = "", tail: int | None = None) -> Iterator[bytes]:
        """The chunks of a container's log, each line with its time; no patience: raises HTTPError when the stream breaks."""
        query = [("container", container), ("follow", str(follow).lower()), ("timestamps", "true"), ("sinceTime", since)]
        query.append(("tailLines", "" if tail is None else str(tail)))
        answer = self._send("GET", self._path("pods", f"{pod}/log"), [pair for pair in query if pair[1]], None, LOG_TIMEOUT)
        try:
            if answer.status >= 400:
                raise urllib3.exceptions.HTTPError(f"{answer.status}: {_message(answer.read())}")
            yield from answer.stream(2**16)
        finally:
            answer.close()  # what is left of a stream is of no use to the next request

    def pause(self, seconds: float) -> None:
        """Sleep, unless asked to stop."""
        until = time.monotonic() + seconds
        while True:
            self.stop.check()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.2))

    def _ask(
        self,
        method: str,
        kind: str,
        name: str = "",
        query: list[tuple[str, str]] | None = None,
        body: Any = None,
        path: str | None = None,
    ) -> dict[str, Any] | None:
        """What the API server answers; None for an object, or with `path` anything, that is not there."""
        started, pause = time.monotonic(), 0.5
        while True:
            try:
                answer = self._send(method, path or self._path(kind, name), query or [], body, TIMEOUT)
                status, text = answer.status, answer.read()
                answer.release_conn()
                trouble = f"it answers {status}: {_message(text)}"
            except urllib3.exceptions.HTTPError as error:
                status, trouble = 0, " ".join(str(error).rpartition(": ")[2].split())
            except client.ApiException as error:
                raise ConfigError(f"{self.server}: no secure connection: {' '.join(str(error.reason).split())}") from error
            if 0 < status < 500 and status != 429:
                if self._silent:
                    say("the Kubernetes API answers again")
                self._silent = False
                if status < 400:
                    found: dict[str, Any] = json.loads(text)
                    return found
                if status == 404 and (path or (json_or_none(text) and "could not find the requested" not in trouble)):
                    return None
                raise self._refused(status, text, kind, name)
            if time.monotonic() - started >= self.patience:
                tried = f" after {self.patience / 60:.0f} minutes" if self.patience else ""
                raise TransientError(f"the Kubernetes API at {self.server} cannot be used{tried}: {trouble}")
            if not self._silent:
                say(f"the Kubernetes API at {self.server} does not answer as it should ({trouble}); trying again")
            self._silent = True
            self.pause(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _path(self, kind: str, name: str) -> str:
        return f"{GROUPS[kind]}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def _send(
        self, method: str, path: str, query: list[tuple[str, str]], body: Any, timeout: urllib3.Timeout
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        _, url, headers, _, _ = self._api.param_serialize(
            method, path, query_params=query, header_params=headers, auth_settings=["BearerToken"]
        )
        answer: urllib3.BaseHTTPResponse = self._api.rest_client.pool_manager.request(
            method,
            url,
            headers=headers,
            body=None if body is None else json.dumps(body).encode(),
            timeout=timeout,
            preload_content=False,
        )
        return answer

    def _refused(self, status: int, text: bytes, kind: str, name: str) -> PhysionError:
        message = _message(text)
        if status == 409:
            return Conflict(message)
        if status == 404:
            group = GROUPS[kind].split("/")[2]
            return ConfigError(f"{INSTALLED_BY.get(group, group)} is not installed in this cluster: it knows no {kind}.{group}")
        if status == 401:
            return ConfigError(f"{self.server} does not know who you are ({message}): renew the credentials of your kubeconfig")
        denied = re.search(r'User "([^"]*)" cannot (\w+) resource "([^"]*)"', message)
        if denied:
            who, verb, resource = denied.groups()
            return ConfigError(
                f"{who} may not {verb} {resource} in namespace {self.namespace}: run it as the service account that may "
                "(its Roles are in k8s/base), or have its Role extended"
            )
        return ConfigError(f"the cluster refuses {' '.join([kind, name]).strip()}: {message}")


def _connect() -> tuple[Any, str | None]:
    """A client, and the namespace that goes with it."""
    settings = client.Configuration()
    # Named here: the library's own default is what KUBECONFIG was when it was imported.
    files = os.environ.get("KUBECONFIG") or "~/.kube/config"
    try:
        config.load_kube_config(files, client_configuration=settings)
        context = config.list_kube_config_contexts(files)[1]["context"]
        namespace = context.get("namespace")
    except config.ConfigException as error:
        if "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise ConfigError(f"no cluster to talk to: {error}; set KUBECONFIG, or try kubectl get pods") from error
        config.load_incluster_config(client_configuration=settings)
        namespace = IN_POD.read_text(encoding="utf-8")
    settings.retries = False  # patience is ours
    return client.ApiClient(settings), namespace


def json_or_none(text: bytes) -> Any:
    """What a JSON text says, or None where it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _message(text: bytes) -> str:
    """What an answer says: the message of a Kubernetes Status, else its text."""
    status = json_or_none(text)
    return str(status["message"] if isinstance(status, dict) and "message" in status else text.decode(errors="replace")).strip()
