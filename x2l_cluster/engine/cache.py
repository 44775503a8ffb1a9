"""A cache bounded in bytes, with one maker per key: concurrent askers of the same thing wait for the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
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

        def only(_: Sequence[K]) -> Iterator[V | Exception]:
            yield make()

        (found,) = self.get_all([key], only)
        if isinstance(found, Exception):
            raise found
        return found

    def get_all(
        self, keys: Sequence[K], make: Callable[[Sequence[K]], Iterator[V | Exception]]
    ) -> list[tuple[V, bool] | Exception]:
        """The values of different keys, as :meth:`get` gives them, or what each could not be had for.

        ``make`` yields what nobody has or makes, in order, a value or an error each. What it raises, all of the rest
        is not to be had for, and the caller gets it.
        """
        with self._lock:
            kept = {key: self._kept[key] for key in keys if key in self._kept}
            waiting = {key: self._making[key] for key in keys if key in self._making and key not in kept}
            mine = {key: Future[V]() for key in keys if key not in kept and key not in waiting}
            self._making |= mine
        made: dict[K, V | Exception] = {}
        try:
            # Own work first: two who wait for each other's would wait for ever.
            for key, value in zip(mine, make(list(mine)) if mine else (), strict=True):
                made[key] = value
                self._settle(key, mine[key], value)
        except BaseException as error:
            for key in mine.keys() - made.keys():
                self._settle(key, mine[key], error)
            raise
        return [self._found(key, kept, waiting, made) for key in keys]

    def _settle(self, key: K, future: Future[V], value: V | BaseException) -> None:
        with self._lock:
            if not isinstance(value, BaseException) and self._size(value) <= self._bound:
                self._kept[key] = value
            del self._making[key]
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)

    def _found(
        self, key: K, kept: dict[K, V], waiting: dict[K, Future[V]], made: dict[K, V | Exception]
    ) -> tuple[V, bool] | Exception:
        if key in kept:
            return kept[key], True
        value = made[key] if key in made else (waiting[key].exception() or waiting[key].result())
        if isinstance(value, BaseException):
            if not isinstance(value, Exception):  # whoever made it was interrupted
                raise value
            return value
        return value, key not in made

    def __contains__(self, key: K) -> bool:
        with self._lock:
            return key in self._kept

    def drop(self, which: Callable[[K], bool]) -> None:
        """Forgets every key for which ``which`` holds."""
        with self._lock:
            for key in [key for key in self._kept if which(key)]:
                del self._kept[key]
