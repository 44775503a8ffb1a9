"""One store made of several, by kind: fine blocks where there is much fast room, the rest where it survives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

from x2l_cluster.errors import StoreUnavailable
from x2l_cluster.kv.store import ANY, Buffer, Fetched, KVStore, SingleStore, Want
from x2l_cluster.types import BlockKey, Tier


class RoutedKV(SingleStore):
    """Sends every kind to its store, and closes them all.

    Args:
        routes: store by kind (``Kind``; of a score index the part before the dash).
        default: keeps every other kind.
    """

    def __init__(self, routes: Mapping[str, KVStore], default: KVStore) -> None:
        self._routes = dict(routes)
        self._default = default
        self._all = list({id(store): store for store in (*self._routes.values(), default)}.values())

    @property
    def tier(self) -> Tier:
        """That of the default; ask ``route(kind).tier`` for a kind's."""
        return self._default.tier

    @property
    def durable(self) -> bool:
        """Whether all of them are; ask ``route(kind).durable`` for a kind's."""
        return all(store.durable for store in self._all)

    def route(self, kind: str) -> KVStore:  # type: ignore[override]
        return self._of(kind).route(kind)

    def put(self, key: BlockKey, blob: Buffer) -> None:
        self._of(key.kind).put(key, blob)

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        return self._of(key.kind).get(key, into, want=want)

    def fetch(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        return self._of(key.kind).fetch(key, into, want=want)

    def prefetch(self, keys: Iterable[BlockKey]) -> None:
        for store, part in self._parts(keys):
            store.prefetch(part)

    def delete(self, keys: Iterable[BlockKey]) -> int:
        return sum(store.delete(part) for store, part in self._parts(keys))

    def delete_video(self, tenant: str, video: str) -> int:
        """Clears every store that answers, then raises for one that did not."""
        freed, failure = 0, None
        for store in self._all:
            try:
                freed += store.delete_video(tenant, video)
            except StoreUnavailable as error:
                failure = error
        if failure is not None:
            raise failure
        return freed

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        for store in self._all:
            yield from store.keys(tenant, video)

    def videos(self) -> Iterator[tuple[str, str]]:
        return iter({video for store in self._all for video in store.videos()})

    def places(self) -> Iterator[KVStore]:
        for store in self._all:
            yield from store.places()

    def held_bytes(self, tenant: str | None = None) -> int:
        return sum(store.held_bytes(tenant) for store in self._all)

    def close(self) -> None:
        with ExitStack() as stack:
            for store in self._all:
                stack.callback(store.close)

    def _of(self, kind: str) -> KVStore:
        return self._routes.get(kind.partition("-")[0], self._default)

    def _parts(self, keys: Iterable[BlockKey]) -> Iterable[tuple[KVStore, list[BlockKey]]]:
        parts: dict[int, tuple[KVStore, list[BlockKey]]] = {}
        for key in keys:
            store = self._of(key.kind)
            parts.setdefault(id(store), (store, []))[1].append(key)
        return parts.values()
