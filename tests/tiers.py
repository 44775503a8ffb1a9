"""Tiers whose troubles a test decides, and blobs that pass as blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Lock
from time import monotonic

import torch

from tests.arena import KEY
from x2l_cluster.errors import KVError
from x2l_cluster.kv.blob import pack
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.store import ANY, Buffer, Want
from x2l_cluster.types import BlockKey, Tier

KEYS = [replace(KEY, chunk=chunk) for chunk in range(12)]
"""What processes read of one video."""


def block(key: BlockKey = KEY, *, size: int = 1000, fill: int = 1) -> bytes:
    """A real blob of this key."""
    return bytes(pack({"a": torch.full((size,), fill, dtype=torch.uint8)}, {}, key))


def damaged(blob: bytes) -> bytes:
    return blob[:-1] + bytes([blob[-1] ^ 1])


class Place(MemoryKV):
    """A tier that fails when told, and whose reads or writes stop at a gate until it is opened."""

    def __init__(self, tier: Tier, *, budget_bytes: int | None = None) -> None:
        super().__init__(budget_bytes=budget_bytes)
        self.tier = tier  # type: ignore[misc]
        self.failure: KVError | None = None
        self.reads, self.writes = Event(), Event()
        self.reads.set()
        self.writes.set()
        self.reading, self.writing = Event(), Event()
        """Set when somebody has come to the gate."""
        self.got: Counter[BlockKey] = Counter()
        self.wanted: list[Want] = []
        self._counting = Lock()

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        with self._counting:
            self.got[key] += 1
            self.wanted.append(want)
        if self.failure:
            raise self.failure
        found = super().get(key, into, want=want)
        self.reading.set()
        assert self.reads.wait(30)
        return found

    def put(self, key: BlockKey, blob: Buffer) -> None:
        self.writing.set()
        assert self.writes.wait(30)
        if self.failure:
            raise self.failure
        super().put(key, blob)

    def has(self, key: BlockKey) -> bool:
        return key in list(self.keys(key.tenant, key.video))


def soon(holds: Callable[[], bool]) -> None:
    """Waits for what another thread is about to do."""
    until, moment = monotonic() + 30, Event()
    while not holds():
        assert monotonic() < until, "it never came to that"
        moment.wait(0.001)
