"""What both clients start from."""

from __future__ import annotations

import os
from typing import Any, Final

import httpx

from x2l_cluster import __version__
from x2l_cluster.client.call import Call
from x2l_cluster.errors import InvalidInput

DEFAULT_URL: Final = "http://127.0.0.1:8421"
URL: Final = "X2L_URL"
KEY: Final = "X2L_API_KEY"
TIMEOUT_S: Final = 60.0
"""Longer than a few heartbeats of a stream."""


def http_options(url: str | None, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Arguments of an httpx client; what is not given comes from ``X2L_URL`` and ``X2L_API_KEY``."""
    url = url or os.environ.get(URL) or DEFAULT_URL
    key = key or os.environ.get(KEY)
    try:
        known = httpx.URL(url).scheme in ("http", "https")
    except httpx.InvalidURL:
        known = False
    if not known:
        raise InvalidInput(f"the address of a service begins with http:// or https://, got {url!r}")
    headers = {"User-Agent": f"x2l_cluster/{__version__}"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(timeout_s, connect=min(5.0, timeout_s))}


def request_options(call: Call[Any], timeout: httpx.Timeout) -> dict[str, Any]:
    """Arguments of a request, without its body if that is a file."""
    options: dict[str, Any] = {"params": call.params, "headers": call.headers}
    if call.json is not None:
        options["json"] = call.json
    if call.wait_s:
        longer = (timeout.read or TIMEOUT_S) + call.wait_s
        options["timeout"] = httpx.Timeout(**timeout.as_dict() | {"read": longer})
    return options
