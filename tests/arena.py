"""What tests know about the inside of an arena."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

from x2l_cluster.kv.host import HostKV, remove
from x2l_cluster.kv.host.layout import Word
from x2l_cluster.kv.host.names import key_of, name_of
from x2l_cluster.kv.host.slots import FREE, READY, STATE, F
from x2l_cluster.kv.host.tables import Tables
from x2l_cluster.types import BlockKey

KEY = BlockKey(tenant="ada", video="v1", recipe="r1", epoch=1, kind="l", chunk=0)
PAGE = 4096


def fill(key: BlockKey, size: int, salt: int = 0) -> bytes:
    """Bytes that only this key has, so that a foreign byte anywhere is seen."""
    seed = sum(n * byte for n, byte in enumerate(str(key).encode(), start=1)) + 7919 * salt
    pattern = b"".join(((seed * 2654435761 + n * 40503) % (1 << 32)).to_bytes(4, "little") for n in range(64))
    return (pattern * (size // len(pattern) + 1))[:size]


def check(tables: Tables) -> None:
    """Everything derived agrees with the slots, and every page is used once or free."""
    high, total = tables.counter(Word.HIGH), tables.runs.pages
    pages = [0] * total
    free_slots = 0
    for slot in range(high):
        state = tables.get(slot, F.WORD) & STATE
        if state == FREE:
            free_slots += 1
            continue
        start, length = tables.get(slot, F.PLACE) & 0xFFFFFFFF, tables.get(slot, F.PLACE) >> 32
        for page in range(start, start + length):
            pages[page] += 1
        if state == READY:
            key = key_of(tables.text(slot))
            assert tables.find(name_of(key)) == slot
    free = 0
    for start, length in tables.runs:
        free += length
        for page in range(start, start + length):
            pages[page] += 1
        assert start == 0 or not any(end == start for end in (s + n for s, n in tables.runs)), "neighbours not merged"
    assert pages == [1] * total
    assert free == tables.counter(Word.FREE_PAGES)
    chained, at = 0, tables.counter(Word.FREE_SLOT)
    while at:
        chained += 1
        at = tables.get(at - 1, F.PLACE)
        assert chained <= free_slots
    assert chained == free_slots
    assert sum(1 for entry in tables._buckets if entry) == len(tables.ready())


@contextmanager
def in_shared_memory() -> Iterator[Path]:
    """A path where arenas really live."""
    path = Path("/dev/shm") / f"x2l-test-{uuid4().hex}"
    try:
        yield path
    finally:
        remove(path)


@contextmanager
def checked(store: HostKV) -> Iterator[HostKV]:
    """Checks the tables afterwards."""
    yield store
    with store._arena.reading() as tables:
        check(tables)


def fill_up(store: HostKV, size: int, kind: str = "l") -> list[BlockKey]:
    """Puts blobs of this size until the first was evicted; returns the keys still there, coldest first."""
    keys: list[BlockKey] = []
    before = sum(store.stats().evicted.values())
    for chunk in count():
        key = BlockKey(tenant="ada", video="fill", recipe="r1", epoch=1, kind=kind, chunk=chunk)
        store.put(key, fill(key, size))
        keys.append(key)
        if sum(store.stats().evicted.values()) > before:
            break
    there = set(store.keys("ada", "fill"))
    return [key for key in keys if key in there]
