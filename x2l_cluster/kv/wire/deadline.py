"""When a fetch must have ended."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

from x2l_cluster.kv.wire.errors import Late

_MIB = 1 << 20


class Deadline:
    """So long from now, and longer the more bytes are to be moved; every step of a fetch runs under what is left.

    Args:
        base_s: time for the fetch as such: waiting for its turn, connecting, the server's work.
        per_mib_s: time for every MiB on top.
        most_s: no more than this, whatever there is to move.
        clock: seconds that only run forward.
    """

    __slots__ = ("_at", "_base_s", "_clock", "_most_s", "_per_mib_s", "_start")

    def __init__(
        self,
        base_s: float,
        per_mib_s: float = 0.0,
        clock: Callable[[], float] = monotonic,
        *,
        most_s: float | None = None,
    ) -> None:
        self._base_s, self._per_mib_s, self._clock = base_s, per_mib_s, clock
        self._most_s = math.inf if most_s is None else most_s
        self._start = clock()
        self._at = self._start + min(base_s, self._most_s)

    def covers(self, nbytes: int) -> None:
        """From now on the deadline is that of so many bytes."""
        self._at = self._start + min(self._base_s + self._per_mib_s * nbytes / _MIB, self._most_s)

    def left_s(self) -> float:
        """Seconds left, above 0. Raises Late."""
        left = self._at - self._clock()
        if left <= 0:
            raise Late(f"not done {self._at - self._start:.3g} s after it began: the server is stalled or overloaded")
        return left

    @property
    def is_half_left(self) -> bool:
        """Whether less than half of the time is gone."""
        return 2 * self._clock() < self._start + self._at
