"""Workers that do indexing jobs: one actor a device, each leasing from the durable queue by itself.

Nothing is true only in an actor's memory. One that is killed is started again by Ray and goes on leasing; its job goes
back into line when its lease runs out, and whoever takes it goes on behind the last sealed chunk. Tensors never leave
the actor but as blobs into the stores. Which workers there are, Ray knows by their names
(:class:`Fleet`); how many there should be is for :mod:`~x2l_cluster.cluster.supervisor` to say.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import ray
from ray.exceptions import RayError

from x2l_cluster.cluster.export import export_metrics
from x2l_cluster.cluster.place import Place
from x2l_cluster.service.runner import JobRunner
from x2l_cluster.settings import Settings

LOG: Final = logging.getLogger(__name__)
NAMESPACE: Final = "x2l"
RESOURCE: Final = "prefill"
"""Of nodes for this work; each worker takes one, so that Ray's autoscaler adds nodes of the right kind."""
_STOP_S: Final = 90.0
"""A worker that is told to leave has so long for the chunk it is at."""
_LOOK_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How a worker stands. ``leaving``: it takes no job any more, and ends with the chunk it is at."""

    pid: int
    node: str
    busy: bool
    leaving: bool


class PrefillWorker:
    """The life of one actor: from the moment it is made it works on whatever is in line.

    It makes no difference to it whether anybody looks after it, but for one thing: once nobody has for ``alone_s`` and
    there is no work, it leaves, so that no worker outlives its service for long.

    Args:
        chosen: settings that win over those of the node's environment.
    """

    def __init__(self, name: str, chosen: Mapping[str, Any], alone_s: float) -> None:
        export_metrics()
        settings = Settings.over(chosen)
        place = Place.of(settings)
        self._engine = place.engine()
        self._state = place.opened_state(self._engine.stores)
        self._runner = JobRunner(
            self._engine,
            self._state.jobs,
            name=f"{name}-{os.getpid()}",
            fetcher=place.fetcher(),
            roots=place.roots,
            tenants=self._state.tenants,
            ttl_s=settings.lease_s,
        )
        self._name, self._alone_s, self._seen_s = name, alone_s, time.monotonic()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._runner.run, name=name, daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True).start()

    def look(self) -> Told:
        """Answers once the model is loaded."""
        self._seen_s = time.monotonic()
        return Told(
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id(),
            busy=self._runner.busy,
            leaving=self._leaving.is_set(),
        )

    def leave(self) -> None:
        """Puts the job it is at back into line, at its next chunk, and ends for good: Ray does not start it again."""
        if self._leaving.is_set():
            return
        self._leaving.set()
        self._runner.stop()
        self._thread.join(_STOP_S)
        self._state.close()
        self._engine.close()
        # Not by exit_actor: of a call that is tried again Ray would take that for a crash.
        ray.kill(ray.get_actor(self._name, namespace=NAMESPACE), no_restart=True)

    def _watch(self) -> None:
        while not self._leaving.wait(_LOOK_S):
            alone = time.monotonic() - self._seen_s > self._alone_s
            if alone and not self._runner.busy:
                LOG.warning("nobody has asked for this worker for %g s, and it has no work: it leaves", self._alone_s)
                self.leave()


class Fleet:
    """The prefill workers of one service, by name: whoever looks after them may die, and the next one finds them.

    A name says which service a worker belongs to, what it was started with, and its number.

    Args:
        service: what tells this service from others in the cluster, for example the URL of its state.
        chosen: settings of the workers that win over those of their nodes' environment.
        alone_s: a worker without work that nobody has asked for so long leaves by itself.
        options: of the actors, as Ray takes them (``num_cpus``, ``num_gpus``, ``resources``).
    """

    def __init__(self, service: str, chosen: Mapping[str, Any], *, alone_s: float = 300.0, **options: Any) -> None:
        self._chosen, self._alone_s, self._options = dict(chosen), alone_s, options
        self._family = f"x2l-prefill-{_digest(service)}-"
        self._prefix = f"{self._family}{_digest(json.dumps([chosen, alone_s, options], sort_keys=True, default=str))}-"

    def names(self) -> tuple[list[str], list[str]]:
        """Workers that are here, perhaps only just being started, and those that were started with something else."""
        known = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        family = sorted(name for name in known if name.startswith(self._family))
        ours = [name for name in family if name.startswith(self._prefix)]
        return ours, [name for name in family if name not in ours]

    def draining(self) -> set[str]:
        """Nodes that take no new work and will be gone in a while."""
        return set(ray._private.state.state.get_draining_nodes())  # Ray has no public way to ask

    def worker(self, name: str) -> Any:
        """The handle of an actor. Raises ValueError when it is gone."""
        return ray.get_actor(name, namespace=NAMESPACE)

    def start(self, count: int) -> list[str]:
        """Starts so many more, and does not wait for them: where there is no room yet, Ray makes some or waits."""
        ours, _ = self.names()
        free = (name for number in range(len(ours) + count) if (name := f"{self._prefix}{number}") not in ours)
        names = [name for name, _ in zip(free, range(count), strict=False)]
        for name in names:
            (
                ray.remote(PrefillWorker)
                .options(
                    name=name,
                    namespace=NAMESPACE,
                    get_if_exists=True,
                    lifetime="detached",
                    max_restarts=-1,
                    max_task_retries=-1,
                    max_concurrency=4,  # it can be asked while it leaves
                    **self._options,
                )
                .remote(name, self._chosen, self._alone_s)
            )
        return names

    def send_home(self, name: str) -> None:
        """Tells a worker to leave, and does not wait for it."""
        with suppress(ValueError, RayError):
            self.worker(name).leave.remote()

    def give_up(self, name: str) -> None:
        """Ends a worker at once: one that has not begun to live, or does not answer any more."""
        with suppress(ValueError, RayError):
            ray.kill(self.worker(name), no_restart=True)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()
