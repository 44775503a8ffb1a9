"""Keeps a tier within its limits: the one authority that decides what leaves it.

Whoever wants to keep more than there is room for makes the room first, under a turn that only one process has at a
time. The policy is :func:`~x2l_cluster.kv.evict.choose`; what a store must be able to do for it is :class:`Evictable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from threading import Lock
from typing import Protocol

from x2l_cluster.kv.evict import Entry, Limits, Victim, choose
from x2l_cluster.kv.store import KVStore
from x2l_cluster.metrics import KV_EVICTED_BYTES, KV_EVICTIONS, kind_of

_BATCH = 64
"""Blocks that are deleted before the turn is looked at again."""
_LISTED = 4096
"""Entries that are listed before it is."""


class Evictable(KVStore, Protocol):
    """A store that something can be evicted from."""

    def usage_bytes(self) -> int:
        """What counts against the budget, as it is now. May take a while: it is not asked at every put."""
        ...

    def capacity_bytes(self) -> int | None:
        """What it says itself that it can hold at most; None when it does not say."""
        ...

    def entries(self) -> Iterable[Entry]:
        """Every blob, its size, and when it was last read for a question. Walks all of the store."""
        ...

    def turn(self) -> AbstractContextManager[Callable[[], bool] | None]:
        """Waits to be the only process that evicts here, and is that while entered, or until it has died.

        Yields how to ask whether it still is, which also says that it lives; None if others were not done in time.
        """
        ...


class _TurnLost(Exception):
    """Somebody else evicts here by now."""


class Evictor:
    """Evicts from one store. Safe for several threads.

    Args:
        orphaned: whether a tenant's video has no manifest (any more); by default all have one.
    """

    def __init__(
        self,
        store: Evictable,
        limits: Limits,
        *,
        orphaned: Callable[[str, str], bool] | None = None,
    ) -> None:
        self.store = store
        self.limits = limits
        self._orphaned = orphaned
        self._lock = Lock()

    def run(self, *, room_bytes: int = 0, tenant: str | None = None, full: bool = False) -> int | None:
        """Evicts down to the low watermark, if with ``room_bytes`` more the store would be above the high one.

        Args:
            tenant: who needs the room.
            full: the store refuses writes, whatever it seems to hold: make room in any case.

        Returns:
            The bytes freed; None if somebody else was at it all the time.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._lock, self.store.turn() as mine:
            if mine is None:
                return None
            wanted = self.store.usage_bytes() + room_bytes
            surplus = wanted - self.limits.low_bytes if wanted > self.limits.high_bytes else 0
            if full:  # it has less room than was thought: a share of what it has
                surplus = max(surplus, room_bytes + int(wanted * (self.limits.high - self.limits.low)))
            if surplus <= 0:
                return 0
            freed = 0
            try:
                listed = _listed(self.store.entries(), mine)
                victims = choose(listed, self.limits, surplus, tenant=tenant, orphaned=self._orphaned)
                while part := list(islice(victims, _BATCH)):
                    if not mine():
                        raise _TurnLost
                    freed += self._evict(part, "room" if full else "watermark")
            except _TurnLost:
                return freed or None
            return freed

    def _evict(self, victims: Iterable[Victim], reason: str) -> int:
        freed = self.store.delete(entry.key for victim in victims for entry in victim.entries)
        for victim in victims:
            labels = (self.store.tier.value, kind_of(victim.key.kind), "quota" if victim.over_quota else reason)
            KV_EVICTIONS.labels(*labels).inc(len(victim.entries))
            KV_EVICTED_BYTES.labels(*labels).inc(victim.size_bytes)
        return freed


def _listed(entries: Iterable[Entry], mine: Callable[[], bool]) -> Iterator[Entry]:
    for number, entry in enumerate(entries, 1):
        if number % _LISTED == 0 and not mine():
            raise _TurnLost
        yield entry
