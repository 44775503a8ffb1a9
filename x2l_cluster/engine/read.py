"""Blobs on their way back: asked for ahead, a few at a time, each once, under one deadline.

What is stored may be several stripes, or lie in a segment with others; who reads here need not know. While an index is
being packed or repaired, blobs move: a reader whose manifest is older finds one missing, looks at the manifest again,
once, and reads the same bytes where they are now. Other bytes it never takes for them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from types import TracebackType
from typing import Final, Self, TypeVar

from x2l_cluster.errors import BlockMissing, KVError, StoreLate, StoreUnavailable, X2LError
from x2l_cluster.kv.codec import Buffer, unpack
from x2l_cluster.kv.measured import reason_of
from x2l_cluster.kv.segments import cut_out
from x2l_cluster.kv.store import Fetched, KVStore, Priority, Want
from x2l_cluster.kv.wire.deadline import Deadline
from x2l_cluster.metrics import KV_MISSES, kind_of
from x2l_cluster.select import Features
from x2l_cluster.types import BlockKey, BlockRef, ChunkRow, Manifest, Tier

T = TypeVar("T")
Use = Callable[[Iterator[Buffer], BlockKey, BlockRef], T]
"""What is made of the blobs of a block, in order; as :func:`x2l_cluster.kv.codec.decode_block` does."""
Place = tuple[int, str]
"""Chunk and kind."""

REPAIR: Final = "index the file again with repair=True (`x2l index FILE --repair`)"
READERS: Final = 4
"""Blobs asked for at once: what a server delivers fastest over. More connections, never deeper ones, would help it."""
BASE_S: Final = 5.0
PER_MIB_S: Final = 0.1
"""How long a plan may take: as such, and more for every MiB. As those of one transfer (kv/remote.py)."""

_FARTHER: Final = (Tier.DEVICE, Tier.HOST, Tier.REMOTE, Tier.DISK)


class Reader:
    """Reads what manifests name. Safe for several threads.

    Args:
        newest: the manifest as it is now, of one seen earlier; without, what is missing is missing.
        priority: of all reads; by default what their kind says.
        clock: seconds that only run forward.
    """

    def __init__(
        self,
        kv: KVStore,
        newest: Callable[[Manifest], Manifest] | None = None,
        *,
        priority: Priority | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.kv, self.newest, self.priority, self._clock = kv, newest, priority, clock
        # Coarse blocks do not queue behind fine ones: no question gets anywhere without them.
        self._threads = {
            urgent: ThreadPoolExecutor(READERS, thread_name_prefix=f"x2l-read-{name}")
            for urgent, name in ((True, "coarse"), (False, "fine"))
        }

    def batch(
        self,
        manifest: Manifest,
        wanted: Iterable[tuple[ChunkRow, str]],
        *,
        in_time: bool = True,
        deadline: Deadline | None = None,
    ) -> Batch:
        """What is going to be used, in that order; what is not there of a row is passed over.

        Args:
            in_time: whether all of it is under one deadline from now on; else every blob has that of its store.
            deadline: one that has begun already.
        """
        there = [(row, kind) for row, kind in wanted if kind in row.blocks]
        if in_time and deadline is None:
            deadline = self.deadline(there)
        return Batch(self, manifest, there, deadline)

    def deadline(self, wanted: Iterable[tuple[ChunkRow, str]], *, most_s: float | None = None) -> Deadline:
        """What so many bytes may take from now on, and no longer than ``most_s``."""
        deadline = Deadline(BASE_S, PER_MIB_S, self._clock, most_s=most_s)
        deadline.covers(sum(row.blocks[kind].size_bytes for row, kind in wanted if kind in row.blocks))
        return deadline

    def submit(self, kind: str, work: Callable[[], T]) -> Future[T]:
        return self._threads[Priority.of(kind) < Priority.FINE].submit(work)

    def close(self) -> None:
        """Takes no more work; what is on the wire may come to its end."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Batch:
    """Some blocks of one video. Use them in the order they were wanted in; for one thread.

    A store that does not answer is not asked again.

    Attributes:
        tier: the farthest from which a blob of the block last used came.
    """

    def __init__(
        self,
        reader: Reader,
        manifest: Manifest,
        wanted: Iterable[tuple[ChunkRow, str]],
        deadline: Deadline | None,
    ) -> None:
        self._reader, self._manifest, self._deadline = reader, manifest, deadline
        self._now: Manifest | None = None
        self._wanted: dict[Place, tuple[ChunkRow, str]] = {(row.index, kind): (row, kind) for row, kind in wanted}
        self.tier = Tier.DEVICE
        self._away: StoreUnavailable | None = None
        self._asked: dict[BlockKey, Future[Fetched]] = {}
        self._plan()

    def use(self, row: ChunkRow, kind: str, make: Use[T]) -> T:
        """What ``make`` makes of a block's blobs. If they turn out to have moved, it is called once more.

        Raises BlockMissing, BlockCorrupt or StoreUnavailable (StoreLate once the deadline has passed).
        """
        try:
            try:
                return self._use(row, kind, make)
            except BlockMissing:
                if not self._look_again(row, kind):
                    raise
                return self._use(row, kind, make)
        except KVError as error:
            KV_MISSES.labels(kind=kind_of(kind), reason=reason_of(error)).inc()
            raise
        finally:
            self._wanted.pop((row.index, kind), None)

    def features(self, row: ChunkRow, kind: str) -> Features:
        """What a scorer stored of a chunk. Raises as :meth:`use`."""
        return self.use(row, kind, _features)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._asked.values():
            future.cancel()

    # --- where things are -------------------------------------------------------------------------------------------

    def _ref(self, row: ChunkRow, kind: str) -> BlockRef:
        """What the newest manifest known says, if it says the same bytes."""
        ref = row.blocks.get(kind)
        if ref is None:
            raise BlockMissing(f"chunk {row.index} of video {self._manifest.video} has no {kind!r} block; {REPAIR}")
        if self._now is not None and row.index < len(self._now.chunks):
            now = self._now.chunks[row.index].blocks.get(kind)
            if now is not None and _content(now) == _content(ref):
                return now
        return ref

    def _look_again(self, row: ChunkRow, kind: str) -> bool:
        """Reads the manifest again, once. Tells whether the block is elsewhere by now."""
        before = self._ref(row, kind)
        if self._now is None and self._reader.newest is not None:
            try:
                self._now = self._reader.newest(self._manifest)
            except X2LError:  # deleted, or the state is away: what is missing stays missing
                return False
            self._plan()
        return self._ref(row, kind) != before

    # --- ahead ------------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """What will be asked for, in what order, and how often each blob is used."""
        self._uses: Counter[BlockKey] = Counter()
        self._sizes: dict[BlockKey, int] = {}
        self._ahead: set[BlockKey] = set()
        for row, kind in self._wanted.values():
            ref = self._ref(row, kind)
            size = ref.packed.offset + ref.size_bytes if ref.packed else -(-ref.size_bytes // ref.stripes)
            for key in self._manifest.keys(ref, row.index):
                self._uses[key] += 1
                self._sizes[key] = max(size, self._sizes.get(key, 0))
        for key in self._asked.keys() - self._uses.keys():
            self._asked.pop(key).cancel()
        self._order = deque(key for key in self._uses if key not in self._asked)

    def _use(self, row: ChunkRow, kind: str, make: Use[T]) -> T:
        ref = self._ref(row, kind)
        left = deque(self._manifest.keys(ref, row.index))
        self.tier = Tier.DEVICE
        try:
            return make(self._blobs(left, ref), self._manifest.key(ref, row.index), ref)
        finally:
            while left:
                self._release(left.popleft())

    def _blobs(self, left: deque[BlockKey], ref: BlockRef) -> Iterator[Buffer]:
        """One after the other; each may go when the next is asked for."""
        while left:
            key = left[0]
            yield self._blob(key) if ref.packed is None else cut_out(self._blob(key), key, ref)
            self._release(left.popleft())

    def _blob(self, key: BlockKey) -> memoryview:
        self._ahead.discard(key)
        future = self._asked.get(key) or self._ask(key)
        while self._order and len(self._ahead) < READERS:
            following = self._order.popleft()
            if following not in self._asked and self._uses[following] > 0:
                self._ahead.add(following)
                self._ask(following)
        try:
            found = future.result(self._deadline.left_s() if self._deadline else None)
        except TimeoutError:
            raise StoreLate(f"block {key} did not come within the time of its plan: answer coarse") from None
        self.tier = max(self.tier, found.tier, key=_FARTHER.index)
        return found.blob

    def _ask(self, key: BlockKey) -> Future[Fetched]:
        future = self._asked[key] = self._reader.submit(key.kind, lambda: self._fetch(key))
        return future

    def _fetch(self, key: BlockKey) -> Fetched:
        if self._away is not None:
            raise type(self._away)(f"the store did not answer for an earlier block of this batch ({self._away})")
        within_s = min(BASE_S, self._deadline.left_s()) if self._deadline else None
        want = Want(size_bytes=self._sizes.get(key), priority=self._reader.priority, within_s=within_s)
        try:
            return self._reader.kv.fetch(key, want=want)
        except StoreUnavailable as error:
            self._away = StoreLate(str(error)) if isinstance(error, StoreLate) else StoreUnavailable(str(error))
            raise

    def _release(self, key: BlockKey) -> None:
        self._uses[key] -= 1
        if self._uses[key] <= 0:
            self._ahead.discard(key)
            if future := self._asked.pop(key, None):
                future.cancel()


def _content(ref: BlockRef) -> tuple[int, str, int]:
    return ref.size_bytes, ref.checksum, ref.entries


def _features(blobs: Iterator[Buffer], key: BlockKey, ref: BlockRef) -> Features:
    tensors, meta = unpack(next(blobs), key, ref)
    return Features(tensors, meta)
