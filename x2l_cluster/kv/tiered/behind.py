"""Copies that are written after their blob is safe at home: in order, bounded, and never anybody's error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from x2l_cluster.errors import BlockCorrupt, X2LError
from x2l_cluster.kv.store import Buffer, KVStore
from x2l_cluster.kv.tiered.fence import Fence, Token
from x2l_cluster.metrics import KV_PENDING_WRITES, KV_PROMOTIONS, KV_WRITES, LIVE, Reading, kind_of
from x2l_cluster.types import BlockKey


class Behind:
    """Writes copies into one tier, in a thread of its own. What does not fit under the cap is dropped and counted; a
    tier that fails does too, in the metrics of its store.

    Args:
        check: raises BlockCorrupt for what must not be copied.
        cap_bytes: bytes that may wait.
    """

    def __init__(
        self, store: KVStore, fence: Fence, check: Callable[[BlockKey, memoryview], None], *, cap_bytes: int
    ) -> None:
        self._store, self._fence, self._check, self._cap = store, fence, check, cap_bytes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"x2l-behind-{store.tier}")
        self._lock = Lock()
        self._pending = 0
        self._is_closed = False
        LIVE.add(self)

    def write(self, token: Token, blob: Buffer | None, *, promoted: bool = False) -> None:
        """The copy of what the token is for becomes ``blob``, which nobody may change any more; or goes, for None.

        Ends the token. ``promoted``: it comes from a slower tier.
        """
        size = 0 if blob is None else memoryview(blob).nbytes
        with self._lock:
            if self._is_closed:
                self._fence.end(token)
                return
            if size and self._pending + size > self._cap:
                KV_WRITES.labels(self._store.tier, kind_of(token.key.kind), "dropped").inc()
                blob, size = None, 0
            self._pending += size
            self._pool.submit(self._write, token, blob, size, promoted)

    def flush(self) -> None:
        """Returns when what was to be written by now is written, or has failed."""
        with self._lock:
            last = None if self._is_closed else self._pool.submit(int)
        if last is not None:
            last.result()

    def close(self) -> None:
        """Writes what waits, and takes nothing more."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown()

    def gauges(self) -> Iterator[Reading]:
        yield KV_PENDING_WRITES, (self._store.tier,), self._pending

    def _write(self, token: Token, blob: Buffer | None, size: int, promoted: bool) -> None:
        try:
            with token.landing() as may_land:
                if may_land:
                    self._copy(token.key, blob, promoted)
        except X2LError:
            return  # counted where it happened
        finally:
            self._fence.end(token)
            with self._lock:
                self._pending -= size

    def _copy(self, key: BlockKey, blob: Buffer | None, promoted: bool) -> None:
        if blob is not None:
            try:
                self._check(key, memoryview(blob))
            except BlockCorrupt:
                blob = None
        if blob is None:
            self._store.delete([key])
            return
        self._store.put(key, blob)
        if promoted:
            KV_PROMOTIONS.labels(self._store.tier, kind_of(key.kind)).inc()
