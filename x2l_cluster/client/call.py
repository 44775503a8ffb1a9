"""One call: what is sent, and how the response is read. Shared by the sync and the async client, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from x2l_cluster.errors import (
    ConnectionLost,
    Forbidden,
    NotFound,
    Overloaded,
    RateLimited,
    ServiceError,
    Unauthenticated,
    X2LError,
)
from x2l_cluster.messages import Problem

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Bytes sent, bytes in all."""

_PIECE: Final = 1 << 20
_ADAPTERS: Final[dict[Any, TypeAdapter[Any]]] = {}
_BY_STATUS: Final[Mapping[int, type[X2LError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    429: RateLimited,
    502: ServiceError,
    503: Overloaded,
    504: ServiceError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file that is read while it is sent."""

    path: Path
    size_bytes: int
    progress: Progress


def pieces_of(upload: Upload) -> Iterator[bytes]:
    """The file, from its beginning, as long as it was when the upload was made: a recording may grow meanwhile."""
    sent = 0
    with upload.path.open("rb") as file:
        while piece := file.read(min(_PIECE, upload.size_bytes - sent)):
            yield piece
            sent += len(piece)
            upload.progress(sent, upload.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A request, and what its response means.

    Attributes:
        repeatable: doing it twice is the same as once, so it may be tried again even if it may have been done.
        wait_s: how much longer than usual the response may take.
        answers_with: error statuses that are an answer here.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    upload: Upload | None = None
    repeatable: bool = True
    wait_s: float = 0.0
    answers_with: tuple[int, ...] = ()

    def failed(self, response: httpx.Response) -> bool:
        return response.is_error and response.status_code not in self.answers_with

    def read(self, response: httpx.Response) -> T:
        """The meaning of a response that did not fail. Raises ConnectionLost when it has none."""
        try:
            return self.parse(response)
        except (ValidationError, KeyError, ValueError) as error:
            raise ConnectionLost(f"{self.method} {self.path}: this is no response of our service: {error}") from error


def value(kind: Any, data: str | bytes) -> Any:
    """A value of :mod:`~x2l_cluster.messages` out of its JSON. Raises ValidationError."""
    adapter = _ADAPTERS.get(kind) or _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    return adapter.validate_json(data)


def as_a(kind: Any) -> Callable[[httpx.Response], Any]:
    return lambda response: value(kind, response.content)


def error_of(response: httpx.Response) -> X2LError:
    """What a response of 4xx or 5xx tells of: the error the service raised."""
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        with suppress(ValidationError):
            problem: Problem = value(Problem, response.content)
            return problem.error
    # What stands between us and the service, a proxy say, has answered.
    after = response.headers.get("retry-after", "")
    return _BY_STATUS.get(response.status_code, ConnectionLost)(
        f"{response.request.method} {response.request.url.path} was answered with status {response.status_code}",
        retry_after_s=float(after) if after.isdecimal() else None,
    )
