"""Manifests in this process's memory: for one-shot use and tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from threading import Lock

from x2l_cluster.state.manifests import Manifests
from x2l_cluster.state.shelf import Slot, Snapshot


class MemoryState(Manifests):
    """Manifests that end with the process."""

    def __init__(self) -> None:
        super().__init__(MemoryShelf())


class MemoryShelf:
    """Dictionaries under a lock."""

    durable = False

    def __init__(self) -> None:
        self._lock = Lock()
        self._epochs: Counter[str] = Counter()
        self._slots: dict[Slot, tuple[bytes, list[bytes]]] = {}
        self._content: dict[tuple[str, str], str] = {}

    def next_epoch(self, tenant: str) -> int:
        with self._lock:
            self._epochs[tenant] += 1
            return self._epochs[tenant]

    def epoch(self, tenant: str) -> int:
        with self._lock:
            return self._epochs[tenant]

    def tenants(self) -> list[str]:
        with self._lock:
            return list(self._epochs)

    def read(self, slot: Slot, after: int = 0) -> Snapshot | None:
        with self._lock:
            if slot not in self._slots:
                return None
            head, log = self._slots[slot]
            return Snapshot(head, log[after:], len(log))

    def swap(self, slot: Slot, expected: bytes | None, head: bytes, records: Sequence[bytes]) -> int | None:
        with self._lock:
            current, log = self._slots.get(slot, (None, []))
            if current != expected:
                return None
            log.extend(records)
            self._slots[slot] = (head, log)
            return len(log)

    def heads(self, tenant: str, video: str | None = None) -> list[bytes]:
        with self._lock:
            return [head for at, (head, _) in self._slots.items() if at.tenant == tenant and video in (None, at.video)]

    def drop(self, tenant: str, video: str, recipe: str | None = None) -> bool:
        with self._lock:
            all_slots = [slot for slot in self._slots if slot[:2] == (tenant, video)]
            slots = [slot for slot in all_slots if recipe in (None, slot.recipe)]
            content = [key for key, bound in self._content.items() if (key[0], bound) == (tenant, video)]
            if recipe is not None and (not slots or len(slots) < len(all_slots)):
                content = []  # of another recipe
            for slot in slots:
                del self._slots[slot]
            for key in content:
                del self._content[key]
            return bool(slots or content)

    def bind(self, tenant: str, content: str, video: str) -> str:
        with self._lock:
            return self._content.setdefault((tenant, content), video)

    def find(self, tenant: str, content: str) -> str | None:
        with self._lock:
            return self._content.get((tenant, content))

    def close(self) -> None:
        """Nothing to let go of."""
