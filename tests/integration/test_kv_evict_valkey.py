"""Eviction from a real server: full to the last byte, several evictors, a dead one, blobs whose time is over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic

import pytest
import redis

from tests.wire import valkey_cluster
from x2l_cluster.errors import BlockMissing, StoreFull
from x2l_cluster.kv.bounded import BoundedKV
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.evict import Limits
from x2l_cluster.kv.evictor import Evictor
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.types import BlockKey

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=0)
MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(maxmemory_bytes=24 * MIB) as server:
        yield server


def bounded(url: str, limits: Limits, **options: object) -> BoundedKV:
    store = RemoteKV(url, **options)  # type: ignore[arg-type]
    return BoundedKV(store, Evictor(store, limits))


def name(key: BlockKey) -> str:
    return f"x2l:kv:{{{key.tenant}/{key.video}}}/{'/'.join(key.parts[2:])}"


def age(raw: redis.Redis, key: BlockKey, idle_s: int) -> None:
    """As if it had not been read for so long."""
    dump = raw.dump(name(key))
    raw.restore(name(key), 0, dump, replace=True, idletime=idle_s)


def test_the_server_is_kept_under_its_budget_and_the_coldest_go(server: EmbeddedValkey) -> None:
    with bounded(server.url, Limits(budget_bytes=16 * MIB)) as store, redis.Redis.from_url(server.url) as raw:
        for chunk in range(8):
            store.put(replace(KEY, chunk=chunk), bytes(MIB))
            age(raw, replace(KEY, chunk=chunk), 1000 - chunk)
        store.get(replace(KEY, chunk=1))
        store.put(replace(KEY, kind="h"), bytes(MIB))
        for chunk in range(8, 40):
            store.put(replace(KEY, chunk=chunk), bytes(MIB))
            assert raw.info("memory")["used_memory"] <= 16 * MIB
        left = {key.chunk for key in store.keys("ada", "v1") if key.kind == "l"}
        assert 39 in left
        assert not left & {0, 2, 3, 4, 5, 6, 7}
        store.get(replace(KEY, kind="h"))


def test_a_server_full_to_the_last_byte_is_relieved(server: EmbeddedValkey) -> None:
    """Its own bound is below the budget: it is noticed by its refusals, and the evictor's own writes get through."""
    with bounded(server.url, Limits(budget_bytes=1 << 30)) as store, redis.Redis.from_url(server.url) as raw:
        for chunk in range(60):
            store.put(replace(KEY, chunk=chunk), bytes(MIB))
        assert store.get(replace(KEY, chunk=59)) == bytes(MIB)
        assert store.held_bytes() == sum(raw.strlen(k) for k in raw.keys() if raw.type(k) == b"string")  # noqa: SIM118


def test_a_server_full_of_what_must_stay_says_so_in_time(server: EmbeddedValkey) -> None:
    with bounded(server.url, Limits(budget_bytes=1 << 30)) as store:
        begun = monotonic()
        with pytest.raises(StoreFull) as caught:  # noqa: PT012
            for chunk in range(60):
                store.put(replace(KEY, chunk=chunk, kind="h"), bytes(MIB))
        assert caught.value.retryable
        assert monotonic() - begun < 10
        assert store.delete_video("ada", "v1") > 0
        store.put(KEY, bytes(MIB))


def test_several_evictors_of_one_server_leave_a_whole_store(server: EmbeddedValkey) -> None:
    limits = Limits(budget_bytes=16 * MIB)
    stores = [bounded(server.url, limits) for _ in range(4)]

    def work(n: int) -> None:
        for chunk in range(40):
            stores[n].put(replace(KEY, video=f"v{n}", chunk=chunk), bytes(256 << 10))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with redis.Redis.from_url(server.url) as raw:
        assert raw.info("memory")["used_memory"] <= 20 * MIB
        there = {k.decode() for k in raw.keys() if raw.type(k) == b"string"}  # noqa: SIM118
        assert there == {name(key) for n in range(4) for key in stores[0].keys("ada", f"v{n}")}
    for store in stores:
        store.close()


DIES = """
import os, sys, time
from x2l_cluster.kv.remote import RemoteKV
with RemoteKV(sys.argv[1]).turn() as mine:
    assert mine is not None and mine()
    os.kill(os.getpid(), 9)
"""


def test_a_dead_evictor_holds_nobody_up_for_long(server: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subprocess.run([sys.executable, "-c", DIES, server.url], check=False).returncode == -9
    with redis.Redis.from_url(server.url) as raw, RemoteKV(server.url) as store:
        assert 0 < raw.pttl("x2l:kv:evictor") <= 5000
        raw.pexpire("x2l:kv:evictor", 200)
        with store.turn() as mine:
            assert mine is not None
            assert mine()
            with monkeypatch.context() as impatient:
                impatient.setattr("x2l_cluster.kv.remote._TURN_S", 0.05)
                with RemoteKV(server.url) as other, other.turn() as theirs:
                    assert theirs is None
            raw.set("x2l:kv:evictor", "somebody")  # as after our time was over
            assert not mine()
        assert raw.get("x2l:kv:evictor") == b"somebody"


def test_with_a_time_to_live_what_nobody_uses_goes_by_itself_and_use_renews_it(empty_valkey: str) -> None:
    with RemoteKV(empty_valkey, ttl_s=100) as store, redis.Redis.from_url(empty_valkey) as raw:
        for chunk in range(2):
            store.put(replace(KEY, chunk=chunk), b"abc")
        used, unused, index = name(KEY), name(replace(KEY, chunk=1)), "x2l:kv:{ada/v1}"
        assert raw.ttl(unused) > 90
        assert raw.ttl(index) > 190, "the index outlives the blobs, so that deleting finds them"
        for key in (used, unused, index):
            raw.pexpire(key, 40_000)
        assert store.get(KEY) == b"abc"
        assert raw.ttl(used) > 90
        assert raw.ttl(unused) <= 40
        assert raw.ttl(index) > 190
        raw.pexpire(unused, 1)
        while raw.exists(unused):
            pass
        assert {entry.key for entry in store.entries()} == {KEY}
        assert store.held_bytes() == 3, "the entry of what went by itself is dropped in passing"
        with pytest.raises(BlockMissing):
            store.get(replace(KEY, chunk=1))
        store.delete_video("ada", "v1")
        assert raw.keys() == []


def test_without_one_nothing_ever_expires(empty_valkey: str) -> None:
    with RemoteKV(empty_valkey) as store, redis.Redis.from_url(empty_valkey) as raw:
        store.put(KEY, b"abc")
        store.get(KEY)
        assert {raw.ttl(key) for key in raw.keys()} == {-1}  # noqa: SIM118


def test_a_cluster_is_evicted_from_as_a_whole() -> None:
    with valkey_cluster() as servers, bounded(f"{servers[0].url}?cluster=true", Limits(budget_bytes=40 * MIB)) as store:
        for chunk in range(60):
            store.put(replace(KEY, video=f"v{chunk % 7}", chunk=chunk), bytes(MIB))
        assert store.held_bytes() <= 40 * MIB
        assert store.get(replace(KEY, video=f"v{59 % 7}", chunk=59)) == bytes(MIB)
