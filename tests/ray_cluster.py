"""A real Ray cluster of several nodes on this machine, for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # everything stays on the loopback
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine is no failure
}


@contextmanager
def ray_cluster(workers: int = 2, cpus: int = 4) -> Iterator[object]:
    """A head without work and so many worker nodes, connected; nothing of it is left afterwards."""
    os.environ.update(_ENVIRONMENT)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=cpus)
        ray.init(address=cluster.address, log_to_driver=False, namespace="x2l")
        yield cluster
    finally:
        from ray import serve

        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
