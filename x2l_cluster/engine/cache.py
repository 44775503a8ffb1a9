"""A cache bounded in bytes, with one maker per key: concurrent askers of the same thing wait for the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Least recently used goes first. Values larger than the bound are handed out but not kept.

    Args:
        bound_bytes: what all values together may take.
        size: bytes of one value.
    """

    def __init__(self, bound_bytes: int, size: Callable[[V], int]) -> None:
        self._bound = bound_bytes
        self._size = size
        self._kept: LRUCache[K, V] = LRUCache(maxsize=bound_bytes, getsizeof=size)
        self._making: dict[K, Future[V]] = {}
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> tuple[V, bool]:
        """The value, and whether it was there already. An error of ``make`` reaches everybody who waited for it."""
        with self._lock:
            if key in self._kept:
                return self._kept[key], True
            waiting = self._making.get(key)
            mine: Future[V] = waiting or self._making.setdefault(key, Future())
        if waiting is not None:
            return waiting.result(), True
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            mine.set_exception(error)
            raise
        with self._lock:
            if self._size(value) <= self._bound:
                self._kept[key] = value
            del self._making[key]
        mine.set_result(value)
        return value, False

    def __contains__(self, key: K) -> bool:
        with self._lock:
            return key in self._kept

    def drop(self, which: Callable[[K], bool]) -> None:
        """Forgets every key for which ``which`` holds."""
        with self._lock:
            for key in [key for key in self._kept if which(key)]:
                del self._kept[key]
