"""What a tier does, counted: the one place where reads and writes of blobs become metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter

from x2l_cluster.errors import BlockCorrupt, BlockMissing, BlockStale, StoreFull, StoreLate, X2LError
from x2l_cluster.kv.store import ANY, Buffer, KVStore, SingleStore, Want
from x2l_cluster.metrics import (
    KV_READ_BYTES,
    KV_READ_S,
    KV_READS,
    KV_WRITE_S,
    KV_WRITES,
    KV_WRITTEN_BYTES,
    kind_of,
)
from x2l_cluster.types import BlockKey, Tier


class Measured(SingleStore):
    """A store of one place, with every read and write counted and timed under its tier. Closes it.

    Args:
        store: what is measured; for what only that kind of store can do, ask it directly.
    """

    def __init__(self, store: KVStore) -> None:
        self.store = store
        self._tier = store.tier.value

    @property
    def tier(self) -> Tier:
        return self.store.tier

    @property
    def durable(self) -> bool:
        return self.store.durable

    def put(self, key: BlockKey, blob: Buffer) -> None:
        kind, result, begun = kind_of(key.kind), "ok", perf_counter()
        try:
            self.store.put(key, blob)
            KV_WRITTEN_BYTES.labels(self._tier, kind).inc(memoryview(blob).nbytes)
        except X2LError as error:
            result = "full" if isinstance(error, StoreFull) else "unavailable"
            raise
        finally:
            KV_WRITES.labels(self._tier, kind, result).inc()
            KV_WRITE_S.labels(self._tier, kind).observe(perf_counter() - begun)

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        kind, result, begun = kind_of(key.kind), "hit", perf_counter()
        try:
            blob = self.store.get(key, into, want=want)
            KV_READ_BYTES.labels(self._tier, kind).inc(blob.nbytes)
            return blob
        except X2LError as error:
            result = reason_of(error)
            raise
        finally:
            KV_READS.labels(self._tier, kind, result).inc()
            KV_READ_S.labels(self._tier, kind).observe(perf_counter() - begun)

    def delete(self, keys: Iterable[BlockKey]) -> int:
        return self.store.delete(keys)

    def delete_video(self, tenant: str, video: str) -> int:
        return self.store.delete_video(tenant, video)

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        return self.store.keys(tenant, video)

    def videos(self) -> Iterator[tuple[str, str]]:
        return self.store.videos()

    def places(self) -> Iterator[KVStore]:
        return self.store.places()

    def held_bytes(self, tenant: str | None = None) -> int:
        return self.store.held_bytes(tenant)

    def close(self) -> None:
        self.store.close()


def reason_of(error: X2LError) -> str:
    """Why a blob cannot be used, in one word: ``missing``, ``stale``, ``corrupt``, ``late`` or ``unavailable``."""
    for kind, reason in (
        (BlockMissing, "missing"),
        (BlockStale, "stale"),
        (BlockCorrupt, "corrupt"),
        (StoreLate, "late"),
    ):
        if isinstance(error, kind):
            return reason
    return "unavailable"
