"""A real Ray cluster of several nodes on this machine, for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # everything stays on the loopback
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def ray_cluster(workers: int = 2, cpus: int = 4, *, dashboard: bool = False, **resources: float) -> Iterator[Cluster]:
    """A head without work and so many worker nodes, connected; nothing of it is left afterwards.

    Args:
        dashboard: whether the head takes Serve configurations over HTTP.
        resources: of our own, of each worker node.
    """
    os.environ.update(_ENVIRONMENT)
    import ray

    cluster = _started(workers, cpus, dashboard, resources)
    try:
        ray.init(address=cluster.address, log_to_driver=False, namespace="x2l")
        yield cluster
    finally:
        from ray import serve

        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def _started(workers: int, cpus: int, dashboard: bool, resources: dict[str, float], attempts: int = 3) -> Cluster:
    """Ray gives a node 30 seconds to start, whatever else the machine is doing; then it is tried again."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=dashboard, dashboard_port=0)
        for _ in range(workers):
            cluster.add_node(num_cpus=cpus, resources=resources)
    except Exception:
        cluster.shutdown()
        if attempts == 1:
            raise
        return _started(workers, cpus, dashboard, resources, attempts - 1)
    return cluster
