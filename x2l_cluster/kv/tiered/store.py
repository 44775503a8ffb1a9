"""Host memory, a server and a disk as one store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import TypeVar

from x2l_cluster.errors import BlockCorrupt, BlockMissing, StoreUnavailable, X2LError
from x2l_cluster.kv.measured import Measured, reason_of
from x2l_cluster.kv.store import ANY, Buffer, Fetched, KVStore, Priority, SingleStore, Want, missing_message, room_for
from x2l_cluster.kv.tiered.ahead import Ahead
from x2l_cluster.kv.tiered.behind import Behind
from x2l_cluster.kv.tiered.each import Each
from x2l_cluster.kv.tiered.fence import Fence, Node
from x2l_cluster.kv.tiered.flights import Flight, Flights
from x2l_cluster.kv.tiered.heat import Heat
from x2l_cluster.kv.tiered.rungs import Rung, ways
from x2l_cluster.metrics import KV_MISSES, KV_PROMOTIONS, kind_of
from x2l_cluster.types import BlockKey, Kind, Tier

T = TypeVar("T")
_THREADS = 64
"""Fetches of a process at once. How many bytes move at once is the tiers' own business."""
_BUSY = 8
"""With so many fetches in the air no hint is followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How tiers work together.

    Attributes:
        warm_at: selections, each worth half after ``half_life_s``, from which on a fine block is kept in host memory.
        deadline_s: how long a fetch may take, whoever still waits for it.
        behind_bytes: bytes of copies that may wait to be written, a tier.
    """

    warm_at: float = 1.0
    half_life_s: float = 600.0
    deadline_s: float = 5.0
    behind_bytes: int = 64 << 20


def _whole(key: BlockKey, blob: memoryview) -> None:
    from x2l_cluster.kv.blob import check  # needs torch, which who only deletes has not

    check(key, blob)


