"""The host tier: blobs in memory that all processes of a node share, read without a copy.

The design, argued, is in ARCHITECTURE.md ("The host tier").
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from x2l_cluster.errors import BlockMissing, InvalidInput, StoreUnavailable
from x2l_cluster.kv.files import errors_as_store
from x2l_cluster.kv.host.arena import Arena
from x2l_cluster.kv.host.layout import MAX_PAGES, Layout, Word
from x2l_cluster.kv.host.leases import Claims, Leases
from x2l_cluster.kv.host.names import LAST_RANK, RANKS, hash_of, key_of, name_of, prefix_of
from x2l_cluster.kv.host.node import Node
from x2l_cluster.kv.host.reader import Reader, as_array, taken_away
from x2l_cluster.kv.host.register import register, unregister
from x2l_cluster.kv.host.slots import Found
from x2l_cluster.kv.host.tables import Tables
from x2l_cluster.kv.store import ANY, Buffer, SingleStore, Want
from x2l_cluster.metrics import KV_BUDGET_BYTES, KV_HELD_BYTES, KV_LEASES, KV_OLDEST_LEASE_S, LIVE, Reading
from x2l_cluster.types import BlockKey, Tier

Admit = Callable[[BlockKey, memoryview], None]
"""Looks at a blob as it lies in the arena, before anybody else can; raises BlockCorrupt to refuse it."""
_PIECE: Final = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStats:
    """What an arena holds, and what this process did with it."""

    budget_bytes: int
    free_bytes: int
    """Budget no blob takes up, in whole pages; a retired blob does until its last lease ends."""
    blobs: int
    held_bytes: int
    evicted: dict[str, int]
    """Blobs evicted since the arena was made, by any process: ``l``, ``x``, ``h``, ``other``."""
    rebuilt: int
    """How often the tables were made anew, since a process had died while changing them."""
    hits: int
    misses: int
    leases: int
    oldest_lease_s: float


class HostKV(SingleStore):
    """Blobs in an arena. Any number of processes may open the same path; none is special, and any may die.

    When room is needed the coldest blobs go, L before score indexes before H, never one that is being read. What
    :meth:`get` returns without ``into`` is the memory itself, under a lease that ends with the last view of it: hold
    it while reading, not for good.

    Args:
        path: the file, on tmpfs (``/dev/shm/…``), best one mounted with ``huge=always``; made when missing. One a node,
            or pod.
        budget_bytes: memory for blobs. An arena in use keeps the budget it was made with (see :attr:`budget_bytes`).
        page_bytes: what a blob's place is rounded up to.
        prefault: whether to take all memory now; touching it for the first time is slower than copying.
        admit: looks at each blob once, when it is put.
        patience_s: a process stopped in the middle of a change is waited for so long.

    Raises:
        StoreFull: the budget is more than the filesystem has.
        StoreUnavailable: the arena is damaged, or of another version, and in use.
    """

    tier = Tier.HOST
    durable = False

    def __init__(
        self,
        path: Path | str,
        *,
        budget_bytes: int,
        page_bytes: int = 16 << 10,
        prefault: bool = False,
        admit: Admit | None = None,
        patience_s: float = 2.0,
    ) -> None:
        if page_bytes < 4096 or page_bytes & (page_bytes - 1) or not 1 <= budget_bytes // page_bytes <= MAX_PAGES:
            raise InvalidInput(
                f"an arena of {budget_bytes} bytes in pages of {page_bytes}: pages are a power of two from 4096 on, "
                f"and there are 1 to {MAX_PAGES} of them"
            )
        self._arena = Arena(
            Path(path).expanduser().absolute(), Layout.of(budget_bytes, page_bytes), patience_s=patience_s
        )
        self._tables: Tables = self._arena.tables
        self._leases = Leases(self._arena.read_locks)
        self._claims = Claims(self._arena.write_locks)
        self._admit = admit
        self.node = Node(self._arena.path)
        """What the processes that share this arena agree on beside blobs."""
        self._reader = Reader(self._arena, self._leases)
        self._registered = False
        self._gone: str | None = None
        _open_stores.add(self)
        LIVE.add(self)
        if prefault:
            try:
                self._arena.prefault()
            except BaseException:
                self.close()
                raise

    @property
    def budget_bytes(self) -> int:
        return self._arena.layout.pages * self._arena.layout.page_bytes

    # --- reading ----------------------------------------------------------------------------------------------------

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        self._check()
        if into is not None:
            return self._reader.copy(key, into)
        return self._reader.view(self._reader.lease(key))

    @contextmanager
    def lease(self, key: BlockKey) -> Iterator[memoryview]:
        """The blob where it lies, read-only; on leaving the lease ends, or with the last view derived from this one.

        A copy that runs on by itself (to a device) must have ended before. Raises BlockMissing, on leaving too, if the
        slot was given away meanwhile, which only damage to the arena can do.
        """
        self._check()
        found = self._reader.lease(key)
        view = self._reader.view(found)
        try:
            yield view
            if not self._tables.holds(found.slot, found.generation):
                raise taken_away(key)
        finally:
            with suppress(BufferError):
                view.release()

    # --- writing ----------------------------------------------------------------------------------------------------

    def put(self, key: BlockKey, blob: Buffer) -> None:
        mine = as_array(memoryview(blob))
        if self._has(key, mine):
            return
        with self.reserve(key, len(mine)) as room:
            as_array(room)[:] = mine

    @contextmanager
    def reserve(self, key: BlockKey, size_bytes: int) -> Iterator[memoryview]:
        """Writable memory for a blob, where it will lie: the way in without a copy.

        Leaving publishes it, an error frees it. Nobody can read the blob before; nobody may write to it after.
        """
        self._check()
        name = name_of(key)
        with errors_as_store(self._arena.path), self._arena.changing() as tables:
            found = tables.reserve(name, size_bytes, self._claims)
        published = False
        try:
            layout = self._arena.layout
            needed = size_bytes + len(name.text)
            self._arena.back(found.start // layout.page_bytes, -(-needed // layout.page_bytes))
            place = self._arena.pages[found.start : found.start + needed]
            room = place[:size_bytes].data
            yield room
            place[size_bytes:] = np.frombuffer(name.text, dtype=np.uint8)
            if self._admit is not None:
                self._admit(key, room.toreadonly())
            with errors_as_store(self._arena.path), self._arena.changing() as tables:
                tables.publish(name, found)
                self._claims.end(found.slot)
                published = True
            with suppress(BufferError):
                room.release()
        finally:
            if not published:
                self._abort(found)

    def _abort(self, found: Found) -> None:
        try:
            with suppress(StoreUnavailable), errors_as_store(self._arena.path), self._arena.changing() as tables:
                tables.abort(found)
        finally:  # without the lock's holder in our way the slot is free now; else whoever needs room next frees it
            self._claims.end(found.slot)

    def _has(self, key: BlockKey, mine: npt.NDArray[np.uint8]) -> bool:
        with suppress(BlockMissing):
            found = self._reader.lease(key, counts=False)
            theirs = as_array(self._reader.view(found))
            pieces = range(0, len(mine), _PIECE)
            return len(mine) == len(theirs) and all(
                np.array_equal(mine[at : at + _PIECE], theirs[at : at + _PIECE]) for at in pieces
            )
        return False

    def delete(self, keys: Iterable[BlockKey]) -> int:
        freed = 0
        for key in keys:
            self._check()
            name = name_of(key)
            with errors_as_store(self._arena.path), self._arena.changing() as tables:
                if (slot := tables.find(name)) is not None:
                    freed += tables.delete(slot)
        return freed

    def delete_video(self, tenant: str, video: str) -> int:
        prefix = prefix_of(tenant, video)
        self._check()
        with errors_as_store(self._arena.path), self._arena.changing() as tables:
            slots = tables.ready(video=hash_of(prefix))
            return sum(tables.delete(slot) for slot in slots if tables.text(slot).startswith(prefix))

    # --- counting ---------------------------------------------------------------------------------------------------

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        prefix = prefix_of(tenant, video)
        self._check()
        with errors_as_store(self._arena.path), self._arena.reading() as tables:
            texts = [tables.text(slot) for slot in tables.ready(video=hash_of(prefix))]
        return iter([key_of(text) for text in texts if text.startswith(prefix)])

    def videos(self) -> Iterator[tuple[str, str]]:
        self._check()
        with errors_as_store(self._arena.path), self._arena.reading() as tables:
            keys = [key_of(tables.text(slot)) for slot in tables.ready()]
        return iter({(key.tenant, key.video) for key in keys})

    def held_bytes(self, tenant: str | None = None) -> int:
        self._check()
        prefix = b"" if tenant is None else prefix_of(tenant)
        with errors_as_store(self._arena.path), self._arena.reading() as tables:
            if tenant is None:
                return tables.held_bytes()
            slots = tables.ready(tenant=hash_of(prefix))
            return sum(tables.found(slot).size for slot in slots if tables.text(slot).startswith(prefix))

    def stats(self) -> HostStats:
        self._check()
        with errors_as_store(self._arena.path), self._arena.reading() as tables:
            evicted = [tables.counter(Word.EVICTED + rank) for rank in range(LAST_RANK + 1)]
            return HostStats(
                budget_bytes=self.budget_bytes,
                free_bytes=tables.counter(Word.FREE_PAGES) * self._arena.layout.page_bytes,
                blobs=len(tables.ready()),
                held_bytes=tables.held_bytes(),
                evicted=dict(zip((*RANKS, "other"), evicted, strict=True)),
                rebuilt=tables.counter(Word.REBUILT),
                hits=self._reader.hits,
                misses=self._reader.misses,
                leases=len(self._leases),
                oldest_lease_s=self._leases.oldest_s(),
            )

    def gauges(self) -> Iterator[Reading]:
        stats = self.stats()
        yield KV_HELD_BYTES, (self.tier,), stats.held_bytes
        yield KV_BUDGET_BYTES, (self.tier,), stats.budget_bytes
        yield KV_LEASES, (self.tier,), stats.leases
        yield KV_OLDEST_LEASE_S, (self.tier,), stats.oldest_lease_s

    # --- life -------------------------------------------------------------------------------------------------------

    def register(self) -> bool:
        """Tells CUDA about this process's mapping, so that copies to the device are asynchronous and fast.

        Takes all memory of the arena. Returns False where there is no GPU. Undone by :meth:`close`.

        Raises:
            StoreFull: the filesystem cannot back the whole arena.
            StoreUnavailable: the driver refuses.
        """
        self._check()
        if not self._registered:
            self._registered = register(self._arena)
        return self._registered

    def close(self) -> None:
        """Views that are held stay valid, and under lease; nothing else can be done."""
        if self._gone is None:
            self._gone = "this store was closed"
            if self._registered:
                unregister(self._arena)
            self._leases.close()
            self._claims.close()
            self.node.close()
            self._arena.close()

    def _check(self) -> None:
        if self._gone is not None:
            raise StoreUnavailable(f"{self._gone}: open the arena {self._arena.path} anew")

    def _forget(self) -> None:
        """In a forked child: every lock is the parent's, and must end with the parent."""
        if self._gone is None:
            self._gone = "this store was opened before a fork"
            self._arena.close()
        self._leases.forget()
        self._claims.forget()
        self.node.close()


_open_stores: weakref.WeakSet[HostKV] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_open_stores):
        store._forget()


os.register_at_fork(after_in_child=_after_fork)
