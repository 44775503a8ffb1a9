"""Stores within limits: what is warm stays, what cannot be relieved says so, and the budget always holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from x2l_cluster.errors import BlockMissing, StoreFull
from x2l_cluster.kv.bounded import BoundedKV
from x2l_cluster.kv.disk import DiskKV
from x2l_cluster.kv.evict import Limits
from x2l_cluster.kv.evictor import Evictable, Evictor
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.store import Priority, Want
from x2l_cluster.types import BlockKey

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=0)
LIMITS = Limits(budget_bytes=1000, high=0.9, low=0.5)


def key(chunk: int, **change: object) -> BlockKey:
    return replace(KEY, chunk=chunk, **change)  # type: ignore[arg-type]


def bounded(store: Evictable, limits: Limits = LIMITS) -> BoundedKV:
    return BoundedKV(store, Evictor(store, limits))


def chunks(store: BoundedKV, tenant: str = "ada") -> set[int]:
    return {key.chunk for key in store.keys(tenant, "v1")}


def evictions(kind: str, reason: str, tier: str = "host") -> float:
    labels = {"tier": tier, "kind": kind, "reason": reason}
    return REGISTRY.get_sample_value("x2l_kv_evictions_total", labels) or 0


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Evictable]:
    return MemoryKV if request.param == "memory" else lambda: DiskKV(tmp_path, sync=False)


def test_the_budget_holds_at_every_put_and_the_latest_stay(make: Callable[[], Evictable]) -> None:
    with bounded(make()) as store:
        for chunk in range(40):
            store.put(key(chunk), bytes(100))
            assert store.held_bytes() <= 900
        assert store.held_bytes() >= 500
        assert 39 in chunks(store)


def test_what_questions_read_stays_and_what_was_fetched_ahead_does_not_count() -> None:
    before = evictions("l", "watermark")
    with bounded(MemoryKV()) as store:
        for chunk in range(9):
            store.put(key(chunk), bytes(100))
        for _ in range(2):
            store.get(key(1))
            store.get(key(0), want=Want(priority=Priority.PREFETCH))
        store.put(key(9), bytes(100))
        assert chunks(store) == {1, 6, 7, 8, 9}
    assert evictions("l", "watermark") - before == 5


def test_on_disk_a_read_of_a_question_is_noted_in_the_file(tmp_path: Path) -> None:
    with bounded(DiskKV(tmp_path, sync=False)) as store:
        for chunk in range(9):
            store.put(key(chunk), bytes(100))
        for number, path in enumerate(sorted((tmp_path / "ada").rglob("*.0"))):
            os.utime(path, (0, 1000 + number))
        store.get(key(0))
        store.get(key(3), want=Want(priority=Priority.WRITE))
        store.put(key(9), bytes(100))
        assert chunks(store) == {0, 6, 7, 8, 9}


def test_coarse_blocks_are_never_evicted_and_then_the_store_is_full(make: Callable[[], Evictable]) -> None:
    with bounded(make()) as store:
        store.put(key(0), bytes(100))
        for chunk in range(10):
            store.put(key(chunk, kind="h"), bytes(100))
        assert chunks(store) == set(range(10))
        for kind in ("l", "h", "x-1f"):
            with pytest.raises(StoreFull, match="1000 of 1000") as caught:
                store.put(key(10, kind=kind), bytes(100))
            assert caught.value.retryable
        with pytest.raises(BlockMissing):
            store.get(key(0))
        assert store.held_bytes() == 1000
        store.delete([key(4, kind="h")])
        store.put(key(10, kind="h"), bytes(100))


def test_coarse_blocks_go_if_the_operator_says_so() -> None:
    with bounded(MemoryKV(), replace(LIMITS, coarse_too=True)) as store:
        for chunk in range(30):
            store.put(key(chunk, kind="h"), bytes(100))
            assert store.held_bytes() <= 900


def test_a_tenant_that_fills_the_store_leaves_another_its_quota() -> None:
    before = evictions("l", "quota")
    with bounded(MemoryKV(), replace(LIMITS, quota_bytes=300)) as store:
        for chunk in range(3):
            store.put(key(chunk, tenant="bob"), bytes(100))
        for chunk in range(50):
            store.put(key(chunk), bytes(100))
        assert chunks(store, "bob") == {0, 1, 2}
        assert evictions("l", "quota") > before
        for chunk in range(50):
            store.put(key(chunk, tenant="bob"), bytes(100))
        assert len(chunks(store)) >= 3


def test_one_who_may_push_nobody_out_makes_room_of_its_own() -> None:
    with bounded(MemoryKV(), replace(LIMITS, quota_bytes=600)) as store:
        for chunk in range(5):
            store.put(key(chunk, tenant="bob"), bytes(100))
        for chunk in range(20):
            store.put(key(chunk), bytes(100))
            assert store.held_bytes() <= 1000
        assert (len(chunks(store, "bob")), 19 in chunks(store)) == (5, True)


def test_a_blob_larger_than_the_budget_is_refused_and_leaves_the_others(make: Callable[[], Evictable]) -> None:
    with bounded(make()) as store:
        with pytest.raises(StoreFull):
            store.put(key(0), bytes(1001))
        assert store.held_bytes() == 0
        store.put(key(0), bytes(100))


def test_many_threads_together_keep_to_the_budget(make: Callable[[], Evictable]) -> None:
    with bounded(make()) as store:
        seen = []

        def work(n: int) -> None:
            for chunk in range(20):
                store.put(key(chunk, video=f"v{n}"), bytes(50))
                seen.append(store.held_bytes())

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        assert max(seen) <= 1000


class Refusing(MemoryKV):
    """Full by its own measure, whatever it is believed to hold."""

    def put(self, key: BlockKey, blob: bytes) -> None:  # type: ignore[override]
        if self.held_bytes() + len(blob) > 400:
            raise StoreFull("no more")
        super().put(key, blob)


def test_a_store_that_refuses_earlier_than_thought_is_relieved() -> None:
    before = evictions("l", "room")
    with bounded(Refusing()) as store:
        for chunk in range(20):
            store.put(key(chunk), bytes(100))
        assert 19 in chunks(store)
    assert evictions("l", "room") > before


class Shared(MemoryKV):
    """Somebody else has the turn for a while, then loses ours."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[list[bool] | None] = []

    @contextmanager
    def turn(self) -> Iterator[Callable[[], bool] | None]:  # type: ignore[override]
        answers = self.turns.pop(0) if self.turns else [True] * 1000
        yield None if answers is None else lambda: answers.pop(0)


