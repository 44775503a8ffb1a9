"""What every request passes first and last: its id, its line in the log, its place in the metrics. A bug stops here."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from x2l_cluster.api.problems import problem_of, respond
from x2l_cluster.metrics import REQUEST_S, REQUESTS

log: Final = logging.getLogger(__name__)
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Door:
    """Pure ASGI, since streams pass through it. Logs ids and figures, never text, headers or query strings."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.monotonic()
        status, sent_bytes = 0, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            elif message["type"] == "http.response.body":
                sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception as error:  # noqa: BLE001 - the last place to tell the caller anything
            problem = problem_of(scope, error)
            if status:  # half a response is out: only a broken connection still says that something is wrong
                raise RuntimeError(f"the response to request {request_id} broke off: {problem.code}") from None
            await respond(scope, problem)(scope, receive, counted)
        finally:
            seconds = time.monotonic() - began
            route = route_of(scope)
            REQUESTS.labels(route, str(status or 499)).inc()
            REQUEST_S.labels(route).observe(seconds)
            log.info(
                "request id=%s tenant=%s method=%s route=%s status=%d seconds=%.3f bytes=%d%s",
                request_id,
                scope["state"].get("tenant", "-"),
                scope["method"] if scope["method"].isalpha() else "?",
                route,
                status or 499,
                seconds,
                sent_bytes,
                "".join(f" {name}={_plain(value)}" for name, value in scope.get("path_params", {}).items()),
            )


def _plain(value: object) -> str:
    """An id as it is; what is none could end the line and begin another."""
    return str(value) if _ID.fullmatch(str(value)) else "?"


def route_of(scope: Scope) -> str:
    """The pattern of the address, so that ids make no labels; ``other`` where there is none."""
    route: Any = scope.get("route")
    return str(getattr(route, "path_format", "other"))
