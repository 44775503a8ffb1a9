"""Blobs to and from a Redis (7 or later) or Valkey server, or a cluster of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Final, Self

from x2l_cluster.errors import BlockCorrupt, StoreFull
from x2l_cluster.kv.store import Priority
from x2l_cluster.kv.wire.address import parse
from x2l_cluster.kv.wire.breaker import BreakerState
from x2l_cluster.kv.wire.buffers import Buffers
from x2l_cluster.kv.wire.connection import Connection
from x2l_cluster.kv.wire.deadline import Deadline
from x2l_cluster.kv.wire.errors import Broken, Garbled, Late, Refusal
from x2l_cluster.kv.wire.gate import Gate
from x2l_cluster.kv.wire.resp import Reply, Word, encode, encode_get, first_refusal
from x2l_cluster.kv.wire.servers import Servers, T, Work
from x2l_cluster.metrics import KV_BREAKER, KV_IN_FLIGHT_BYTES, KV_WAITING, LIVE, Reading

_UNKNOWN_BYTES: Final = 1 << 20
"""What a value of unknown size is taken for until its length comes: the size of a stripe."""

_LEVELS: Final = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)
"""By the number that a gauge shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireStats:
    """Counts since the client was made, and how it stands now.

    Attributes:
        events: ``gets``, ``misses``, ``writes``, ``read_bytes``, ``written_bytes``; transfers that failed, ``late``,
            ``closed`` and ``garbled``, or had ``no_turn`` at the gate.
        dialled: connections made; ``reconnected`` of them because one was cut that had served before.
        redirected: answers that named another server.
        in_flight_bytes, waiting: behind and before the gate.
        breakers: state by server.
    """

    events: Mapping[str, int]
    dialled: int
    reconnected: int
    redirected: int
    in_flight_bytes: int
    waiting: int
    breakers: Mapping[str, BreakerState]


