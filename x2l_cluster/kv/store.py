"""The seam to the tiers: who keeps blobs, by key. Bytes in, bytes out; nobody here knows what a tensor is.

Implementations: :mod:`~x2l_cluster.kv.memory`, :mod:`~x2l_cluster.kv.host`, :mod:`~x2l_cluster.kv.disk`,
:mod:`~x2l_cluster.kv.remote` (Redis or Valkey), :mod:`~x2l_cluster.kv.tiered` (several, fastest first) and
:mod:`~x2l_cluster.kv.routed` (one store a kind). All pass one contract suite.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol, Self

from x2l_cluster.errors import BlockCorrupt
from x2l_cluster.types import BlockKey, Kind, Tier

Buffer = bytes | bytearray | memoryview


class Priority(IntEnum):
    """What a transfer is for; the smaller goes first."""

    MANIFEST = 0
    COARSE = 1
    """H, and the score index: no question gets anywhere without."""
    FINE = 2
    """L that a plan asks for."""
    PREFETCH = 3
    WRITE = 4
    """Blocks of an index being made."""

    @classmethod
    def of(cls, kind: str) -> Priority:
        """That of reading a block of this kind for a question."""
        return cls.FINE if kind == Kind.L else cls.COARSE


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What the reader of a blob knows and a store may use; a store for which it means nothing ignores it.

    Attributes:
        size_bytes: how large the blob should be.
        priority: how urgent it is; by default what its kind says.
        within_s: how long the reader waits at most, its turn included; by default the store's own deadline.
    """

    size_bytes: int | None = None
    priority: Priority | None = None
    within_s: float | None = None


ANY: Final = Want()
"""Nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetched:
    """A blob, and the tier it came from."""

    blob: memoryview
    tier: Tier


class KVStore(Protocol):
    """Keeps blobs. A blob is whole or absent, for every reader, whatever dies when.

    Putting the same bytes again changes nothing; putting others replaces them at once (equal keys should mean equal
    bytes, and readers check against the manifest anyway). Safe to use from several threads, and by several processes
    where the place is shared. Every method may raise StoreUnavailable.
    """

    @property
    def tier(self) -> Tier:
        """Where blobs are kept."""
        ...

    @property
    def durable(self) -> bool:
        """Whether what :meth:`put` returned from outlives a restart of the machine."""
        ...

    def route(self, kind: str) -> KVStore:
        """The store that keeps blobs of this kind; itself, unless it is made of others."""
        ...

    def put(self, key: BlockKey, blob: Buffer) -> None:
        """Keeps ``blob`` under ``key``. Raises StoreFull when there is no room; nothing of the blob is left then."""
        ...

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        """The blob, read-only.

        Args:
            into: writable memory for it, at least as large. The blob is then the front of that, and lasts as long as
                the caller leaves it alone; without, it lasts as long as it is held on to.
            want: what else is known of it.

        Raises:
            BlockMissing: it is not there.
            BlockCorrupt: it is larger than ``into``, so it is not the block the caller knows of.
            StoreLate: it did not come within the deadline.
        """
        ...

    def fetch(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        """As :meth:`get`, and says where the blob really was."""
        ...

    def prefetch(self, keys: Iterable[BlockKey]) -> None:
        """A hint that these may be asked for soon. Returns at once, promises nothing and never raises."""
        ...

    def delete(self, keys: Iterable[BlockKey]) -> int:
        """Deletes what is there of ``keys`` and returns the bytes freed."""
        ...

    def delete_video(self, tenant: str, video: str) -> int:
        """Deletes every blob of a video, of all recipes and epochs, and returns the bytes freed."""
        ...

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        """Keys of every blob of a video, in no order. For sweeps, never on the way of a request."""
        ...

    def videos(self) -> Iterator[tuple[str, str]]:
        """Tenant and video of every blob, each pair once, in no order. Walks all of the store: for sweeps."""
        ...

    def places(self) -> Iterator[KVStore]:
        """The stores of one place each that this one is made of, as they were opened; for who looks after them."""
        ...

    def held_bytes(self, tenant: str | None = None) -> int:
        """Bytes of blobs held, of one tenant or of all. For budgets and reports, never on the way of a request."""
        ...

    def close(self) -> None:
        """Lets go of connections and files; what is durable stays. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class SingleStore:
    """What stores of one place have in common."""

    def route(self, kind: str) -> Self:
        return self

    def fetch(self: KVStore, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        return Fetched(blob=self.get(key, into, want=want), tier=self.tier)

    def prefetch(self, keys: Iterable[BlockKey]) -> None:
        """There is nowhere faster to bring them."""

    def places(self: KVStore) -> Iterator[KVStore]:
        yield self

    def close(self) -> None:
        """Nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def is_for_a_question(want: Want) -> bool:
    """Whether a blob is read since a question wants it: what eviction goes by."""
    return want.priority not in (Priority.PREFETCH, Priority.WRITE)


def room_for(key: BlockKey, nbytes: int, into: memoryview) -> memoryview:
    """The front of ``into``, writable, for a blob of so many bytes. Raises BlockCorrupt when it does not fit."""
    room = into.cast("B")
    if nbytes > len(room):
        raise BlockCorrupt(
            f"block {key} has {nbytes} bytes, but only {len(room)} were expected: answer coarse, or index again"
        )
    return room[:nbytes]


def missing_message(key: BlockKey, where: str) -> str:
    return f"block {key} is not in {where}: answer coarse, or repair the index"
