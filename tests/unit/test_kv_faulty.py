"""Faults on purpose: each does what its name says, as often as its plan says, the same every time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from x2l_cluster.errors import BlockCorrupt, BlockMissing, InvalidInput, StoreLate, StoreUnavailable
from x2l_cluster.kv.blob import Head
from x2l_cluster.kv.codec import pack, ref_of, unpack
from x2l_cluster.kv.faulty import Fault, FaultPlan, FaultyKV
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.store import Want
from x2l_cluster.types import BlockKey

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=3, kind="l", chunk=0)


def block(key: BlockKey) -> bytes:
    return bytes(pack({"noise": torch.full((100,), float(key.chunk))}, {}, key, entries=1))


def faulty(*, sleep: Callable[[float], None] = lambda _: None, chunks: int = 3, **plan: object) -> FaultyKV:
    store = FaultyKV(MemoryKV(), FaultPlan(**plan), sleep=sleep)  # type: ignore[arg-type]
    for chunk in range(chunks):
        key = replace(KEY, chunk=chunk)
        store.put(key, block(key))
    return store


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("fault", list(Fault))
def test_every_fault_alone_is_an_error_or_told_by_the_manifest(fault: Fault, into: bool) -> None:
    store = faulty(**{fault: 1.0}, delay_s=2) if fault is not Fault.RESET else FaultyKV(MemoryKV(), FaultPlan(reset=1))
    ref = ref_of(block(KEY))
    target = memoryview(bytearray(ref.size_bytes)) if into else None
    expected = {
        Fault.DROP: BlockMissing,
        Fault.EVICT: BlockMissing,
        Fault.DELAY: StoreLate,
        Fault.RESET: StoreUnavailable,
    }
    with pytest.raises(expected.get(fault, BlockCorrupt)):
        unpack(store.get(KEY, target, want=Want(within_s=1)), KEY, ref)
    assert store.struck == {fault: 1}


def test_dropped_is_not_deleted_and_evicted_is() -> None:
    for fault, left in ((Fault.DROP, 3), (Fault.EVICT, 2)):
        store = faulty(**{fault: 1.0})
        with pytest.raises(BlockMissing):
            store.get(KEY)
        assert len(list(store.keys("ada", "v1"))) == left


def test_stale_blobs_are_honest_and_of_other_content() -> None:
    for fault in (Fault.STALE_EPOCH, Fault.STALE_RECIPE):
        blob = faulty(**{fault: 1.0}).get(KEY)
        others = [replace(KEY, chunk=1), replace(KEY, chunk=2)]
        owner = Head.read(blob).key
        assert owner in ([replace(KEY, epoch=2)] if fault is Fault.STALE_EPOCH else others)
        tensors, _ = unpack(blob, owner)
        assert not torch.equal(tensors["noise"], unpack(block(KEY))[0]["noise"])


def test_a_delay_passes_and_then_the_blob_comes_to_who_waits() -> None:
    slept: list[float] = []
    store = faulty(delay=1.0, delay_s=2, sleep=slept.append)
    assert store.get(KEY) == block(KEY)
    with pytest.raises(StoreLate):
        store.get(KEY, want=Want(within_s=0.5))
    assert slept == [2, 0.5]


def test_a_reset_leaves_a_write_done_or_not() -> None:
    store = FaultyKV(MemoryKV(), FaultPlan(reset=1.0))
    for chunk in range(20):
        with pytest.raises(StoreUnavailable):
            store.put(replace(KEY, chunk=chunk), b"x")
    assert 0 < len(list(store.keys("ada", "v1"))) < 20


def test_the_same_reads_meet_the_same_faults_whatever_threads_do() -> None:
    keys = [replace(KEY, chunk=chunk) for chunk in range(40)]

    def outcome(store: FaultyKV, key: BlockKey) -> str:
        try:
            return bytes(store.get(key)).hex()
        except BlockMissing:
            return "missing"

    plan = {"drop": 0.3, "flip": 0.3, "chunks": 40}
    alone = [outcome(store, key) for store in [faulty(seed=5, **plan)] for key in keys]
    with ThreadPoolExecutor(4) as pool:
        store = faulty(seed=5, **plan)
        assert list(pool.map(lambda key: outcome(store, key), keys)) == alone
    assert [outcome(store, key) for store in [faulty(seed=6, **plan)] for key in keys] != alone
    assert sum(word == "missing" for word in alone) == store.struck[Fault.DROP] > 0


def test_other_kinds_are_spared() -> None:
    store = faulty(drop=1.0, kinds="hx")
    assert store.get(KEY) == block(KEY)
    with pytest.raises(BlockMissing):
        store.get(replace(KEY, kind="x-1f"))


def test_plans_are_read_from_text_and_check_themselves() -> None:
    plan = FaultPlan.parse("seed=7,flip=0.25,kinds=lx,delay_s=1")
    assert plan == FaultPlan(seed=7, flip=0.25, kinds="lx", delay_s=1.0)
    assert FaultPlan.parse("") == FaultPlan()
    for bad in (
        "flip=1.5",
        "flip=-1",
        "flip=0.6,drop=0.6",
        "kinds=q",
        "kinds=",
        "melt=1",
        "flip",
        "seed=x",
        "delay_s=-1",
    ):
        with pytest.raises(InvalidInput):
            FaultPlan.parse(bad)
