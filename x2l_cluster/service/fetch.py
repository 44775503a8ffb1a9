"""Fetching a video that a user names by URL: from public places only, within bounds, into the source store."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import unquote

import httpx

from x2l_cluster.errors import Cancelled, FetchFailed, NotAVideo, SourceRefused, SourceTooLarge
from x2l_cluster.service.addresses import Gate
from x2l_cluster.types import SourceRef
from x2l_cluster.video import SourceStore

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MOST_REDIRECTS: Final = 5
_SILENCE_S: Final = 20.0
"""How long a server may say nothing."""
_TEXT: Final = re.compile(rb"\s*(<|\{|\[|#EXTM3U)")


class Fetcher:
    """Follows http and https URLs. Each hop is resolved once, checked, and connected to by its checked address.

    Args:
        max_bytes: of one video.
        within_s: what one fetch may take in all.
    """

    def __init__(
        self,
        gate: Gate | None = None,
        *,
        max_bytes: int = 16 << 30,
        within_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gate = gate or Gate()
        self._max_bytes, self._within_s = max_bytes, within_s
        self._clock = clock

    def fetch(
        self, url: str, tenant: str, sources: SourceStore, *, stopped: Callable[[], bool] = lambda: False
    ) -> SourceRef:
        """Keeps what the URL delivers.

        Raises:
            SourceRefused: it leads to a place that is not public.
            SourceTooLarge, NotAVideo: what it delivers.
            FetchFailed: it does not deliver, or too slowly.
            Cancelled: ``stopped`` said so.
        """
        target = check_url(url)
        end = self._clock() + self._within_s
        with httpx.Client(trust_env=False, timeout=_SILENCE_S) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                with self._open(client, target) as response:
                    if response.status_code in _REDIRECTS:
                        target = check_url(str(target.join(response.headers.get("location", ""))))
                        continue
                    body = _Body(self._checked(response, target), self._max_bytes, end, self._clock, stopped)
                    return sources.put(tenant, body, name=_name(target))  # type: ignore[arg-type]
        raise FetchFailed(f"{_shown(target)} redirects more than {_MOST_REDIRECTS} times; give the final URL")

    @contextmanager
    def _open(self, client: httpx.Client, url: httpx.URL) -> Iterator[httpx.Response]:
        port = url.port or (443 if url.scheme == "https" else 80)
        address = self._gate.address(url.host, port)
        # The request goes to the address; the name is said in the Host header and checked in the certificate.
        request = client.build_request(
            "GET",
            url.copy_with(host=address, fragment=None),
            headers={"Host": url.netloc.decode(), "Accept-Encoding": "identity"},
            extensions={"sni_hostname": url.host},
        )
        try:
            response = client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise FetchFailed(f"{_shown(url)} does not answer ({type(error).__name__}); try again later") from error
        try:
            yield response
        finally:
            response.close()

    def _checked(self, response: httpx.Response, url: httpx.URL) -> httpx.Response:
        if response.status_code != httpx.codes.OK:
            raise FetchFailed(f"{_shown(url)} answers with status {response.status_code}; check the URL")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("text/") or kind in ("application/json", "application/xhtml+xml", "application/xml"):
            raise NotAVideo(f"{_shown(url)} delivers {kind}, not a video; give the URL of the file itself")
        if (length := response.headers.get("content-length", "")).isdigit():
            self._check_size(int(length))
        return response

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise SourceTooLarge(f"the URL delivers {size} bytes; at most {self._max_bytes} are taken")


class _Body:
    """A response as the stream a source store reads."""

    def __init__(
        self,
        response: httpx.Response,
        max_bytes: int,
        end: float,
        clock: Callable[[], float],
        stopped: Callable[[], bool],
    ) -> None:
        self._pieces = response.iter_bytes()
        self._max_bytes, self._end, self._clock, self._stopped = max_bytes, end, clock, stopped
        self._size = 0

    def read(self, _: int = -1) -> bytes:
        """The next piece, of any size; empty at the end."""
        if self._stopped():
            raise Cancelled("the fetch was cancelled")
        if self._clock() > self._end:
            raise FetchFailed("the URL delivers too slowly and was given up; try again later, or upload the file")
        try:
            piece = next((piece for piece in self._pieces if piece), b"")
        except httpx.HTTPError as error:
            raise FetchFailed(f"the connection broke after {self._size} bytes ({type(error).__name__})") from error
        if self._size == 0 and _TEXT.match(piece):
            raise NotAVideo("the URL delivers text, not a video; give the URL of the file itself")
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise SourceTooLarge(f"the URL delivers more than {self._max_bytes} bytes, the most that are taken")
        return piece


def check_url(url: str) -> httpx.URL:
    """Raises SourceRefused for what no fetch is tried of."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise SourceRefused(f"this is no URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SourceRefused("only http and https URLs are fetched; upload the file instead")
    if parsed.userinfo:
        raise SourceRefused("a URL with a name and a password in it is not fetched; upload the file instead")
    return parsed


def _name(url: httpx.URL) -> str | None:
    last = unquote(url.path.rpartition("/")[2])
    return "".join(c for c in last if c.isprintable())[:100] or None


def _shown(url: httpx.URL) -> str:
    """Without the query, which may hold a signature."""
    return f"{url.scheme}://{url.host}{url.path}"
