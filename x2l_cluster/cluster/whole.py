"""The whole service on Ray from one process: the front in this process, those who do the work in the cluster."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import ray
from ray import serve

from x2l_cluster.cluster.answering import NAME as ANSWERER
from x2l_cluster.cluster.answering import answerer
from x2l_cluster.cluster.front import front
from x2l_cluster.cluster.indexing import NAMESPACE, RESOURCE
from x2l_cluster.cluster.place import Place
from x2l_cluster.cluster.supervised import NAME as INDEXER
from x2l_cluster.cluster.supervised import indexer
from x2l_cluster.errors import InvalidInput, ServiceError
from x2l_cluster.service.front import FrontService
from x2l_cluster.settings import Settings

_LOCAL: Final = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Of a cluster that is ours alone, on the loopback."""


@contextmanager
def on_ray(chosen: Mapping[str, Any], *, address: str | None = None, answerers: int = 1) -> Iterator[FrontService]:
    """A service whose jobs and questions go to workers of a cluster; when it ends, they are sent home.

    Args:
        chosen: settings that win over the environment's, of this process and of every node.
        address: of a cluster that runs; by default one is started on this machine, and ended again. Its nodes must
            reach the stores by the same URLs, and offer the resource ``prefill`` where videos may be indexed.
        answerers: replicas that answer.

    Raises InvalidInput for an address where no cluster is, ServiceError when the workers do not come up; and as
    :meth:`Place.stores`.
    """
    place = Place.of(settings := Settings.over(chosen))
    with ExitStack() as stack:
        stack.enter_context(_cluster(address, settings, answerers))
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        for name, app in (
            (INDEXER, indexer(chosen, ray_actor_options={"num_cpus": 0})),
            (ANSWERER, answerer(chosen, num_replicas=answerers, ray_actor_options={"num_cpus": 1})),
        ):
            stack.callback(serve.delete, name)
            try:
                serve.run(app, name=name, route_prefix=None)
            except RuntimeError as error:
                raise ServiceError(f"the {name} does not come up ({error}); see Ray's logs") from error
        yield stack.enter_context(front(place))


@contextmanager
def _cluster(address: str | None, settings: Settings, answerers: int) -> Iterator[None]:
    """Connected to a cluster, with what this process does on signals as it was: Ray would end it at once."""
    told: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.WARNING}
    if address is None:
        os.environ.update(_LOCAL)
        cpus = math.ceil(settings.prefill_max * settings.prefill_cpus) + answerers
        told |= {"num_cpus": cpus, "resources": {RESOURCE: settings.prefill_max}, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", **told)
    except (ConnectionError, ValueError) as error:
        raise InvalidInput(f"no Ray cluster is at {address}: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        if address is None:
            serve.shutdown()
        ray.shutdown()
