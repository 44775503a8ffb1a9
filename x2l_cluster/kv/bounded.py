"""A store that makes room for what is put into it, and never holds more than its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import cast

from x2l_cluster.errors import StoreFull
from x2l_cluster.kv.evict import Limits
from x2l_cluster.kv.evictor import Evictable, Evictor
from x2l_cluster.kv.store import ANY, Buffer, Fetched, KVStore, SingleStore, Want
from x2l_cluster.metrics import KV_BUDGET_BYTES, KV_HELD_BYTES, LIVE, Reading
from x2l_cluster.types import BlockKey, Tier

_ATTEMPTS = 3
"""Others may fill the room that was made."""
_GRAIN = 1 / 64
"""Share of the budget that is written before the store is asked again how much it holds. Of many processes each may be
mistaken by so much about what the others wrote; a server's own bound is hard."""


def evictor_of(place: KVStore, *, orphaned: Callable[[str, str], bool] | None = None) -> Evictor | None:
    """Who keeps a place within its bound, for whoever does so from outside; None where there is none to keep to.

    The bound is that of a :class:`BoundedKV`, else what the place itself says it can hold (a server's ``maxmemory``).
    An arena keeps to its own. ``orphaned`` as of :class:`.Evictor`.
    """
    if isinstance(place, BoundedKV):
        return Evictor(place.evictor.store, place.evictor.limits, orphaned=orphaned)
    capacity = getattr(place, "capacity_bytes", None)
    budget = capacity() if capacity is not None else None
    return Evictor(cast(Evictable, place), Limits(budget_bytes=budget), orphaned=orphaned) if budget else None


class BoundedKV(SingleStore):
    """Another store within limits; it closes that.

    Raises (on putting): StoreFull when nothing that may go frees enough room; nothing of the blob is left then.
    """

    def __init__(self, store: Evictable, evictor: Evictor) -> None:
        self._store = store
        self.evictor = evictor
        self._limits = evictor.limits
        self._grain = int(self._limits.budget_bytes * _GRAIN)
        self._lock = Lock()
        self._known: int | None = None
        self._written = self._pending = 0
        self._stuck = 0
        """Holding so much, nothing could be evicted any more."""
        LIVE.add(self)

    @property
    def tier(self) -> Tier:
        return self._store.tier

    @property
    def durable(self) -> bool:
        return self._store.durable

    def put(self, key: BlockKey, blob: Buffer) -> None:
        size = memoryview(blob).nbytes
        with self._counted(size):
            held = self._estimate()
            if held > self._limits.high_bytes and held > self._stuck:
                self._evict(size, key.tenant)
            for attempt in range(_ATTEMPTS):
                try:
                    self._check(key, size)
                    self._store.put(key, blob)
                    return
                except StoreFull:
                    if attempt == _ATTEMPTS - 1 or self._evict(size, key.tenant, full=True) == 0:
                        raise

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        return self._store.get(key, into, want=want)

    def fetch(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        return self._store.fetch(key, into, want=want)

    def delete(self, keys: Iterable[BlockKey]) -> int:
        return self._less(self._store.delete(keys))

    def delete_video(self, tenant: str, video: str) -> int:
        return self._less(self._store.delete_video(tenant, video))

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        return self._store.keys(tenant, video)

    def videos(self) -> Iterator[tuple[str, str]]:
        return self._store.videos()

    def held_bytes(self, tenant: str | None = None) -> int:
        return self._store.held_bytes(tenant)

    def close(self) -> None:
        self._store.close()

    def gauges(self) -> Iterator[Reading]:
        yield KV_BUDGET_BYTES, (self.tier,), self._limits.budget_bytes
        if self._known is not None and self.tier is not Tier.HOST:  # memory tells by itself; nobody is asked here
            yield KV_HELD_BYTES, (self.tier,), self._known + self._written

    # --- how much is held -------------------------------------------------------------------------------------------

    @contextmanager
    def _counted(self, size: int) -> Iterator[None]:
        """A blob on its way counts as if it were there, so that threads do not take the same room."""
        with self._lock:
            self._pending += size
        try:
            yield
        finally:  # after an error, too: nobody knows whether it arrived
            with self._lock:
                self._pending -= size
                self._written += size

    def _estimate(self) -> int:
        """What is held when all that is on its way is there: rather too much than too little."""
        with self._lock:
            if self._known is None or self._written > self._grain:
                self._known, self._written = self._store.usage_bytes(), 0
            return self._known + self._written + self._pending

    def _less(self, freed: int) -> int:
        with self._lock:
            self._stuck = 0
            if self._known is not None:
                self._known = max(0, self._known - freed)
        return freed

    def _check(self, key: BlockKey, size: int) -> None:
        if (held := self._estimate()) > self._limits.budget_bytes:
            raise StoreFull(
                f"block {key} of {size} bytes does not fit: {held - size} of {self._limits.budget_bytes} bytes are "
                "taken, and nothing more may be evicted; delete videos or raise the budget"
            )

    def _evict(self, size: int, tenant: str, *, full: bool = False) -> int | None:
        freed = self.evictor.run(room_bytes=size, tenant=tenant, full=full)
        with self._lock:
            self._known = None
        self._stuck = 0 if freed != 0 else self._estimate() + self._grain
        return freed
