"""The remote tier against a real server: what it leaves, when it is full, when it hangs, when it dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

import numpy as np
import pytest
import redis

from tests.contract.test_state_store import INFO, RECIPE, begin, seal
from x2l_cluster.errors import BlockMissing, InvalidInput, StoreFull, StoreUnavailable
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.kv.remote import RemoteKV
from x2l_cluster.kv.store import Want
from x2l_cluster.state.remote import RemoteState
from x2l_cluster.types import BlockKey

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=0)


@pytest.fixture
def own_server() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(maxmemory_bytes=24 << 20) as server:
        yield server


def test_deleting_leaves_no_key_but_the_epoch_counters(empty_valkey: str) -> None:
    with RemoteKV(empty_valkey) as store, RemoteState(empty_valkey) as state, redis.Redis.from_url(empty_valkey) as raw:
        for kind in ("l", "h", "x-1f"):
            for epoch in range(3):
                store.put(replace(KEY, kind=kind, epoch=epoch), bytes(1000))
        for tenant in ("ada", "bob"):
            seal(state, begin(state, tenant=tenant), 0, 1, 2)
            state.bind(tenant, "c1", "v1")
            state.delete(tenant, "v1")
        store.delete_video("ada", "v1")
        assert sorted(raw.keys()) == [b"x2l:st:{ada}:epoch", b"x2l:st:{bob}:epoch"]


def test_more_blocks_than_fit_into_one_batch_are_deleted(empty_valkey: str) -> None:
    with RemoteKV(empty_valkey) as store:
        for chunk in range(1203):
            store.put(replace(KEY, chunk=chunk), b"abc")
        assert store.delete_video("ada", "v1") == 3 * 1203
        assert store.held_bytes() == 0


def test_keys_of_a_video_share_a_cluster_slot(empty_valkey: str) -> None:
    with RemoteKV(empty_valkey) as store, redis.Redis.from_url(empty_valkey) as raw:
        store.put(KEY, b"abc")
        store.put(replace(KEY, epoch=2, kind="h"), b"abc")
        tags = {key[key.index(b"{") : key.index(b"}") + 1] for key in raw.keys()}  # noqa: SIM118
        assert tags == {b"{ada/v1}"}


def fill(store: RemoteKV, key: BlockKey, size: int) -> int:
    """Puts blobs until the server is full; returns how many it took."""
    for chunk in range(100_000):
        try:
            store.put(replace(key, chunk=chunk), bytes(size))
        except StoreFull:
            return chunk
    raise AssertionError("the server is never full")


def test_a_full_server_refuses_writes_keeps_the_rest_and_recovers(own_server: EmbeddedValkey) -> None:
    with RemoteKV(own_server.url) as store, RemoteState(own_server.url) as state:
        started = seal(state, begin(state), 0)
        written = fill(store, KEY, 1 << 20)
        assert 5 < written < 24
        with pytest.raises(BlockMissing):
            store.get(replace(KEY, chunk=written))
        assert {key.chunk for key in store.keys("ada", "v1")} == set(range(written))
        assert store.held_bytes() == written << 20
        for chunk in range(written):
            assert len(store.get(replace(KEY, chunk=chunk))) == 1 << 20
        with redis.Redis.from_url(own_server.url) as raw:
            raw.config_set("maxmemory", 1)  # full to the last byte
            with pytest.raises(StoreFull):
                seal(state, started, 1)
            raw.config_set("maxmemory", 24 << 20)
        assert state.manifest("ada", "v1") == started
        assert store.delete([replace(KEY, chunk=0), replace(KEY, chunk=1)]) == 2 << 20
        seal(state, started, 1)
        assert state.delete("ada", "v1")
        store.delete_video("ada", "v1")
        assert store.held_bytes() == 0


def test_a_server_that_hangs_is_unavailable_in_time_and_back_when_it_is(own_server: EmbeddedValkey) -> None:
    with RemoteKV(own_server.url, timeout_s=0.2) as store, RemoteState(own_server.url, timeout_s=0.2) as state:
        store.put(KEY, b"abc")
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            for step in (
                lambda: store.get(KEY),
                lambda: store.get(KEY, want=Want(within_s=60.0)),  # a patient reader does not outwait the store
                lambda: store.put(KEY, b"x"),
                lambda: store.delete([KEY]),
                lambda: store.delete_video("ada", "v1"),
                store.held_bytes,
                lambda: state.begin("ada", "v1", RECIPE, INFO),
                lambda: state.videos("ada"),
                lambda: state.find("ada", "c"),
            ):
                started = monotonic()
                with pytest.raises(StoreUnavailable):
                    step()
                assert monotonic() - started < 1
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        # What was asked for while it hung may still have arrived, so only: it answers again.
        store.put(KEY, b"new")
        assert store.get(KEY) == b"new"


def test_a_server_that_died_is_unavailable_and_an_empty_one_has_nothing() -> None:
    with EmbeddedValkey(port=0) as server:
        store = RemoteKV(server.url, timeout_s=1)
        store.put(KEY, b"abc")
        port = int(server.url.rpartition(":")[2])
    with store:
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}"):
            store.get(KEY)
        with EmbeddedValkey(port=port):
            with pytest.raises(BlockMissing):
                store.get(KEY)
            store.put(KEY, b"again")
            assert store.get(KEY) == b"again"


def test_a_blob_no_server_would_take_is_refused_before_it_is_sent(empty_valkey: str) -> None:
    with RemoteKV(empty_valkey) as store:
        with pytest.raises(InvalidInput, match="has 536870913 bytes, a server takes 536870912"):
            store.put(KEY, np.empty((512 << 20) + 1, np.uint8).data)
        assert store.held_bytes() == 0


def test_a_cluster_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        RemoteKV("redis://u:secret@127.0.0.1:1?cluster=true", timeout_s=1)


def test_sealing_costs_the_same_however_long_the_video_is(empty_valkey: str) -> None:
    with RemoteState(empty_valkey) as state, redis.Redis.from_url(empty_valkey) as raw:

        def traffic(indexes: range) -> int:
            before = raw.info("stats")
            nonlocal started
            started = seal(state, started, *indexes)
            after = raw.info("stats")
            return sum(int(after[k]) - int(before[k]) for k in ("total_net_input_bytes", "total_net_output_bytes"))

        started = begin(state)
        early = traffic(range(50))
        traffic(range(50, 400))
        late = traffic(range(400, 450))
        assert late < 1.2 * early
        assert len(state.manifest("ada", "v1").chunks) == 450
