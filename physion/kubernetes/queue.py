"""What Kueue says of the pods and jobs that wait in its queues."""

from __future__ import annotations

from typing import Any

from physion.errors import ConfigError
from physion.kubernetes.cluster import Cluster

QUEUED = "it waits to be admitted by its queue"
OF_JOB = "kueue.x-k8s.io/job-uid"  # label of the Workload of a pod or job


def why_queued(cluster: Cluster, thing: dict[str, Any]) -> str:
    """Why a pod or job has not been admitted, in the words of its Workload's condition QuotaReserved.

    Without them where there are none, or where whoever asks may not see Workloads.
    """
    try:
        workloads = cluster.listed("workloads", f"{OF_JOB}={thing['metadata']['uid']}")
    except ConfigError:
        return QUEUED
    conditions = [each for load in workloads for each in load.get("status", {}).get("conditions", [])]
    said = [each["message"] for each in conditions if each["type"] == "QuotaReserved" and each["status"] != "True"]
    return f"{QUEUED} ({'; '.join(said)})" if said else QUEUED
