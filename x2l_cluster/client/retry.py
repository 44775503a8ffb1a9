"""When to try again, and when not."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from x2l_cluster.client.call import Call
from x2l_cluster.errors import ConnectionLost, VideoError, X2LError

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_TURNED_AWAY = (429, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Waits twice as long each time, with jitter, or as long as the service says.

    Attributes:
        tries: in all; 1 never tries again.
        patience_s: a service that asks for more than this is not waited for.
    """

    tries: int = 5
    first_s: float = 0.25
    most_s: float = 8.0
    patience_s: float = 30.0
    jitter: Callable[[], float] = random.random

    def pause(self, call: Call[Any], error: X2LError | httpx.TransportError, tried: int) -> float | None:
        """Seconds until ``call``, tried so often, has a point again; None when it has none."""
        if tried >= self.tries or not self._has_a_point(call, error):
            return None
        asked = error.retry_after_s if isinstance(error, X2LError) else None
        if asked is not None:
            return asked if asked <= self.patience_s else None
        return float(min(self.most_s, self.first_s * 2 ** (tried - 1)) * (0.5 + self.jitter() / 2))

    def _has_a_point(self, call: Call[Any], error: X2LError | httpx.TransportError) -> bool:
        if isinstance(error, httpx.UnsupportedProtocol | VideoError):  # a file does not get better in seconds
            return False
        if isinstance(error, _NOT_SENT):
            return True
        if isinstance(error, X2LError):
            return error.retryable and (call.repeatable or type(error).http_status in _TURNED_AWAY)
        return call.repeatable


def lost(call: Call[Any], error: X2LError | httpx.TransportError) -> X2LError:
    """What a caller is told of an error that no more tries are made after."""
    if isinstance(error, X2LError):
        return error
    return ConnectionLost(f"{call.method} {call.path}: the service did not answer ({type(error).__name__}: {error})")
