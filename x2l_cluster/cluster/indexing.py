"""Workers that do indexing jobs: one actor a device, each leasing from the durable queue by itself.

Nothing is true only in an actor's memory. One that is killed is started again by Ray and goes on leasing; its job goes
back into line when its lease runs out, and whoever takes it goes on behind the last sealed chunk. Tensors never leave
the actor but as blobs into the stores.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from typing import Any, Final

import ray

from x2l_cluster.cluster.place import Place
from x2l_cluster.service.runner import JobRunner

LOG: Final = logging.getLogger(__name__)
NAMESPACE: Final = "x2l"
_STOP_S: Final = 60.0
"""A worker that is told to stop has so long for the chunk it is at."""


class PrefillWorker:
    """The life of one actor: from the moment it is made it works on whatever is in line."""

    def __init__(self, place: Place, name: str, lease_s: float) -> None:
        self._engine = place.engine()
        self._state = place.opened_state(self._engine)
        self._runner = JobRunner(
            self._engine, self._state.jobs, name=f"{name}-{os.getpid()}", tenants=self._state.tenants, ttl_s=lease_s
        )
        self._thread = threading.Thread(target=self._runner.run, name=name, daemon=True)
        self._thread.start()

    def pid(self) -> int:
        """Of its process; answers once the model is loaded."""
        return os.getpid()

    def stop(self) -> None:
        """Puts the job it is at back into line, at its next chunk."""
        self._runner.stop()
        self._thread.join(_STOP_S)
        self._state.close()
        self._engine.close()


class PrefillFleet:
    """As many prefill workers as are wanted, by name, so that whoever looks after them may die and come back.

    Args:
        options: of the actors, as Ray takes them (``num_cpus``, ``num_gpus``, ``resources``).
        lease_s: a job whose worker was not heard of for so long is given to another.
    """

    def __init__(self, place: Place, *, lease_s: float = 30.0, **options: Any) -> None:
        self._place, self._lease_s, self._options = place, lease_s, options
        self.workers: list[Any] = []

    def resize(self, count: int) -> None:
        """Starts or stops workers until there are ``count``. Those that stop finish their chunk first."""
        while len(self.workers) < count:
            self.workers.append(self._start(f"x2l-prefill-{len(self.workers)}"))
        leaving = [self.workers.pop() for _ in range(len(self.workers) - count)]
        stopping = [worker.stop.remote() for worker in leaving]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=_STOP_S)
        for worker in leaving:
            with suppress(ray.exceptions.RayError):
                ray.kill(worker, no_restart=True)

    def _start(self, name: str) -> Any:
        return (
            ray.remote(PrefillWorker)
            .options(
                name=name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=2,
                **self._options,
            )
            .remote(self._place, name, self._lease_s)
        )
