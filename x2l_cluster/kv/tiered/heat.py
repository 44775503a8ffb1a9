"""How much a block is wanted: its selections, the older the less."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from time import monotonic

from cachetools import LRUCache

from x2l_cluster.types import BlockKey


class Heat:
    """Counts selections; each is worth half after every half-life.

    Args:
        half_life_s: seconds.
        most: blocks that are remembered; those selected longest ago are forgotten first.
        clock: seconds that only run forward.
    """

    def __init__(self, *, half_life_s: float, most: int = 1 << 16, clock: Callable[[], float] = monotonic) -> None:
        self._half_life_s, self._clock = half_life_s, clock
        self._heat: LRUCache[BlockKey, tuple[float, float]] = LRUCache(most)
        self._lock = Lock()

    def add(self, key: BlockKey) -> float:
        """One more selection; returns what all of them are worth now."""
        now = self._clock()
        with self._lock:
            before, since = self._heat.get(key, (0.0, now))
            heat: float = 1.0 + before * 0.5 ** ((now - since) / self._half_life_s)
            self._heat[key] = heat, now
        return heat
