"""Turns away at the door who has no key, and what is too large or too slow, before anything is read or remembered."""

from __future__ import annotations

import asyncio
import re
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from x2l_cluster.api.auth import Authenticator
from x2l_cluster.api.problems import respond
from x2l_cluster.api.settings import ApiSettings
from x2l_cluster.errors import BodyTooLarge, Forbidden, SourceTooLarge, Unauthenticated, UploadBroken, X2LError
from x2l_cluster.messages import Problem

OPEN: Final = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json"})
"""Addresses without a key: they tell nothing of any tenant."""
UPLOADS: Final = re.compile(r"/v1/videos(/[^/]+:append)?")
"""Addresses that take files."""


class Guard:
    """Puts the tenant into the request's state and bounds its body."""

    def __init__(self, app: ASGIApp, *, auth: Authenticator, settings: ApiSettings) -> None:
        self._app, self._auth, self._settings = app, auth, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_origin(headers)
            if scope["path"] not in OPEN:
                scope["state"]["tenant"] = await self._auth.tenant(bearer(headers))
            bounded = self._bounded(scope, headers, receive)
        except X2LError as error:
            await respond(scope, Problem.of(error))(scope, receive, send)
            return
        await self._app(scope, bounded, send)

    def _check_origin(self, headers: Headers) -> None:
        """Refuses what a page of somebody else's makes a browser send. Raises Forbidden.

        Such a page reaches a service on a laptop, where no key is asked for: across sites, which browsers say, or under
        a name of its own that it has made point here (DNS rebinding), which only the name tells.
        """
        if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
            raise Forbidden("requests from pages of other sites are not taken")
        if self._settings.hosts and not self._is_ours(headers.get("host", "")):
            raise Forbidden("the service is not called by this name; see X2L_API_HOSTS")

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        try:
            ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._settings.hosts
        return True  # nobody makes an address point elsewhere

    def _bounded(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """``receive``, which raises when more comes than may, or nothing for too long."""
        upload = UPLOADS.fullmatch(scope["path"]) is not None and is_upload(headers)
        most = self._settings.max_upload_bytes if upload else self._settings.max_body_bytes
        too_large = (SourceTooLarge if upload else BodyTooLarge)(f"at most {most} bytes are taken; send fewer")
        if announced_bytes(headers) > most:
            raise too_large
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._settings.upload_s
        got, whole = 0, False

        async def bounded() -> Message:
            nonlocal got, whole
            if whole:  # from now on only the client's leaving is waited for
                return await receive()
            try:
                async with asyncio.timeout_at(min(ends_at, loop.time() + self._settings.body_idle_s)):
                    message = await receive()
            except TimeoutError:
                raise UploadBroken(f"the request's body stopped after {got} bytes; send it again") from None
            got += len(message.get("body", b""))
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            if got > most:
                raise too_large
            return message

        return bounded


def is_upload(headers: Headers) -> bool:
    """Whether the body is a file, or a form with one."""
    kind = headers.get("content-type", "").lower()
    return kind.startswith(("multipart/form-data", "application/octet-stream", "video/"))


def announced_bytes(headers: Headers) -> int:
    """How long the body is said to be; 0 when nothing is said."""
    said = headers.get("content-length", "0")
    return int(said[:20]) if said.isdecimal() else 0


def bearer(headers: Headers) -> str | None:
    """The key of a request. Raises Unauthenticated for credentials of another kind."""
    given = headers.get("authorization")
    if given is None:
        return None
    scheme, _, key = given.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("the Authorization header should be 'Bearer KEY'")
    return key.strip()
