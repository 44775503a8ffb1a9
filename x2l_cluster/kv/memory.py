"""Blobs in this process's memory: for one-shot use, for tests, and the plainest reading of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock

from x2l_cluster.errors import BlockMissing, StoreFull
from x2l_cluster.kv.evict import Entry
from x2l_cluster.kv.store import ANY, Buffer, SingleStore, Want, is_for_a_question, missing_message, room_for
from x2l_cluster.metrics import KV_BUDGET_BYTES, KV_HELD_BYTES, LIVE, Reading
from x2l_cluster.types import BlockKey, Tier, check_name


class MemoryKV(SingleStore):
    """A dictionary of blobs. ``budget_bytes`` bounds their sum."""

    tier = Tier.HOST
    durable = False

    def __init__(self, *, budget_bytes: int | None = None) -> None:
        self._budget = budget_bytes
        self._videos: dict[tuple[str, str], dict[BlockKey, bytes]] = {}
        self._heat: dict[BlockKey, int] = {}
        self._turns = count()
        self._held = 0
        self._lock = Lock()
        LIVE.add(self)

    def put(self, key: BlockKey, blob: Buffer) -> None:
        kept = bytes(blob)
        with self._lock:
            video = self._videos.get((key.tenant, key.video), {})
            held = self._held + len(kept) - len(video.get(key, b""))
            if self._budget is not None and held > self._budget:
                raise StoreFull(
                    f"block {key} of {len(kept)} bytes does not fit: {self._held} of {self._budget} bytes are taken; "
                    "delete videos or raise the budget"
                )
            self._videos[key.tenant, key.video] = video
            video[key] = kept
            self._heat[key] = next(self._turns)
            self._held = held

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        with self._lock:
            blob = self._videos.get((key.tenant, key.video), {}).get(key)
            if blob is not None and is_for_a_question(want):
                self._heat[key] = next(self._turns)
        if blob is None:
            raise BlockMissing(missing_message(key, "memory"))
        if into is None:
            return memoryview(blob)
        room = room_for(key, len(blob), into)
        room[:] = blob
        return room.toreadonly()

    def delete(self, keys: Iterable[BlockKey]) -> int:
        freed = 0
        with self._lock:
            for key in keys:
                video = self._videos.get((key.tenant, key.video), {})
                freed += len(video.pop(key, b""))
                self._heat.pop(key, None)
                if not video:
                    self._videos.pop((key.tenant, key.video), None)
            self._held -= freed
        return freed

    def delete_video(self, tenant: str, video: str) -> int:
        place = (check_name("tenant", tenant), check_name("video", video))
        with self._lock:
            blobs = self._videos.pop(place, {})
            for key in blobs:
                del self._heat[key]
            freed = sum(map(len, blobs.values()))
            self._held -= freed
        return freed

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        place = (check_name("tenant", tenant), check_name("video", video))
        with self._lock:
            return iter(tuple(self._videos.get(place, {})))

    def videos(self) -> Iterator[tuple[str, str]]:
        with self._lock:
            return iter(tuple(self._videos))

    def held_bytes(self, tenant: str | None = None) -> int:
        with self._lock:
            if tenant is None:
                return self._held
            return sum(
                len(blob) for (owner, _), video in self._videos.items() if owner == tenant for blob in video.values()
            )

    def gauges(self) -> Iterator[Reading]:
        yield KV_HELD_BYTES, (self.tier,), self._held
        if self._budget is not None:
            yield KV_BUDGET_BYTES, (self.tier,), self._budget

    # --- for an evictor ---------------------------------------------------------------------------------------------

    def usage_bytes(self) -> int:
        return self._held

    def capacity_bytes(self) -> int | None:
        return self._budget

    def entries(self) -> Iterable[Entry]:
        with self._lock:
            return [
                Entry(key=key, size_bytes=len(blob), heat=self._heat[key])
                for video in self._videos.values()
                for key, blob in video.items()
            ]

    @contextmanager
    def turn(self) -> Iterator[Callable[[], bool]]:
        """Nobody else is here."""
        yield lambda: True
