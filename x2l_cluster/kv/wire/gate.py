"""Who may move bytes now: a cap on transfers and on bytes in flight, by priority."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event, Lock

from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.store import Priority
from x2l_cluster.kv.wire.deadline import Deadline
from x2l_cluster.kv.wire.errors import Late

PATIENCE = 64
"""How often the one who waits longest may be overtaken: enough for every answer, not enough to starve an index."""


@dataclass(slots=True, eq=False)
class _Waiting:
    nbytes: int
    priority: Priority
    overtaken: int = 0
    admitted: bool = False
    called: Event = field(default_factory=Event)


class Gate:
    """Admits transfers while there are fewer than ``transfers`` and, together, at most ``cap_bytes``.

    Larger than the cap is admitted alone. Nobody slips past a more important one that is waiting for more room than is
    left, and nobody is overtaken more than ``PATIENCE`` times.
    """

    def __init__(self, *, transfers: int, cap_bytes: int) -> None:
        if min(transfers, cap_bytes) < 1:
            raise InvalidInput(f"at least one transfer and one byte in flight, got {transfers} and {cap_bytes}")
        self._transfers, self._cap = transfers, cap_bytes
        self._lock = Lock()
        self._waiting: list[_Waiting] = []
        self._running = 0
        self._in_flight = 0

    @property
    def in_flight_bytes(self) -> int:
        return self._in_flight

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, nbytes: int, priority: Priority, deadline: Deadline) -> None:
        """Waits for its turn; whoever returns from here calls :meth:`leave`. Raises Late."""
        with self._lock:
            if not self._waiting and self._fits(nbytes):
                self._take(nbytes)
                return
            mine = _Waiting(nbytes, priority)
            self._waiting.append(mine)
            self._call()
        try:
            in_time = mine.called.wait(deadline.left_s())
        except BaseException:
            self._withdraw(mine)
            raise
        if not in_time:
            self._withdraw(mine)
            raise Late(
                f"{nbytes} bytes ({priority.name.lower()}) had no turn before their deadline: {self._in_flight} bytes "
                "are in flight; raise the cap, the connections or the deadline"
            )

    def leave(self, nbytes: int) -> None:
        """The transfer is over, whatever came of it."""
        with self._lock:
            self._running -= 1
            self._in_flight -= nbytes
            if self._waiting:
                self._call()

    def _withdraw(self, mine: _Waiting) -> None:
        with self._lock:
            if mine.admitted:  # in this very moment
                self._running -= 1
                self._in_flight -= mine.nbytes
            else:
                self._waiting.remove(mine)
            self._call()

    def _call(self) -> None:
        while self._waiting:
            longest = self._waiting[0]
            first = longest if longest.overtaken >= PATIENCE else min(self._waiting, key=lambda w: w.priority)
            if not self._fits(first.nbytes):
                return
            if first is not longest:
                longest.overtaken += 1
            self._waiting.remove(first)
            self._take(first.nbytes)
            first.admitted = True
            first.called.set()

    def _fits(self, nbytes: int) -> bool:
        return self._running < self._transfers and (not self._running or self._in_flight + nbytes <= self._cap)

    def _take(self, nbytes: int) -> None:
        self._running += 1
        self._in_flight += nbytes