def test_who_does_not_get_the_turn_or_loses_it_evicts_nothing() -> None:
    store = Shared()
    for chunk in range(12):
        store.put(key(chunk), bytes(100))
    evictor = Evictor(store, LIMITS)
    store.turns = [None, [False]]
    assert evictor.run() is None
    assert evictor.run() is None
    assert store.held_bytes() == 1200
    assert evictor.run() == 700
    assert evictor.run() == 0


def test_blobs_of_videos_without_a_manifest_go_first() -> None:
    store = MemoryKV()
    for chunk in range(10):
        store.put(key(chunk, kind="h", video="gone"), bytes(50))
        store.put(key(chunk), bytes(50))
    assert Evictor(store, LIMITS, orphaned=lambda tenant, video: video == "gone").run() == 500
    assert {k.video for k in [*store.keys("ada", "gone"), *store.keys("ada", "v1")]} == {"v1"}


def test_a_store_full_of_what_must_stay_is_not_walked_at_every_put() -> None:
    class Walked(MemoryKV):
        walks = 0

        def entries(self):  # type: ignore[no-untyped-def]
            self.walks += 1
            return super().entries()

    store = Walked()
    with bounded(store, replace(LIMITS, budget_bytes=100_000)) as kept:
        for chunk in range(980):
            kept.put(key(chunk, kind="h"), bytes(100))
    assert store.walks < 10
