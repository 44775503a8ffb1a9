"""How the HTTP face is served: one uvicorn, with bounds on what a connection may do before the guard sees it."""

from __future__ import annotations

import uvicorn
from starlette.types import ASGIApp

_GRACE_S = 10
"""What a stream or an upload gets to end by itself when the service stops."""


def server_of(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Server:
    """A server to ``run`` or to await ``serve`` of. Logs no addresses: they may hold what was asked, or a key."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            access_log=False,  # the door has its own
            log_config=None,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            h11_max_incomplete_event_size=32 << 10,
        )
    )
