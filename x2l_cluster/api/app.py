"""The HTTP face, put together: routes on a :class:`Service`, behind the door and the guard."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from x2l_cluster import __version__
from x2l_cluster.api import answers, health, jobs, openai, problems, videos
from x2l_cluster.api.auth import Authenticator, OpenAccess
from x2l_cluster.api.door import Door
from x2l_cluster.api.guard import Guard
from x2l_cluster.api.settings import ApiSettings
from x2l_cluster.service.base import Service


def create_app(service: Service, auth: Authenticator | None = None, settings: ApiSettings | None = None) -> FastAPI:
    """An ASGI application over ``service``, which stays the caller's to close.

    Args:
        auth: keys and bounds; by default everybody is the tenant ``local``.
    """
    app = FastAPI(
        title="x2l_cluster",
        version=__version__,
        description="Index a long video once, then ask any number of questions about it.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.state.auth = auth = auth or OpenAccess()
    app.state.settings = settings = settings or ApiSettings()
    problems.install(app)
    for router in (health.router, videos.router, jobs.router, answers.router, openai.router):
        app.include_router(router)
    app.add_middleware(Guard, auth=auth, settings=settings)
    app.add_middleware(Door)  # outermost
    schema = app.openapi

    def openapi() -> dict[str, Any]:
        return problems.document(schema())

    app.openapi = openapi  # type: ignore[method-assign]
    return app
