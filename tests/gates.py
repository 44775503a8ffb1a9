"""Things that wait until a test lets them go on, and models that break when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tests.tiny import Qwen3VL, byte_tokenizer, qwen3_vl_model
from x2l_cluster.engine import Stores
from x2l_cluster.kv.store import ANY, Fetched, KVStore, Want
from x2l_cluster.models import Step, Trace
from x2l_cluster.types import BlockKey

WAIT_S = 60.0
"""A test that waits longer is broken."""


class GatedStore:
    """A store whose reads of one kind wait while the gate is shut."""

    def __init__(self, inner: KVStore, kind: str) -> None:
        self._inner, self._kind = inner, kind
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()
        """Somebody waits at the gate, or has passed it."""

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        if key.kind == self._kind:
            self.reached.set()
            assert self.gate.wait(WAIT_S)
        return self._inner.get(key, into, want=want)

    def fetch(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        return Fetched(blob=self.get(key, into, want=want), tier=self._inner.route(key.kind).tier)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def gated(stores: Stores, kind: str) -> tuple[Stores, GatedStore]:
    store = GatedStore(stores.kv, kind)
    return replace(stores, kv=store), store


class Watched(Qwen3VL):
    """A tiny model that calls ``before`` with the steps of every forward."""

    before: Callable[[Sequence[Step]], None] = staticmethod(lambda steps: None)

    def forward(self, steps: Sequence[Step], **options: Any) -> Trace:
        self.before(steps)
        return super().forward(steps, **options)


def watched(seed: int = 0) -> Watched:
    return Watched(qwen3_vl_model(seed), byte_tokenizer(), weights=f"tiny{seed}")
