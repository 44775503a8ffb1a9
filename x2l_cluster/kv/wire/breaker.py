"""Stops asking a server that does not answer, and starts again by itself."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from threading import Lock
from time import monotonic

from x2l_cluster.kv.wire.errors import Closed


class BreakerState(StrEnum):
    CLOSED = "closed"
    """All goes through."""
    OPEN = "open"
    """Nothing does, until the rest is over."""
    HALF_OPEN = "half_open"
    """One call is on its way to see whether the server is back."""


class Breaker:
    """Opens after so many failures in a row; after a rest one call is let through as a probe.

    ::

        closed ──failures in a row──► open ──rest over──► half open ──the probe works──► closed
                                       ▲                     └──it fails: a rest twice as long──┐
                                       └────────────────────────────────────────────────────────┘

    A probe that never reports (its thread died) is given up after as long as the rest was. Any call that works closes.

    Args:
        where: the server, for messages.
        failures: in a row, until it opens.
        rest_s: the first rest.
        longest_rest_s: where doubling it ends.
        clock: seconds that only run forward.
    """

    def __init__(
        self,
        where: str,
        *,
        failures: int = 3,
        rest_s: float = 0.5,
        longest_rest_s: float = 8.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._where = where
        self._limit = failures
        self._first_rest_s, self._longest_rest_s = rest_s, longest_rest_s
        self._clock = clock
        self._lock = Lock()
        self._state = BreakerState.CLOSED
        self._failures = 0
        self._rest_s = rest_s
        self._until = 0.0

    @property
    def state(self) -> BreakerState:
        return self._state

    def check(self) -> None:
        """Raises Closed unless a call may be made now; whoever may make it reports how it went."""
        if self._state is BreakerState.CLOSED:
            return
        with self._lock:
            if not self._failures:  # closed in this very moment
                return
            left = self._until - self._clock()
            if left > 0:
                raise Closed(
                    f"the server at {self._where} failed {self._failures} times in a row and is left alone for "
                    f"{left:.3g} s more: see whether it runs"
                )
            self._state = BreakerState.HALF_OPEN
            self._until = self._clock() + self._rest_s

    def worked(self) -> None:
        """The server answered, be it with an error."""
        if self._failures:
            with self._lock:
                self._state = BreakerState.CLOSED
                self._failures = 0
                self._rest_s = self._first_rest_s

    def failed(self) -> None:
        """The server could not be reached, was late, or spoke nonsense."""
        with self._lock:
            self._failures += 1
            if self._state is BreakerState.HALF_OPEN:
                self._rest_s = min(2 * self._rest_s, self._longest_rest_s)
            elif self._state is BreakerState.OPEN or self._failures < self._limit:
                return  # stragglers from before it opened change nothing
            self._state = BreakerState.OPEN
            self._until = self._clock() + self._rest_s
