"""Who looks after the prefill workers, as a Serve deployment: one replica with a supervisor in it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from ray import serve

from x2l_cluster.cluster.export import export_metrics
from x2l_cluster.cluster.indexing import RESOURCE, Fleet
from x2l_cluster.cluster.supervisor import Supervisor
from x2l_cluster.errors import ServiceError
from x2l_cluster.metrics import LIVE
from x2l_cluster.settings import Settings
from x2l_cluster.state.open import State

NAME: Final = "indexer"


class Indexer:
    """One supervisor and its view of the queue; the model is loaded only where the workers are."""

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        settings = Settings.over(chosen)  # of the node it runs on: another one built the application
        place = settings.state or settings.store
        self._state = State.open(place)
        LIVE.add(self._state.jobs)
        export_metrics()
        fleet = Fleet(
            place,
            chosen,
            num_cpus=settings.prefill_cpus,
            num_gpus=settings.prefill_gpus,
            resources={RESOURCE: 1},
        )
        self._supervisor = Supervisor(
            fleet,
            self._state.jobs,
            least=settings.prefill_min,
            most=settings.prefill_max,
            idle_s=settings.prefill_idle_s,
        )
        self._supervisor.start()

    def check_health(self) -> None:
        """Serve asks now and then, and replaces a replica that raises."""
        if not self._supervisor.healthy:
            raise ServiceError("nobody looks after the prefill workers any more")

    async def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    async def standing(self) -> dict[str, int]:
        """See :class:`~x2l_cluster.cluster.supervisor.Standing`."""
        return asdict(self._supervisor.standing)

    async def __del__(self) -> None:
        """Called by Serve before the replica ends: the workers go on for the next one, if there is to be one."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if _application_goes():
            self._supervisor.disband()
        else:
            self._supervisor.stop()
        self._state.close()


def _application_goes() -> bool:
    application = serve.status().applications.get(NAME)
    return application is None or application.status.value == "DELETING"


def indexer(chosen: Mapping[str, Any] | None = None, **options: Any) -> serve.Application:
    """The Serve application.

    Args:
        chosen: settings that win over those of the nodes' environment.
        options: of the deployment (``ray_actor_options``, …).

    Raises InvalidInput for settings that cannot be.
    """
    Settings.over(chosen or {})
    return serve.deployment(Indexer, name=NAME, num_replicas=1, **options).bind(dict(chosen or {}))
