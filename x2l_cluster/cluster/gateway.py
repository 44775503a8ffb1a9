"""The HTTP face as a Serve deployment: any number of replicas in front of the workers, none of which loads a model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from ray import serve

from x2l_cluster.api import KeyAccess, OpenAccess, create_app
from x2l_cluster.cluster.export import export_metrics
from x2l_cluster.cluster.front import front
from x2l_cluster.cluster.place import Place
from x2l_cluster.settings import Settings

NAME: Final = "gateway"
ONGOING: Final = 256
"""Requests a replica has at a time, streams included."""


class Gateway:
    """One replica. Whatever it has accepted is durable, so one that goes loses nothing but the streams it writes.

    Args:
        chosen: settings that win over those of the node's environment.
    """

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        export_metrics()
        place = Place.of(Settings.over(chosen))
        self._service = front(place)
        access = KeyAccess(self._service.state.tenants) if place.api_keys == "required" else OpenAccess()
        self._face = create_app(self._service, access)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._face

    async def __del__(self) -> None:
        """Called by Serve before the replica ends, after its requests have."""
        await asyncio.to_thread(self._service.close)


def gateway(chosen: Mapping[str, Any] | None = None, **options: Any) -> serve.Application:
    """The Serve application.

    Args:
        chosen: settings that win over those of the nodes' environment.
        options: of the deployment (``num_replicas``, ``ray_actor_options``, …).

    Raises InvalidInput for settings that cannot be.
    """
    Settings.over(chosen or {})
    deployment = serve.deployment(name=NAME, **({"max_ongoing_requests": ONGOING} | options))(serve.ingress()(Gateway))
    return deployment.bind(dict(chosen or {}))