class WireClient:
    """Reads and writes values over a few connections; safe to use from many threads.

    Connects on first use. A transfer that finds its connection cut is tried once more on a new one (servers restart),
    so write only what may safely arrive twice. Redirections of a cluster are followed.

    Args:
        url: ``redis://``, ``valkey://``, their TLS forms, or ``unix:///path``; see :func:`~.address.parse`.
        connections: transfers at once.
        cap_bytes: bytes in flight at once; see :class:`~.gate.Gate`. A value of unknown size counts as 1 MiB.
        base_s, per_mib_s: the deadline of a transfer, waiting for its turn included; see :class:`~.deadline.Deadline`.
            Only the system's resolver of host names does not know of it.
        clock: seconds that only run forward, for deadlines and breakers.

    Raises (reading and writing): StoreUnavailable; its subclasses in :mod:`~.errors` say why.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 4,
        cap_bytes: int = 64 << 20,
        base_s: float = 5.0,
        per_mib_s: float = 0.1,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._base_s, self._per_mib_s, self._clock = base_s, per_mib_s, clock
        self._servers = Servers(*parse(url), clock)
        self._gate = Gate(transfers=connections, cap_bytes=cap_bytes)
        self._buffers = Buffers()
        self._lock = Lock()
        self._events: Counter[str] = Counter()
        self._is_closed = False
        LIVE.add(self)

    def get(
        self,
        key: str,
        *,
        into: memoryview | None = None,
        size: int | None = None,
        priority: Priority = Priority.FINE,
        base_s: float | None = None,
        renew_s: int | None = None,
    ) -> memoryview | None:
        """The value, or None.

        Args:
            into: where to receive it: writable bytes, at least as many as the value has. After an error they hold
                anything. Without, a buffer is lent for as long as the result is held on to.
            size: how large the value should be, if known; only the gate uses it.
            base_s: another deadline than the client's.
            renew_s: the value's time to live from now on.

        Returns:
            A writable view of exactly the value.

        Raises:
            BlockCorrupt: the value is larger than ``into``.
        """
        target = None if into is None else into.cast("B")
        nbytes = len(target) if target is not None else _UNKNOWN_BYTES if size is None else size
        deadline = self._deadline(base_s, nbytes)
        request = encode_get(key.encode()) if renew_s is None else b"".join(encode("GETEX", key, "EX", renew_s))

        def place(length: int) -> memoryview:
            if length > nbytes:
                deadline.covers(length)
            if target is None:
                return self._buffers.lend(length)
            if length > len(target):
                raise BlockCorrupt(f"{key} has {length} bytes, but only {len(target)} were expected: index again")
            return target[:length]

        value = self._transfer(
            key, lambda connection: connection.get(request, place, deadline), nbytes, priority, deadline
        )
        with self._lock:
            self._events["gets"] += 1
            if value is None:
                self._events["misses"] += 1
            else:
                self._events["read_bytes"] += len(value)
        return value

    def write(
        self,
        key: str,
        *commands: Sequence[Word],
        priority: Priority = Priority.WRITE,
        base_s: float | None = None,
    ) -> list[Reply]:
        """Sends commands that change ``key`` and keys of its slot; several take effect at once or not at all.

        They travel together, in one sending, so whoever dies on the way leaves nothing behind.

        Raises:
            StoreFull: the server is at its ``maxmemory``.
        """
        batch = commands if len(commands) == 1 else (("MULTI",), *commands, ("EXEC",))
        parts = [part for command in batch for part in encode(*command)]
        nbytes = sum(map(len, parts))
        deadline = self._deadline(base_s, nbytes)

        def work(connection: Connection) -> list[Reply]:
            connection.send(parts, deadline)
            replies = connection.replies(len(batch), deadline)
            if refusal := first_refusal(replies):
                raise refusal
            results = replies[-1] if len(commands) > 1 else replies
            if not isinstance(results, list) or len(results) != len(commands):
                raise Garbled(f"{len(commands)} commands were sent, and {str(results)[:100]} came back")
            if refusal := first_refusal(results):
                raise refusal
            return results

        # ASKING speaks for the next command only, so a transaction cannot follow ASK; it waits for the slot to arrive.
        replies = self._transfer(key, work, nbytes, priority, deadline, wait_for_slot=len(commands) > 1)
        with self._lock:
            self._events["writes"] += 1
            self._events["written_bytes"] += nbytes
        return replies

    @property
    def stats(self) -> WireStats:
        with self._lock:
            events = dict(self._events)
        return WireStats(
            events=events,
            dialled=self._servers.dialled,
            reconnected=self._servers.reconnected,
            redirected=self._servers.redirected,
            in_flight_bytes=self._gate.in_flight_bytes,
            waiting=self._gate.waiting,
            breakers=self._servers.breakers,
        )

    def gauges(self) -> Iterator[Reading]:
        if not self._is_closed:
            yield KV_IN_FLIGHT_BYTES, (), self._gate.in_flight_bytes
            yield KV_WAITING, (), self._gate.waiting
            for server, state in self._servers.breakers.items():
                yield KV_BREAKER, (server,), _LEVELS.index(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes idle connections now and busy ones when they are done. May be called twice."""
        self._is_closed = True
        self._servers.close()

    def _deadline(self, base_s: float | None, nbytes: int) -> Deadline:
        deadline = Deadline(self._base_s if base_s is None else base_s, self._per_mib_s, self._clock)
        deadline.covers(nbytes)
        return deadline

    def _transfer(
        self,
        key: str,
        work: Work[T],
        nbytes: int,
        priority: Priority,
        deadline: Deadline,
        *,
        wait_for_slot: bool = False,
    ) -> T:
        try:
            self._gate.enter(nbytes, priority, deadline)
        except Late:
            self._count("no_turn")
            raise
        try:
            return self._servers.run(key.encode(), work, deadline, wait_for_slot=wait_for_slot)
        except Refusal as refusal:
            if refusal.word == "OOM":
                raise StoreFull(f"{refusal}: delete videos or raise its maxmemory") from refusal
            raise
        except Broken as error:
            self._count(type(error).__name__.lower())
            raise
        finally:
            self._gate.leave(nbytes)

    def _count(self, event: str) -> None:
        with self._lock:
            self._events[event] += 1
