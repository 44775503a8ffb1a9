"""Several tiers as one store: where reads go, what is copied, what a deletion leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tests.arena import KEY
from tests.tiers import Place, block, damaged, soon
from x2l_cluster.errors import BlockMissing, InvalidInput, StoreFull, StoreLate, StoreUnavailable
from x2l_cluster.kv.store import Priority, Want
from x2l_cluster.kv.tiered import Rung, TieredKV, ladder
from x2l_cluster.kv.tiered.heat import Heat
from x2l_cluster.kv.tiered.store import Policy
from x2l_cluster.types import BlockKey, Kind, Tier

L = KEY
H = replace(KEY, kind="h")
X = replace(KEY, kind="x-1f")


class Tiers:
    """Host, remote and disk as tests see them, and the store over them."""

    def __init__(self, **policy: Any) -> None:
        self.host, self.remote, self.disk = Place(Tier.HOST), Place(Tier.REMOTE), Place(Tier.DISK)
        self.all = (self.host, self.remote, self.disk)
        self.store = TieredKV(ladder(self.all), policy=Policy(**policy))

    def where(self, key: BlockKey) -> str:
        """The tiers that hold a blob, by their first letters."""
        self.store.flush()
        return "".join(place.tier[0] for place in self.all if place.has(key))

    def open(self) -> None:
        for place in self.all:
            place.reads.set()
            place.writes.set()


@pytest.fixture
def tiers() -> Iterator[Tiers]:
    made = Tiers()
    yield made
    made.open()
    made.store.close()


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"x2l_kv_{name}", labels) or 0.0


# --- where things go ------------------------------------------------------------------------------------------------


def test_a_put_reaches_its_home_and_coarse_blocks_their_copies(tiers: Tiers) -> None:
    for key in (L, H, X):
        tiers.store.put(key, block(key))
    assert [tiers.where(key) for key in (L, H, X)] == ["r", "hrd", "hrd"]
    assert [tiers.store.route(kind).tier for kind in ("l", "h", "x-1f")] == [Tier.REMOTE, Tier.DISK, Tier.DISK]


def test_a_put_does_not_wait_for_copies(tiers: Tiers) -> None:
    tiers.host.writes.clear()
    tiers.remote.writes.clear()
    tiers.store.put(H, block(H))
    assert tiers.disk.has(H)
    assert not tiers.host.has(H)
    tiers.open()
    assert tiers.where(H) == "hrd"


def test_a_coarse_hit_in_a_slow_tier_is_copied_into_all_faster_ones(tiers: Tiers) -> None:
    tiers.disk.put(H, block(H))
    before = count("promotions_total", tier="host", kind="h"), count("promotions_total", tier="remote", kind="h")
    assert tiers.store.fetch(H).tier is Tier.DISK
    assert tiers.where(H) == "hrd"
    found = tiers.store.fetch(H)
    assert (found.tier, found.blob) == (Tier.HOST, block(H))
    assert tiers.disk.got[H] == 1
    after = count("promotions_total", tier="host", kind="h"), count("promotions_total", tier="remote", kind="h")
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1]


def test_fine_blocks_come_near_when_questions_select_them_often_enough() -> None:
    tiers = Tiers(warm_at=1.5)
    with tiers.store as store:
        store.put(L, block(L))
        for priority in (Priority.PREFETCH, Priority.WRITE):
            for _ in range(3):
                store.get(L, want=Want(priority=priority))
        assert tiers.where(L) == "r"
        assert store.fetch(L).tier is Tier.REMOTE
        assert tiers.where(L) == "r"
        assert store.fetch(L, want=Want(priority=Priority.FINE)).tier is Tier.REMOTE
        assert tiers.where(L) == "hr"
        assert store.fetch(L).tier is Tier.HOST


def test_a_selection_is_worth_half_after_every_half_life() -> None:
    now = 0.0
    heat = Heat(half_life_s=10, clock=lambda: now)
    assert [heat.add(L), heat.add(L), heat.add(H)] == [1, 2, 1]
    now = 10.0
    assert heat.add(L) == 2
    now = 1e6
    assert heat.add(L) == pytest.approx(1)


def test_the_coldest_are_forgotten_first() -> None:
    heat = Heat(half_life_s=10, most=2, clock=lambda: 0.0)
    for key in (L, H, L, X):
        heat.add(key)
    assert [heat.add(L), heat.add(H)] == [3, 1]


def test_memory_of_the_caller_is_filled_from_any_tier(tiers: Tiers) -> None:
    tiers.disk.put(H, block(H))
    for tier in (Tier.DISK, Tier.HOST):
        mine = bytearray(5000)
        found = tiers.store.fetch(H, memoryview(mine))
        assert (found.tier, found.blob, found.blob.obj) == (tier, block(H), mine)


@pytest.mark.parametrize(
    ("given", "homes"),
    [("rd", "rdd"), ("hr", "rrr"), ("hd", "ddd"), ("hrd", "rdd"), ("hh", "hhh"), ("hrrd", "rdd")],
)
def test_tiers_know_what_they_are_for(given: str, homes: str) -> None:
    places = [Place({tier[0]: tier for tier in Tier}[letter]) for letter in given]
    rungs = ladder(places)
    with TieredKV(rungs) as store:
        assert "".join(store.route(kind).tier[0] for kind in "lhx") == homes
        assert all(not rung.copies for rung in rungs[-1:])


def test_tiers_that_make_no_sense_are_refused() -> None:
    one, two = Place(Tier.HOST), Place(Tier.DISK)
    every = frozenset(Kind)
    with pytest.raises(InvalidInput, match="at least two"):
        ladder([one])
    with pytest.raises(InvalidInput, match="copies"):
        Rung(store=one, home=every, copies=every)
    with pytest.raises(InvalidInput, match="'l' need one home"):
        TieredKV([Rung(store=one, copies=every), Rung(store=two, home=every - {Kind.L})])
    with pytest.raises(InvalidInput, match="need one home"):
        TieredKV([Rung(store=one, home=every), Rung(store=two, copies=every)])


# --- what is wrong with a tier --------------------------------------------------------------------------------------


def test_nothing_unsound_is_copied(tiers: Tiers) -> None:
    tiers.store.put(H, damaged(block(H)))
    tiers.store.put(X, block(H))
    for key, bad in ((H, damaged(block(H))), (X, block(H))):
        assert tiers.where(key) == "d"
        assert tiers.store.get(key) == bad  # bytes in, bytes out
        assert tiers.where(key) == "d"


def test_a_damaged_copy_is_passed_over_and_replaced(tiers: Tiers) -> None:
    tiers.disk.put(H, block(H))
    tiers.remote.put(H, damaged(block(H)))
    before = count("misses_total", kind="h", reason="corrupt")
    found = tiers.store.fetch(H)
    assert (found.tier, found.blob) == (Tier.DISK, block(H))
    assert count("misses_total", kind="h", reason="corrupt") - before == 1
    assert tiers.where(H) == "hrd"
    assert tiers.remote.get(H) == block(H)


def test_a_tier_that_does_not_answer_is_passed_over_and_counted(tiers: Tiers) -> None:
    tiers.disk.put(H, block(H))
    tiers.host.failure = tiers.remote.failure = StoreUnavailable("down")
    before = count("reads_total", tier="remote", kind="h", result="unavailable")
    assert tiers.store.fetch(H).tier is Tier.DISK
    assert count("reads_total", tier="remote", kind="h", result="unavailable") - before == 1
    tiers.host.failure = tiers.remote.failure = None
    assert tiers.store.fetch(H).tier is Tier.DISK
    assert tiers.where(H) == "hrd"


def test_missing_is_said_only_when_every_tier_said_so(tiers: Tiers) -> None:
    with pytest.raises(BlockMissing):
        tiers.store.get(H)
    for place in tiers.all:
        for failure in (StoreLate("late"), StoreUnavailable("down")):
            place.failure = failure
            with pytest.raises(type(failure)):
                tiers.store.get(H)
        place.failure = None
    tiers.disk.failure = StoreUnavailable("down")  # it takes no fine blocks, so it cannot have had one
    with pytest.raises(BlockMissing):
        tiers.store.get(L)


def test_a_damaged_copy_is_no_answer_while_its_home_is_away(tiers: Tiers) -> None:
    tiers.remote.put(H, damaged(block(H)))
    tiers.disk.failure = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        tiers.store.get(H)


def test_a_copy_must_not_use_up_the_time_of_its_home(tiers: Tiers) -> None:
    tiers.disk.put(H, block(H))
    tiers.store.get(H, want=Want(size_bytes=1234, within_s=8.0))
    copy, home = tiers.remote.wanted[-1], tiers.disk.wanted[-1]
    assert copy.within_s is not None
    assert home.within_s is not None
    assert copy.within_s <= 4.0 < home.within_s <= 8.0
    assert (copy.size_bytes, home.size_bytes) == (1234, 1234)


def test_trouble_with_copies_is_not_the_writers(tiers: Tiers) -> None:
    for failure in (StoreUnavailable("down"), StoreFull("full")):
        tiers.host.failure = tiers.remote.failure = failure
        tiers.store.put(H, block(H))
        assert tiers.where(H) == "d"


def test_a_home_that_is_full_is_and_nothing_is_left(tiers: Tiers) -> None:
    tiers.remote.failure = StoreFull("OOM")
    with pytest.raises(StoreFull):
        tiers.store.put(L, block(L))
    tiers.disk.failure = StoreFull("no room")
    with pytest.raises(StoreFull):
        tiers.store.put(H, block(H))
    tiers.remote.failure = tiers.disk.failure = None
    assert [tiers.where(key) for key in (L, H)] == ["", ""]


def test_copies_over_the_cap_are_dropped_and_counted() -> None:
    tiers = Tiers(behind_bytes=len(block(H)))
    with tiers.store as store:
        other = replace(H, chunk=1)
        tiers.host.put(other, block(other, fill=9))  # what it replaces must not be read any more
        tiers.host.writes.clear()
        before = count("writes_total", tier="host", kind="h", result="dropped")
        store.put(H, block(H))
        assert count("pending_write_bytes", tier="host") == len(block(H))
        soon(lambda: count("pending_write_bytes", tier="remote") == 0)
        store.put(other, block(other))
        assert store.get(other) == block(other)
        tiers.open()
        assert count("writes_total", tier="host", kind="h", result="dropped") - before == 1
        assert (tiers.where(H), tiers.where(other)) == ("hrd", "rd")


def test_bytes_that_replace_others_are_read_at_once(tiers: Tiers) -> None:
    for key in (H, L):
        tiers.store.put(key, block(key))
        tiers.store.flush()
        tiers.store.get(key)
        assert "h" in tiers.where(key)
        tiers.host.writes.clear()
        tiers.store.put(key, block(key, fill=2))
        assert tiers.store.get(key) == block(key, fill=2)
        tiers.open()
        tiers.store.flush()
        assert tiers.store.get(key) == block(key, fill=2)


def test_a_fetch_that_began_before_a_put_does_not_bring_back_what_was_replaced(tiers: Tiers) -> None:
    tiers.disk.put(H, block(H))
    tiers.disk.reads.clear()
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(tiers.store.get, H)
        assert tiers.disk.reading.wait(30)
        tiers.store.put(H, block(H, fill=2))
        tiers.open()
        assert early.result() == block(H)
    assert tiers.where(H) == "hrd"
    assert tiers.store.get(H) == block(H, fill=2)


# --- deleting -------------------------------------------------------------------------------------------------------


def deletions() -> list[Any]:
    return [
        pytest.param(lambda store: store.delete([H]), id="key"),
        pytest.param(lambda store: store.delete_video("ada", "v1"), id="video"),
    ]


@pytest.mark.parametrize("delete", deletions())
def test_deleting_counts_what_is_at_home_and_clears_every_copy(tiers: Tiers, delete: Any) -> None:
    tiers.store.put(H, block(H))
    assert tiers.where(H) == "hrd"
    assert delete(tiers.store) == len(block(H))
    assert tiers.where(H) == ""


@pytest.mark.parametrize("delete", deletions())
def test_a_copy_that_waits_brings_nothing_back(tiers: Tiers, delete: Any) -> None:
    first = replace(H, video="v0")
    tiers.host.writes.clear()
    tiers.store.put(first, block(first))
    tiers.store.put(H, block(H))
    assert tiers.host.writing.wait(30)
    delete(tiers.store)
    tiers.open()
    assert (tiers.where(first), tiers.where(H)) == ("hrd", "")
    with pytest.raises(BlockMissing):
        tiers.store.get(H)


@pytest.mark.parametrize("delete", deletions())
def test_a_copy_that_is_being_written_is_waited_for(tiers: Tiers, delete: Any) -> None:
    tiers.host.writes.clear()
    tiers.store.put(H, block(H))
    assert tiers.host.writing.wait(30)
    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(delete, tiers.store)
        soon(lambda: not tiers.disk.has(H))
        tiers.open()
        assert deleting.result() == len(block(H))
    assert tiers.where(H) == ""


@pytest.mark.parametrize("delete", deletions())
def test_a_fetch_in_the_air_brings_nothing_back(tiers: Tiers, delete: Any) -> None:
    tiers.disk.put(H, block(H))
    tiers.disk.reads.clear()
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(tiers.store.get, H)
        assert tiers.disk.reading.wait(30)
        delete(tiers.store)
        tiers.open()
        assert early.result() == block(H)
    assert tiers.where(H) == ""
    with pytest.raises(BlockMissing):
        tiers.store.get(H)


@pytest.mark.parametrize("delete", deletions())
def test_a_tier_that_does_not_answer_does_not_save_the_others(tiers: Tiers, delete: Any) -> None:
    tiers.store.put(H, block(H))
    assert tiers.where(H) == "hrd"

    def away(*_: object) -> int:
        raise StoreUnavailable("down")

    for name in ("delete", "delete_video", "keys"):
        setattr(tiers.remote, name, away)
    with pytest.raises(StoreUnavailable, match="down"):
        delete(tiers.store)
    assert not tiers.host.has(H)
    assert not tiers.disk.has(H)
    for name in ("delete", "delete_video", "keys"):
        delattr(tiers.remote, name)
    delete(tiers.store)
    assert tiers.where(H) == ""


def test_orphaned_copies_are_found_by_a_sweep(tiers: Tiers) -> None:
    tiers.host.put(H, block(H))
    assert list(tiers.store.keys("ada", "v1")) == [H]
    assert tiers.store.delete([H]) == 0
    assert tiers.where(H) == ""


# --- one fetch ------------------------------------------------------------------------------------------------------


def test_many_who_want_a_block_share_one_fetch(tiers: Tiers) -> None:
    tiers.store.put(L, block(L))
    tiers.remote.reads.clear()
    before = count("fan_in_count", kind="l"), count("fan_in_sum", kind="l")
    with ThreadPoolExecutor(20) as pool:
        readers = [pool.submit(tiers.store.get, L, memoryview(bytearray(5000))) for _ in range(20)]
        soon(lambda: bool(tiers.store._flights._air) and tiers.store._flights._air[L].readers == 20)
        tiers.open()
        assert all(reader.result() == block(L) for reader in readers)
    assert tiers.remote.got[L] == 1
    soon(lambda: count("fan_in_count", kind="l") - before[0] == 1)
    assert count("fan_in_sum", kind="l") - before[1] == 20


def test_who_cannot_wait_leaves_and_the_fetch_lands_all_the_same(tiers: Tiers) -> None:
    tiers.store.put(L, block(L))
    tiers.remote.reads.clear()
    before = count("stragglers_total", kind="l")
    for _ in range(2):
        with pytest.raises(StoreLate, match=r"0\.01 s"):
            tiers.store.get(L, want=Want(within_s=0.01))
    tiers.open()
    soon(lambda: count("stragglers_total", kind="l") - before == 1)
    assert tiers.where(L) == "hr"
    assert tiers.remote.got[L] == 1
    assert tiers.store.fetch(L).tier is Tier.HOST


def test_an_error_reaches_all_who_wait_and_is_not_remembered(tiers: Tiers) -> None:
    tiers.remote.failure = StoreUnavailable("down")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="down"):
            tiers.store.get(L)
    assert tiers.remote.got[L] == 2
    tiers.remote.failure = None
    tiers.store.put(L, block(L))
    assert tiers.store.get(L) == block(L)


# --- hints ----------------------------------------------------------------------------------------------------------


def test_a_hint_brings_a_block_near_without_warming_it() -> None:
    tiers = Tiers(warm_at=2.0)
    with tiers.store as store:
        store.put(L, block(L))
        store.prefetch([L, replace(L, chunk=7)])
        assert tiers.where(L) == "hr"
        assert tiers.remote.wanted[-1].priority is Priority.PREFETCH
        tiers.host.delete([L])
        assert store.fetch(L).tier is Tier.REMOTE
        assert tiers.where(L) == "r"
        store.prefetch([L])
        store.flush()
        store.prefetch([L])  # it is there already
        store.flush()
        assert tiers.remote.got[L] == 3
        store.prefetch([H])


def test_a_reader_joins_the_fetch_of_a_hint(tiers: Tiers) -> None:
    tiers.store.put(L, block(L))
    tiers.remote.reads.clear()
    tiers.store.prefetch([L])
    assert tiers.remote.reading.wait(30)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(tiers.store.get, L)
        soon(lambda: tiers.store._flights._air[L].readers == 1)
        tiers.open()
        assert reader.result() == block(L)
    assert tiers.remote.got[L] == 1


def test_hints_are_bounded_and_end_with_the_store(tiers: Tiers) -> None:
    keys = [replace(L, chunk=chunk) for chunk in range(500)]
    for key in keys:
        tiers.remote.put(key, block(key))
    tiers.remote.reads.clear()
    tiers.store.prefetch(keys)
    assert len(tiers.store._ahead._waiting) == 64
    assert tiers.remote.reading.wait(30)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(tiers.store.close)
        soon(lambda: tiers.store._ahead._is_closed)
        tiers.open()
        closing.result()
    tiers.store.flush()
    assert sum(tiers.remote.got.values()) <= 2


def test_hints_are_dropped_while_questions_wait(tiers: Tiers) -> None:
    keys = [replace(L, chunk=chunk) for chunk in range(9)]
    for key in keys:
        tiers.remote.put(key, block(key))
    tiers.remote.reads.clear()
    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(tiers.store.get, key) for key in keys[:8]]
        soon(lambda: len(tiers.store._flights) == 8)
        tiers.store.prefetch(keys[8:])
        tiers.store._ahead.flush()
        tiers.open()
        for reader in readers:
            reader.result()
    assert tiers.remote.got[keys[8]] == 0


# --- life -----------------------------------------------------------------------------------------------------------


def test_closing_writes_what_waits() -> None:
    tiers = Tiers()
    tiers.host.writes.clear()
    tiers.store.put(H, block(H))
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(tiers.store.close)
        tiers.open()
        closing.result()
    assert tiers.host.has(H)
    assert tiers.remote.has(H)


def test_a_closed_store_fetches_nothing() -> None:
    tiers = Tiers()
    tiers.store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        tiers.store.get(L)
    tiers.store.prefetch([L])
    tiers.store.flush()
    tiers.store.put(H, block(H))  # the tiers decide; copies are not waited for any more
    assert tiers.disk.has(H)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_is_told_to_open_its_own() -> None:
    """It has none of the threads that fetch."""
    with Tiers().store as store:
        store.put(L, block(L))
        store.get(L)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            told = b""
            for call in (lambda: store.get(L), lambda: store.put(L, block(L)), lambda: store.delete([L])):
                try:
                    call()
                except StoreUnavailable as error:
                    told += b"." if "fork" in str(error) else b"?"
            store.prefetch([L])
            os.write(write, told)
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 10) == b"..."
        os.close(read)
        os.close(write)
        assert store.get(L) == block(L)
