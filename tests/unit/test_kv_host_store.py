"""What only the host tier has: leases, eviction in order, places that are written into, files that are checked."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.arena import KEY, PAGE, checked, fill, fill_up, in_shared_memory
from x2l_cluster.errors import BlockCorrupt, BlockMissing, InvalidInput, StoreFull, StoreUnavailable
from x2l_cluster.kv.host import HostKV, remove
from x2l_cluster.kv.host import arena as arena_module
from x2l_cluster.kv.host.layout import Layout, Word


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arena"


@pytest.fixture
def store(path: Path) -> Iterator[HostKV]:
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE, patience_s=0.5) as made, checked(made):
        yield made


def other(store: HostKV, **more: object) -> HostKV:
    return HostKV(store._arena.path, budget_bytes=64 * PAGE, page_bytes=PAGE, **more)


def test_two_stores_of_one_path_share_blobs(store: HostKV) -> None:
    with other(store) as second:
        store.put(KEY, b"abc")
        assert second.get(KEY) == b"abc"
        second.put(KEY, b"defg")
        assert store.get(KEY) == b"defg"
        assert store.get(KEY, memoryview(bytearray(10))) == b"defg"
        store.delete([KEY])
        with pytest.raises(BlockMissing):
            second.get(KEY)
        with pytest.raises(BlockMissing):
            second.get(KEY, memoryview(bytearray(10)))


def test_hashes_that_meet_by_chance_or_malice_mix_nothing_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("names", "store"):
        monkeypatch.setattr(f"x2l_cluster.kv.host.{module}.hash_of", lambda text: 7)
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store:
        theirs, elsewhere = replace(KEY, tenant="bob"), replace(KEY, video="v2")
        for key in (KEY, theirs, elsewhere):
            store.put(key, fill(key, 100))
        for key in (KEY, theirs, elsewhere):
            assert store.get(key) == fill(key, 100)
        assert list(store.keys("ada", "v1")) == [KEY]
        assert (store.held_bytes("ada"), store.held_bytes("bob")) == (200, 100)
        assert store.delete_video("ada", "v1") == 100
        with pytest.raises(BlockMissing):
            store.get(KEY)
        assert store.get(theirs) == fill(theirs, 100)
        store.delete([elsewhere])
        assert list(store.keys("bob", "v1")) == [theirs]


def test_what_was_deleted_under_a_lease_is_seen_by_its_holder_only(store: HostKV) -> None:
    store.put(KEY, b"abc")
    held = store.get(KEY)
    store.delete([KEY])
    with pytest.raises(BlockMissing):
        store.get(KEY)
    with pytest.raises(BlockMissing):  # its place is remembered, and still holds it
        store.get(KEY, memoryview(bytearray(3)))
    assert held == b"abc"
    assert store.held_bytes() == 0


def test_a_view_lies_in_the_arena_and_holds_its_lease(store: HostKV) -> None:
    store.put(KEY, fill(KEY, 5000))
    view = store.get(KEY)
    part = view[100:200]
    assert store.stats().leases == 1
    del view
    gc.collect()
    assert store.stats().leases == 1
    assert part == fill(KEY, 5000)[100:200]
    del part
    gc.collect()
    assert store.stats().leases == 0


def test_a_lease_ends_with_its_block(store: HostKV) -> None:
    store.put(KEY, b"abc")
    with store.lease(KEY) as view:
        assert store.stats().leases == 1
        assert (view, view.readonly) == (b"abc", True)
    assert store.stats().leases == 0
    with pytest.raises(ValueError, match="released"):
        view[0]
    with pytest.raises(BlockMissing), store.lease(replace(KEY, chunk=9)):
        raise AssertionError


def test_a_lease_lasts_as_long_as_anything_derived_from_its_view(store: HostKV) -> None:
    store.put(KEY, b"abc")
    with store.lease(KEY) as view:
        kept = memoryview(view)[1:]
    assert store.stats().leases == 1
    assert kept == b"bc"
    kept.release()
    del kept, view
    gc.collect()
    assert store.stats().leases == 0


def test_the_coldest_go_first(store: HostKV) -> None:
    keys = fill_up(store, 4 * PAGE - 100)
    assert len(keys) == 16
    assert [key.chunk for key in keys] == list(range(1, 17))
    store.get(keys[0])
    gc.collect()
    store.put(KEY, bytes(4 * PAGE - 100))
    there = set(store.keys("ada", "fill"))
    assert keys[0] in there
    assert keys[1] not in there


def test_fine_goes_before_the_score_index_and_that_before_coarse(store: HostKV) -> None:
    size = 4 * PAGE - 100
    order = ["h", "x-1f", "l", "other", "h", "x-1f", "l", "l"] * 2
    keys = [replace(KEY, kind=kind, chunk=chunk) for chunk, kind in enumerate(order)]
    for key in keys:
        store.put(key, fill(key, size))
    gone = []
    for chunk in range(16):
        store.put(replace(KEY, video="new", kind="zzz", chunk=chunk), bytes(size))
        there = set(store.keys("ada", "v1"))
        gone += [key for key in keys if key not in there and key not in gone]
    rank = {"l": 0, "x-1f": 1, "h": 2, "other": 3}
    assert gone == sorted(keys, key=lambda key: (rank[key.kind], key.chunk))
    assert store.stats().evicted == {"l": 6, "x": 4, "h": 4, "other": 2}


def test_what_is_leased_is_never_evicted(store: HostKV) -> None:
    keys = fill_up(store, 4 * PAGE - 100)
    with other(store) as second, ExitStack() as leases:
        views = [leases.enter_context((second if n % 2 else store).lease(key)) for n, key in enumerate(keys[:-1])]
        for chunk in range(5):
            store.put(replace(KEY, chunk=chunk), bytes(PAGE))
        with pytest.raises(StoreFull, match=r"ada/v1/.* being read or written"):
            store.put(KEY, bytes(8 * PAGE))
        for key, view in zip(keys, views, strict=False):
            assert view == fill(key, 4 * PAGE - 100)
        with pytest.raises(BlockMissing):
            store.get(KEY)
    store.put(KEY, bytes(8 * PAGE))
    assert store.stats().rebuilt == 0


def test_a_blob_larger_than_the_arena_is_refused_and_nothing_else_lost(store: HostKV) -> None:
    store.put(KEY, b"abc")
    with pytest.raises(StoreFull, match="larger than the arena"):
        store.put(replace(KEY, chunk=1), bytes(64 * PAGE))
    assert store.get(KEY) == b"abc"


def test_the_budget_is_never_exceeded(store: HostKV) -> None:
    for chunk in range(200):
        store.put(replace(KEY, chunk=chunk), bytes(chunk * 37 % (9 * PAGE)))
        stats = store.stats()
        assert stats.held_bytes <= stats.budget_bytes - stats.free_bytes <= stats.budget_bytes


def test_many_small_blobs_run_out_of_slots_and_the_coldest_make_room(store: HostKV) -> None:
    for chunk in range(200):
        store.put(replace(KEY, chunk=chunk), b"x")
    assert store.get(replace(KEY, chunk=199)) == b"x"
    assert store.stats().blobs == store._arena.layout.slots


def test_a_reserved_place_is_invisible_until_it_is_left(store: HostKV) -> None:
    with store.reserve(KEY, 3) as room:
        room[:] = b"abc"
        with pytest.raises(BlockMissing):
            store.get(KEY)
        assert store.held_bytes() == 0
    assert store.get(KEY) == b"abc"


def test_a_reserved_place_is_given_back_after_an_error(store: HostKV) -> None:
    free = store.stats().free_bytes
    with pytest.raises(RuntimeError, match="fetch"), store.reserve(KEY, 5 * PAGE):
        raise RuntimeError("fetch failed")
    with pytest.raises(BlockMissing):
        store.get(KEY)
    assert store.stats().free_bytes == free


def test_a_place_that_is_being_written_to_is_nobody_elses(store: HostKV) -> None:
    with other(store) as second, store.reserve(KEY, 40 * PAGE) as room:
        room[:] = b"m" * len(room)
        for chunk in range(20):
            second.put(replace(KEY, video="v2", chunk=chunk), b"o" * 5 * PAGE)
            store.put(replace(KEY, video="v3", chunk=chunk), b"t" * 5 * PAGE)
        assert room == b"m" * len(room)


def test_closing_waits_for_nobody_and_a_writer_then_learns_of_it(store: HostKV) -> None:
    def write(second: HostKV) -> None:
        with second.reserve(KEY, 30 * PAGE) as room:
            second.close()
            store.put(replace(KEY, chunk=1), bytes(20 * PAGE))
            with pytest.raises(StoreFull):  # the place is still the writer's
                store.put(replace(KEY, chunk=2), bytes(40 * PAGE))
            room[:] = bytes(30 * PAGE)

    with other(store) as second, pytest.raises(StoreUnavailable):
        write(second)
    store.put(replace(KEY, chunk=2), bytes(60 * PAGE))
    assert store.stats().free_bytes < 4 * PAGE


def test_hits_and_misses_are_those_of_readers(store: HostKV) -> None:
    store.put(KEY, b"abc")
    store.put(KEY, b"abc")
    store.get(KEY)
    store.get(KEY, memoryview(bytearray(3)))
    with store.lease(KEY):
        pass
    with pytest.raises(BlockMissing):
        store.get(replace(KEY, chunk=1))
    stats = store.stats()
    assert (stats.hits, stats.misses) == (3, 1)


def test_blobs_are_looked_at_once_when_they_are_put(path: Path) -> None:
    seen = []

    def admit(key: object, blob: memoryview) -> None:
        seen.append(bytes(blob))
        if blob == b"bad":
            raise BlockCorrupt("not this one")

    with HostKV(path, budget_bytes=16 * PAGE, page_bytes=PAGE, admit=admit) as store, checked(store):
        store.put(KEY, b"good")
        store.get(KEY)
        with pytest.raises(BlockCorrupt):
            store.put(KEY, b"bad")
        assert seen == [b"good", b"bad"]
        assert store.get(KEY) == b"good"


def test_a_reader_that_is_overtaken_during_its_copy_reads_again(store: HostKV) -> None:
    store.put(KEY, b"old")
    store.get(KEY, memoryview(bytearray(3)))
    holds, turns = store._tables.holds, []

    def overtaken(slot: int, generation: int) -> bool:
        turns.append(slot)
        if len(turns) == 1:  # the bytes are copied; now their place goes to another blob
            store.delete([KEY])
            store.put(replace(KEY, chunk=5), b"foe")
            store.put(KEY, b"new")
        return holds(slot, generation)

    store._tables.holds = overtaken  # type: ignore[method-assign]
    assert store.get(KEY, memoryview(bytearray(3))) == b"new"
    assert len(turns) == 2


def test_a_slot_taken_away_under_a_lease_is_noticed(store: HostKV) -> None:
    def take_away() -> None:
        with store._arena.changing() as tables:
            (slot,) = tables.ready()
            tables._index.remove(slot)
            tables._free(slot)  # what no sound process does

    store.put(KEY, b"abc")
    with pytest.raises(BlockMissing, match="taken away"), store.lease(KEY):
        take_away()


def test_an_interruption_inside_a_change_heals(store: HostKV) -> None:
    def interrupted() -> None:
        with store._arena.changing() as tables:
            tables._index.remove(0)
            raise KeyboardInterrupt

    store.put(KEY, b"abc")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.get(KEY) == b"abc"
    assert store.stats().rebuilt == 1


def test_who_comes_first_mends_damaged_tables(path: Path) -> None:
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store:
        keys = [replace(KEY, chunk=chunk) for chunk in range(5)]
        for key in keys:
            store.put(key, fill(key, 5000))
        layout = store._arena.layout
    data = bytearray(path.read_bytes())
    data[layout.buckets_at : layout.backed_at] = os.urandom(layout.backed_at - layout.buckets_at)
    struct.pack_into("<4Q", data, Word.TICK * 8, 2, 3, 4, 5)
    path.write_bytes(data)
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store, checked(store):
        for key in keys:
            assert store.get(key) == fill(key, 5000)


def test_slots_that_make_no_sense_are_misses(path: Path) -> None:
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store:
        keys = [replace(KEY, chunk=chunk) for chunk in range(6)]
        for key in keys:
            store.put(key, fill(key, 5000))
        at = store._arena.layout.slots_at
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, at + 1 * 64 + 16, 63 | 2 << 32)  # reaches past the end
    struct.pack_into("<Q", data, at + 2 * 64 + 16, 1 | 2 << 32)  # overlaps another
    struct.pack_into("<Q", data, at + 3 * 64 + 24, 1 << 60)  # longer than its pages
    path.write_bytes(data)
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store, checked(store):
        found = set(store.keys("ada", "v1"))
        assert {keys[0], keys[4], keys[5]} <= found
        for key in found:
            assert store.get(key) == fill(key, 5000)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:1000],
        lambda data: b"\0" * len(data),
        lambda data: b"y" + data[1:],
        lambda data: data[:8] + struct.pack("<I", 99) + data[12:],
        lambda data: data[:20] + b"\xff" + data[21:],
        lambda data: data + b"\0" * 4096,
    ],
    ids=["empty", "cut", "zeros", "magic", "version", "sizes", "longer"],
)
def test_a_damaged_file_is_made_anew_if_nobody_uses_it_and_refused_otherwise(path: Path, damage: object) -> None:
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store:
        store.put(KEY, b"abc")
        whole = path.read_bytes()
        bad = damage(whole)  # type: ignore[operator]
        if len(bad) == len(whole):  # cutting a file that is mapped kills whoever touches it
            with path.open("r+b") as file:
                file.write(bad[:64])
            with pytest.raises(StoreUnavailable, match=r"cannot be used: it.* other processes have it open"):
                other(store)
            with path.open("r+b") as file:
                file.write(whole[:64])
    path.write_bytes(bad)
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store, checked(store):
        with pytest.raises(BlockMissing):
            store.get(KEY)
        store.put(KEY, b"new")
        assert store.get(KEY) == b"new"


def test_another_budget_makes_a_new_arena_only_when_nobody_uses_the_old_one(path: Path) -> None:
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store:
        store.put(KEY, b"abc")
        with HostKV(path, budget_bytes=32 * PAGE, page_bytes=PAGE) as second:
            assert second.budget_bytes == 64 * PAGE
            assert second.get(KEY) == b"abc"
    with HostKV(path, budget_bytes=32 * PAGE, page_bytes=PAGE) as store:
        assert store.budget_bytes == 32 * PAGE
        assert list(store.keys("ada", "v1")) == []


def test_a_new_arena_does_not_hurt_who_looks_at_the_old_one(path: Path) -> None:
    """A forked child, say, which holds no lock."""
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store:
        store.put(KEY, fill(KEY, 5000))
        unguarded = store._arena.pages
    with HostKV(path, budget_bytes=32 * PAGE, page_bytes=PAGE) as store:
        store.put(KEY, b"abc")
        assert unguarded[:5000].tobytes() == fill(KEY, 5000)


def test_blobs_outlive_all_their_users(path: Path) -> None:
    for _ in range(3):
        with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store:
            store.put(KEY, b"abc")
    with HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE) as store:
        assert store.get(KEY) == b"abc"


def test_a_view_outlives_its_store_and_keeps_its_lease(store: HostKV) -> None:
    with other(store) as second:
        second.put(KEY, fill(KEY, 5 * PAGE))
        view = second.get(KEY)
    with pytest.raises(StoreUnavailable, match="closed"):
        second.get(KEY)
    store.put(replace(KEY, chunk=1), bytes(50 * PAGE))
    assert view == fill(KEY, 5 * PAGE)
    del view
    gc.collect()
    store.put(replace(KEY, chunk=2), bytes(63 * PAGE))
    with pytest.raises(BlockMissing):
        store.get(KEY)


def test_a_removed_arena_serves_those_who_have_it_and_the_next_one_is_new(store: HostKV) -> None:
    store.put(KEY, b"abc")
    remove(store._arena.path)
    with other(store) as second:
        assert store.get(KEY) == b"abc"
        with pytest.raises(BlockMissing):
            second.get(KEY)
    remove(store._arena.path)
    remove(store._arena.path)


def test_a_process_that_holds_the_tables_for_long_is_waited_for_in_bounds(store: HostKV) -> None:
    store.put(KEY, b"abc")
    assert store.get(KEY) == b"abc"
    with other(store) as second, second._arena.mutex.held():
        assert store.get(KEY) == b"abc"  # a reader that knows the place needs no lock
        with pytest.raises(StoreUnavailable, match=r"held by another process for 0.5 s"):
            store.put(KEY, b"abcd")
    store.put(KEY, b"abcd")


def test_places_of_others_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"")
    path.chmod(0o666)
    with pytest.raises(StoreUnavailable, match="only this user may touch"):
        HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE)
    path.unlink()
    path.symlink_to("elsewhere")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        HostKV(path, budget_bytes=64 * PAGE, page_bytes=PAGE)


@pytest.mark.parametrize(
    ("budget", "page"), [(0, 4096), (4095, 4096), (1 << 20, 5000), (1 << 20, 512), (1 << 60, 4096)]
)
def test_impossible_sizes_are_refused(path: Path, budget: int, page: int) -> None:
    with pytest.raises(InvalidInput, match="pages"):
        HostKV(path, budget_bytes=budget, page_bytes=page)


def test_a_budget_the_filesystem_cannot_have_is_refused(path: Path) -> None:
    with pytest.raises(StoreFull, match="does not fit into"):
        HostKV(path, budget_bytes=1 << 50, page_bytes=1 << 20)


def test_without_a_gpu_nothing_is_registered(store: HostKV, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert store.register() is False


@pytest.mark.parametrize("prefault", [False, True])
def test_memory_is_taken_when_it_is_needed_or_at_once(prefault: bool) -> None:
    with in_shared_memory() as path, HostKV(path, budget_bytes=1 << 20, prefault=prefault) as store:
        before = path.stat().st_blocks * 512
        assert (before >= store.budget_bytes) == prefault
        store.put(KEY, bytes(100_000))
        taken = path.stat().st_blocks * 512 - before
        assert taken == 0 if prefault else 100_000 <= taken < 200_000


def test_layouts_are_told_apart_from_anything_else() -> None:
    layout = Layout.of(100 << 20, 16 << 10)
    assert Layout.unpack(layout.pack(), layout.total_bytes) == layout
    for at in range(len(layout.pack())):
        front = bytearray(layout.pack())
        front[at] ^= 0x41
        assert isinstance(Layout.unpack(bytes(front), layout.total_bytes), str)
    assert isinstance(Layout.unpack(layout.pack(), layout.total_bytes - 1), str)
    assert arena_module.Layout is Layout
