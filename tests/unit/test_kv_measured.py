"""Reads and writes of a tier, as the metrics tell them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from tests.arena import KEY, in_shared_memory
from x2l_cluster.errors import (
    BlockCorrupt,
    BlockMissing,
    BlockStale,
    KVError,
    StoreFull,
    StoreLate,
    StoreUnavailable,
)
from x2l_cluster.kv.host import HostKV
from x2l_cluster.kv.measured import Measured, reason_of
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.store import ANY, Want
from x2l_cluster.kv.wire import WireClient
from x2l_cluster.metrics import LIVE, Reading
from x2l_cluster.types import BlockKey, Tier


class Remote(MemoryKV):
    """Under a tier nobody else of this process counts for, and as broken as the test likes."""

    tier = Tier.REMOTE
    failure: KVError | None = None

    def put(self, key: BlockKey, blob: bytes) -> None:  # type: ignore[override]
        if self.failure:
            raise self.failure
        super().put(key, blob)

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        if self.failure:
            raise self.failure
        return super().get(key, into, want=want)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"x2l_kv_{name}", {"tier": "remote", **labels}) or 0.0


@pytest.fixture
def grown() -> Iterator[object]:
    """How much a sample has grown since the test began."""
    before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            before[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def since(name: str, **labels: str) -> float:
        labels = {"tier": "remote", **labels}
        return value(name, **labels) - before.get((f"x2l_kv_{name}", tuple(sorted(labels.items()))), 0.0)

    return since


def test_reads_and_writes_are_counted_with_their_bytes_seconds_and_results(grown) -> None:
    store = Measured(Remote())
    index = replace(KEY, kind="x-1f")
    store.put(index, bytes(100))
    store.get(index)
    store.get(index, memoryview(bytearray(100)))
    with pytest.raises(BlockMissing):
        store.get(replace(KEY, kind="x-2"))
    assert grown("writes_total", kind="x", result="ok") == 1
    assert grown("written_bytes_total", kind="x") == 100
    assert grown("write_seconds_count", kind="x") == 1
    assert grown("reads_total", kind="x", result="hit") == 2
    assert grown("reads_total", kind="x", result="missing") == 1
    assert grown("read_bytes_total", kind="x") == 200
    assert grown("read_seconds_count", kind="x") == 3


@pytest.mark.parametrize(
    ("error", "read", "written"),
    [
        (BlockCorrupt("?"), "corrupt", "unavailable"),
        (BlockStale("?"), "stale", "unavailable"),
        (StoreLate("?"), "late", "unavailable"),
        (StoreUnavailable("?"), "unavailable", "unavailable"),
        (StoreFull("?"), "unavailable", "full"),
    ],
)
def test_failures_are_counted_by_reason_and_passed_on(grown, error: KVError, read: str, written: str) -> None:
    inner = Remote()
    inner.failure = error
    store = Measured(inner)
    with pytest.raises(type(error)):
        store.get(KEY)
    with pytest.raises(type(error)):
        store.put(KEY, b"x")
    assert reason_of(error) == read
    assert grown("reads_total", kind="l", result=read) == 1
    assert grown("writes_total", kind="l", result=written) == 1
    assert grown("read_bytes_total", kind="l") == grown("written_bytes_total", kind="l") == 0


def test_a_store_that_was_measured_is_still_itself() -> None:
    inner = MemoryKV(budget_bytes=1000)
    with Measured(inner) as store:
        store.put(KEY, bytes(10))
        found = store.fetch(KEY)
        assert (bytes(found.blob), found.tier, store.durable) == (bytes(10), Tier.HOST, False)
        assert list(store.keys("ada", "v1")) == [KEY]
        assert (store.held_bytes(), store.delete([KEY]), store.delete_video("ada", "v1")) == (10, 10, 0)


def test_a_store_tells_what_it_holds_and_may_hold() -> None:
    store = MemoryKV(budget_bytes=1000)
    store.put(KEY, bytes(10))
    told: list[Reading] = list(store.gauges())
    assert [(gauge.name, labels, value) for gauge, labels, value in told] == [
        ("x2l_kv_held_bytes", ("host",), 10),
        ("x2l_kv_budget_bytes", ("host",), 1000),
    ]
    assert store in LIVE._sources


def test_an_arena_tells_its_leases() -> None:
    with in_shared_memory() as path, HostKV(path, budget_bytes=1 << 20) as store:
        store.put(KEY, bytes(10))
        held = store.get(KEY)
        told = {gauge.name: value for gauge, _, value in store.gauges()}
        assert (told["x2l_kv_held_bytes"], told["x2l_kv_budget_bytes"], told["x2l_kv_leases"]) == (10, 1 << 20, 1)
        assert told["x2l_kv_oldest_lease_seconds"] > 0
        del held
        assert {gauge.name: value for gauge, _, value in store.gauges()}["x2l_kv_leases"] == 0
    with pytest.raises(StoreUnavailable):  # and is left out
        list(store.gauges())


def test_a_wire_tells_what_is_on_it_and_which_server_is_left_alone() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        with WireClient(f"redis://127.0.0.1:{taken.getsockname()[1]}") as wire:
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    wire.get("x")
            told = {gauge.name: value for gauge, _, value in wire.gauges()}
            assert told == {
                "x2l_kv_in_flight_bytes": 0,
                "x2l_kv_waiting": 0,
                "x2l_kv_breaker_state": 2,
            }
    assert list(wire.gauges()) == []
