"""What every KVStore promises, run over all of them; the remote ones against a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from tests.wire import valkey_cluster
from x2l_cluster.errors import BlockCorrupt, BlockMissing, InvalidInput
from x2l_cluster.kv.bounded import BoundedKV
from x2l_cluster.kv.disk import DiskKV
from x2l_cluster.kv.evict import Limits
from x2l_cluster.kv.evictor import Evictable, Evictor
from x2l_cluster.kv.faulty import FaultPlan, FaultyKV
from x2l_cluster.kv.host import HostKV
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.kv.routed import RoutedKV
from x2l_cluster.kv.store import KVStore
from x2l_cluster.kv.tiered import TieredKV, ladder
from x2l_cluster.types import BlockKey, Kind, Tier

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=0)

TIERS = [
    "host-remote-disk",
    "host-disk",
    "memory-remote",
    "remote-disk",
    "unchecked-memory-disk",
    "unchecked-host-disk",
]
"""*Unchecked* ones keep copies of anything; the others only of real blobs, which those of this suite are not."""
KINDS = [
    "memory",
    "host",
    "disk",
    "disk-unsynced",
    "remote",
    "cluster",
    "routed",
    "faulty",
    "bounded",
    "routed-tiers",
    *TIERS,
]


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with valkey_cluster() as servers:
        yield f"{servers[0].url}?cluster=true"


@pytest.fixture
def empty_cluster(cluster_url: str) -> str:
    with redis.RedisCluster.from_url(cluster_url.partition("?")[0]) as client:
        client.flushdb(target_nodes=redis.RedisCluster.PRIMARIES)
    return cluster_url


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KVStore]:
    def remote() -> RemoteKV:
        return RemoteKV(request.getfixturevalue("empty_valkey"))

    def host() -> HostKV:
        return HostKV(tmp_path / "arena", budget_bytes=32 << 20)

    def tiers(name: str) -> TieredKV:
        places = {"memory": MemoryKV, "host": host, "disk": lambda: DiskKV(tmp_path / "kv"), "remote": remote}
        stores = [places[place]() for place in name.removeprefix("unchecked-").split("-")]
        check = {"check": lambda key, blob: None} if name.startswith("unchecked-") else {}
        return TieredKV(ladder(stores), node=stores[0].node if isinstance(stores[0], HostKV) else None, **check)

    makers: dict[str, Callable[[], KVStore]] = {
        "memory": MemoryKV,
        "host": host,
        "disk": lambda: DiskKV(tmp_path),
        "disk-unsynced": lambda: DiskKV(tmp_path, sync=False),
        "remote": remote,
        "cluster": lambda: RemoteKV(request.getfixturevalue("empty_cluster")),
        "routed": lambda: RoutedKV({Kind.L: remote(), Kind.INDEX: MemoryKV()}, DiskKV(tmp_path)),
        "bounded": lambda: bounded(DiskKV(tmp_path)),
        "faulty": lambda: FaultyKV(RoutedKV({Kind.L: remote()}, DiskKV(tmp_path)), FaultPlan()),
        "routed-tiers": lambda: RoutedKV({Kind.H: MemoryKV()}, tiers("unchecked-host-disk")),
        **{name: lambda name=name: tiers(name) for name in TIERS},
    }
    with makers[request.param]() as made:
        yield made


def bounded(store: Evictable) -> BoundedKV:
    return BoundedKV(store, Evictor(store, Limits(budget_bytes=32 << 20)))


def blob(size: int, fill: int = 7) -> bytes:
    return bytes([fill]) * size


def test_what_was_put_is_got(store: KVStore) -> None:
    for kind in ("l", "h", "x-1f"):
        key = replace(KEY, kind=kind)
        store.put(key, b"abc" + kind.encode())
        got = store.get(key)
        assert got == b"abc" + kind.encode()
        assert got.readonly


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_may_be_put_and_changed_afterwards(store: KVStore, wrap: type) -> None:
    mine = bytearray(b"x" * 1000)
    store.put(KEY, wrap(mine))
    mine[:] = b"y" * 1000
    assert store.get(KEY) == b"x" * 1000


def test_a_large_blob_comes_back(store: KVStore) -> None:
    large = bytes(range(256)) * (12 << 10)
    store.put(KEY, large)
    assert store.get(KEY) == large
    assert store.held_bytes() == len(large)


@pytest.mark.parametrize("size", [0, 1, 5000, 3 << 20])
def test_a_blob_goes_into_the_memory_it_is_given(store: KVStore, size: int) -> None:
    store.put(KEY, blob(size))
    mine = bytearray(size + 10)
    got = store.get(KEY, memoryview(mine))
    assert got == blob(size)
    assert (got.readonly, got.obj) == (True, mine)
    assert mine == blob(size) + bytes(10)
    exact = memoryview(bytearray(size))
    assert store.get(KEY, into=exact) == exact == blob(size)
    with pytest.raises(BlockMissing):
        store.get(replace(KEY, chunk=1), memoryview(mine))


def test_a_blob_larger_than_the_memory_it_is_given_is_another_one(store: KVStore) -> None:
    store.put(KEY, blob(3 << 20))
    for size in (0, 100, (3 << 20) - 1):
        with pytest.raises(BlockCorrupt, match=r"ada/v1.* has 3145728 bytes, but only"):
            store.get(KEY, memoryview(bytearray(size)))
    assert store.get(KEY) == blob(3 << 20)


def test_what_is_held_on_to_stays_as_it_is(store: KVStore) -> None:
    keys = [replace(KEY, chunk=chunk) for chunk in range(12)]
    for key in keys:
        store.put(key, blob(200_000, fill=key.chunk))
    held = [store.get(key)[1000:2000] for key in keys]
    for key in keys:
        store.get(key)
    assert held == [blob(1000, fill=key.chunk) for key in keys]


def test_what_is_not_there_is_missing(store: KVStore) -> None:
    with pytest.raises(BlockMissing, match="ada/v1/r1/1/l/0/0"):
        store.get(KEY)


@pytest.mark.parametrize("change", ["tenant", "video", "recipe", "epoch", "kind", "chunk", "stripe"])
def test_every_part_of_the_key_counts(store: KVStore, change: str) -> None:
    other = replace(KEY, **{change: getattr(KEY, change) + (1 if change in ("epoch", "chunk", "stripe") else "2")})
    store.put(KEY, b"mine")
    with pytest.raises(BlockMissing):
        store.get(other)
    store.put(other, b"other")
    assert store.get(KEY) == b"mine"
    assert store.get(other) == b"other"


def test_putting_again_changes_nothing(store: KVStore) -> None:
    for _ in range(3):
        store.put(KEY, blob(100))
    assert store.held_bytes() == 100
    assert list(store.keys("ada", "v1")) == [KEY]


def test_putting_other_bytes_replaces_them_and_leaves_readers_alone(store: KVStore) -> None:
    store.put(KEY, blob(100))
    before = store.get(KEY)
    store.put(KEY, blob(50, fill=8))
    assert before == blob(100)
    assert store.get(KEY) == blob(50, fill=8)
    assert store.held_bytes() == 50


def test_deleting_frees_what_was_there_and_leaves_readers_alone(store: KVStore) -> None:
    keys = [replace(KEY, chunk=chunk, kind=kind) for chunk in range(3) for kind in ("l", "h", "x-1")]
    for key in keys:
        store.put(key, blob(10))
    held = store.get(keys[0])
    assert store.delete([*keys[:4], replace(KEY, chunk=99), *keys[:1]]) == 40
    assert held == blob(10)
    with pytest.raises(BlockMissing):
        store.get(keys[0])
    assert set(store.keys("ada", "v1")) == set(keys[4:])
    assert store.held_bytes() == 50
    assert store.delete([]) == 0


def test_deleting_a_video_takes_all_recipes_and_epochs_and_nothing_else(store: KVStore) -> None:
    mine = [
        replace(KEY, recipe=recipe, epoch=epoch, kind=kind)
        for recipe in ("r1", "r2")
        for epoch in (1, 22)
        for kind in ("l", "h", "x-1")
    ]
    others = [replace(KEY, video="v10"), replace(KEY, video="v"), replace(KEY, tenant="bob")]
    for key in (*mine, *others):
        store.put(key, blob(10))
    assert store.delete_video("ada", "v1") == 120
    assert list(store.keys("ada", "v1")) == []
    assert store.delete_video("ada", "v1") == 0
    for key in mine:
        with pytest.raises(BlockMissing):
            store.get(key)
    for key in others:
        assert store.get(key) == blob(10)


def test_tenants_are_counted_and_deleted_apart(store: KVStore) -> None:
    theirs = replace(KEY, tenant="bob")
    store.put(KEY, blob(10))
    store.put(theirs, blob(5))
    assert (store.held_bytes("ada"), store.held_bytes("bob"), store.held_bytes("eve")) == (10, 5, 0)
    assert store.held_bytes() == 15
    assert list(store.keys("bob", "v1")) == [theirs]
    assert store.delete_video("eve", "v1") == 0
    store.delete_video("bob", "v1")
    assert store.get(KEY) == blob(10)


def test_videos_are_listed_each_once_and_only_while_they_have_blobs(store: KVStore) -> None:
    for video, epoch in (("v1", 1), ("v1", 2), ("v2", 1)):
        for kind in ("l", "h", "x-1f"):
            store.put(replace(KEY, video=video, epoch=epoch, kind=kind), b"abc")
    store.put(replace(KEY, tenant="bob"), b"abc")
    listed = list(store.videos())
    assert sorted(listed) == [("ada", "v1"), ("ada", "v2"), ("bob", "v1")]
    store.delete_video("ada", "v1")
    store.delete([replace(KEY, tenant="bob")])
    assert list(store.videos()) == [("ada", "v2")]


def test_a_store_tells_of_what_places_it_is_made(store: KVStore) -> None:
    places = list(store.places())
    assert places
    for place in places:
        assert list(place.places()) == [place]
    assert {place.tier for place in places} >= {store.route(kind).tier for kind in Kind}


@pytest.mark.parametrize("name", ["", ".", "..", "../ada", "a/b", "a*", "{a}", ".tmp", "a\0", "v1\n", "ä", "x" * 129])
def test_names_that_could_leave_their_place_are_refused(store: KVStore, name: str) -> None:
    store.put(KEY, blob(1))
    for tenant, video in ((name, "v1"), ("ada", name)):
        with pytest.raises(InvalidInput):
            store.delete_video(tenant, video)
        with pytest.raises(InvalidInput):
            list(store.keys(tenant, video))
    assert store.get(KEY) == blob(1)


def test_many_threads_read_and_write_whole_blobs(store: KVStore) -> None:
    def work(n: int) -> None:
        mine = replace(KEY, video=f"w{n}")
        for turn in range(15):
            store.put(KEY, blob(5000, fill=n))
            store.put(replace(mine, chunk=turn), blob(100, fill=n))
            assert len(set(bytes(store.get(KEY)))) == 1
            assert store.delete([replace(mine, chunk=turn)]) == 100

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert store.held_bytes() == 5000


def test_writers_and_the_deletion_of_their_video_do_not_hurt_each_other(store: KVStore) -> None:
    def write(n: int) -> None:
        for turn in range(20):
            store.put(replace(KEY, chunk=turn, epoch=n), blob(100))

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, n) for n in range(3)]
        while not all(writer.done() for writer in writers):
            store.delete_video("ada", "v1")
        for writer in writers:
            writer.result()
    store.delete_video("ada", "v1")
    assert store.held_bytes() == 0
    assert list(store.keys("ada", "v1")) == []


def test_closing_twice_is_fine(store: KVStore) -> None:
    store.close()
    store.close()


def test_stores_say_where_and_how_safely_they_keep_blobs(store: KVStore) -> None:
    assert isinstance(store.tier, Tier)
    for kind in ("l", "h", "x-1f"):
        kept = store.route(kind)
        assert kept.route(kind) is kept
        assert store.durable <= kept.durable
        store.put(replace(KEY, kind=kind), blob(3))
        assert kept.get(replace(KEY, kind=kind)) == blob(3)


def test_a_blob_comes_with_the_tier_it_was_in(store: KVStore) -> None:
    mine = bytearray(10)
    for kind in ("l", "h", "x-1f"):
        key = replace(KEY, kind=kind)
        store.put(key, blob(3))
        store.prefetch([key, replace(key, chunk=1)])
        found = store.fetch(key)
        assert found.blob == blob(3)
        assert found.tier is store.route(kind).tier or isinstance(store, RoutedKV | TieredKV)
        into = store.fetch(key, memoryview(mine)).blob
        assert (into, into.obj) == (blob(3), mine)
        with pytest.raises(BlockMissing):
            store.fetch(replace(key, chunk=1))