class TieredKV(SingleStore):
    """Reads from the fastest tier that has a blob and copies it up; writes to its home first, to copies behind.

    Coarse blocks and score indexes are always copied up, fine ones when questions select them (see :class:`Policy`);
    nothing is that does not pass ``check``. A copy that fails it is passed over if a slower tier has a sound one. So is
    a tier that does not answer; a blob is only *missing* when every tier that might have it said so.

    Equal keys should mean equal bytes. When other bytes are put under a key, readers of this process see them at once,
    those of other processes of the node when the copy in host memory has been replaced, a moment later.

    Args:
        rungs: the tiers, fastest first (see :func:`~x2l_cluster.kv.tiered.ladder`); closed with this store.
        node: lets the processes of a node fetch each block once; that of the arena among the tiers.
        check: raises BlockCorrupt for what must not be copied.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        *,
        node: Node | None = None,
        policy: Policy | None = None,
        check: Callable[[BlockKey, memoryview], None] = _whole,
    ) -> None:
        self._process = os.getpid()
        self._policy = policy = policy or Policy()
        self._node, self._check = node, check
        self._rungs = tuple(replace(rung, store=Measured(rung.store)) for rung in rungs)
        self._ways = ways(self._rungs)
        self._fence = Fence(node, patience_s=2 * policy.deadline_s)
        self._heat = Heat(half_life_s=policy.half_life_s)
        self._behind: Mapping[Rung, Behind] = {
            rung: Behind(rung.store, self._fence, check, cap_bytes=policy.behind_bytes)
            for rung in self._rungs
            if rung.copies
        }
        self._flights = Flights(self._bring, self._fence, threads=_THREADS)
        self._ahead = Ahead(self._bring_ahead)

    @property
    def tier(self) -> Tier:
        """Home of coarse blocks; ask ``route(kind).tier`` for a kind's."""
        return self.route(Kind.H).tier

    @property
    def durable(self) -> bool:
        """Whether all homes are; ask ``route(kind).durable`` for a kind's."""
        return all(way[-1].store.durable for way in self._ways.values())

    def route(self, kind: str) -> KVStore:  # type: ignore[override]
        """The home of this kind."""
        return self._way(kind)[-1].store

    # --- reading ----------------------------------------------------------------------------------------------------

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        return self.fetch(key, into, want=want).blob

    def fetch(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        """As :meth:`KVStore.fetch`. Raises StoreUnavailable, or StoreLate, rather than BlockMissing when a tier that
        might have the blob did not answer."""
        self._own()
        way = self._way(key.kind)
        lands = self._is_kept(key, want)
        if self._fence.writes(key):  # copies may be older
            return way[-1].store.fetch(key, into, want=want)
        near = way[0]
        if near.store.tier is Tier.HOST:
            with suppress(BlockMissing, StoreUnavailable):
                return near.store.fetch(key, into, want=want)
        found = self._flights.fetch(key, want, lands=lands)
        if into is None:
            return found
        room = room_for(key, len(found.blob), into)
        room[:] = found.blob
        return Fetched(blob=room.toreadonly(), tier=found.tier)

    def prefetch(self, keys: Iterable[BlockKey]) -> None:
        """Fetches what is not in host memory yet, unless there is more urgent work. Not a selection."""
        if self._process == os.getpid():
            self._ahead.hint(key for key in keys if self._is_copied_near(key))

    def _bring(self, flight: Flight, want: Want) -> Fetched:
        """Fetches one block for everybody on this node who wants it now."""
        key, begun = flight.token.key, monotonic()
        deadline_s = max(self._policy.deadline_s, want.within_s or 0.0)
        with nullcontext() if self._node is None else self._node.turn(key, deadline_s / 2):
            return self._descend(flight, want, begun + deadline_s)

    def _descend(self, flight: Flight, want: Want, until: float) -> Fetched:
        key, way = flight.token.key, self._way(flight.token.key.kind)
        away: StoreUnavailable | None = None
        unsound: tuple[Rung, Fetched, str] | None = None
        for place, rung in enumerate(way):
            left_s = max(until - monotonic(), 0.0) / (1 if rung is way[-1] else 2)  # a copy must not use it all up
            try:
                found = self._look(rung, place, key, replace(want, within_s=left_s))
                if place or rung.store.tier is not Tier.HOST:
                    self._check(key, found.blob)
            except BlockMissing:
                continue
            except StoreUnavailable as error:
                away = error
                continue
            except BlockCorrupt as error:
                unsound = (rung, found, reason_of(error))
                continue
            if unsound is not None:
                KV_MISSES.labels(kind_of(key.kind), unsound[2]).inc()
            self._land(flight, found.blob, way[:place])
            return found
        if unsound is not None and (away is None or unsound[0] is way[-1]):
            return unsound[1]  # bytes in, bytes out: the reader checks too, and says what is wrong
        raise away or BlockMissing(missing_message(key, "any tier"))

    def _look(self, rung: Rung, place: int, key: BlockKey, want: Want) -> Fetched:
        store = rung.store
        if place == 0 and store.tier is Tier.HOST and isinstance(store, Measured):
            store = store.store  # the second look of the same reader, in case somebody else has brought it meanwhile
        return store.fetch(key, want=want)

    def _land(self, flight: Flight, blob: memoryview, above: Sequence[Rung]) -> None:
        """Copies a sound blob into faster tiers: at once where others wait for it, behind elsewhere."""
        key = flight.token.key
        for rung in above:
            with flight.token.landing() as may_land:
                if not may_land or not flight.lands:
                    return
                if rung.store.tier is not Tier.HOST:
                    self._behind[rung].write(self._fence.begin(key), blob, promoted=True)
                    continue
                with suppress(X2LError):  # counted by the tier; the reader has the blob
                    rung.store.put(key, blob)
                    KV_PROMOTIONS.labels(rung.store.tier, kind_of(key.kind)).inc()

    def _bring_ahead(self, key: BlockKey) -> None:
        near = self._way(key.kind)[0].store
        if len(self._flights) >= _BUSY or self._fence.writes(key):
            return
        with suppress(BlockMissing):
            (near.store if isinstance(near, Measured) else near).get(key)
            return
        self._flights.fetch(key, Want(priority=Priority.PREFETCH), lands=True, reads=False)

    def _is_kept(self, key: BlockKey, want: Want) -> bool:
        """Whether a read brings a blob near: coarse always; fine if questions select it often enough."""
        if kind_of(key.kind) != Kind.L:
            return True
        selects = want.priority in (None, Priority.FINE)
        return selects and self._heat.add(key) >= self._policy.warm_at

    def _is_copied_near(self, key: BlockKey) -> bool:
        way = self._way(key.kind)
        return len(way) > 1 and way[0].store.tier is Tier.HOST

    def _way(self, kind: str) -> tuple[Rung, ...]:
        return self._ways.get(kind_of(kind), self._ways[Kind.H])

    # --- writing ----------------------------------------------------------------------------------------------------

    def put(self, key: BlockKey, blob: Buffer) -> None:
        """Home first; then copies, behind: of coarse blocks and score indexes new ones, of fine ones none."""
        self._own()
        *copies, home = self._way(key.kind)
        tokens = [self._fence.begin(key, writes=True) for _ in copies]
        try:
            home.store.put(key, blob)
        except BaseException:
            for token in tokens:
                self._fence.end(token)
            raise
        self._fence.void([key], but=tokens)
        kept = bytes(blob) if copies and kind_of(key.kind) != Kind.L else None
        for rung, token in zip(copies, tokens, strict=True):
            self._behind[rung].write(token, kept)

    def delete(self, keys: Iterable[BlockKey]) -> int:
        """Deletes at home, then every copy. A tier that does not answer does not save the others; then StoreUnavailable
        is raised, and the call can be made again. Copies are not counted."""
        self._own()
        keys = list(keys)
        freed = 0
        with Each() as each:
            for rung in self._rungs:
                with each:
                    freed += rung.store.delete([key for key in keys if self._way(key.kind)[-1] is rung])
            self._fence.void(keys)
            for rung in self._rungs:
                with each:
                    rung.store.delete([key for key in keys if rung in self._way(key.kind)[:-1]])
        return freed

    def delete_video(self, tenant: str, video: str) -> int:
        """As :meth:`delete`. Waits for what other processes of the node are about to bring of the video."""
        self._own()
        freed = 0
        with Each() as each, ExitStack() as stack:
            for rung in self._rungs:
                with each:
                    freed += self._clear_home(rung, tenant, video)
            self._fence.void_video(tenant, video)
            with each:
                stack.enter_context(self._fence.alone(tenant, video))
            for rung in self._rungs:
                with each:
                    if rung.copies:
                        rung.store.delete_video(tenant, video)
        return freed

    def _clear_home(self, rung: Rung, tenant: str, video: str) -> int:
        if not rung.copies:
            return rung.store.delete_video(tenant, video)
        if not rung.home:
            return 0
        mine = [key for key in rung.store.keys(tenant, video) if self._way(key.kind)[-1] is rung]
        return rung.store.delete(mine)

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        """Copies included, so that a sweep finds those whose home is gone; of a tier of copies only, if it answers."""
        return self._in_all(lambda store: store.keys(tenant, video))

    def videos(self) -> Iterator[tuple[str, str]]:
        """As :meth:`keys`."""
        return self._in_all(lambda store: store.videos())

    def places(self) -> Iterator[KVStore]:
        for rung in self._rungs:
            yield from rung.store.places()

    def _in_all(self, look: Callable[[KVStore], Iterator[T]]) -> Iterator[T]:
        found: set[T] = set()
        for rung in self._rungs:
            try:
                found.update(look(rung.store))
            except StoreUnavailable:
                if rung.home:
                    raise
        return iter(found)

    def held_bytes(self, tenant: str | None = None) -> int:
        """Bytes in the homes; what one of them keeps copies of beside counts too."""
        return sum(rung.store.held_bytes(tenant) for rung in self._rungs if rung.home)

    def _own(self) -> None:
        """A forked child has neither the threads that fetch nor a say in what its parent's locks are."""
        if self._process != os.getpid():
            raise StoreUnavailable("these tiers were opened before a fork: open the store anew in the child")

    # --- life -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Returns when hints were followed and copies written, as far as they were due by now."""
        self._ahead.flush()
        for behind in self._behind.values():
            behind.flush()

    def close(self) -> None:
        """Drops hints, waits for fetches in the air, writes the copies that wait, and closes the tiers."""
        with ExitStack() as stack:
            for rung in self._rungs:
                stack.callback(rung.store.close)
            for behind in self._behind.values():
                stack.callback(behind.close)
            stack.callback(self._flights.close)
            stack.callback(self._ahead.close)
