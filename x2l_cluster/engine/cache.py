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
        self,
        keys: Sequence[K],
        make: Callable[[Sequence[K]], Iterator[V | Exception]],
        *,
        left_s: Callable[[], float | None] = lambda: None,
        again: Callable[[Exception], bool] = lambda _: False,
    ) -> list[tuple[V, bool] | Exception]:
        """The values of different keys, as :meth:`get` gives them, or what each could not be had for.

        Args:
            make: yields what nobody has or makes, in order, a value or an error each. What it raises, all of the rest
                is not to be had for, and the caller gets it.
            left_s: how long others may still be waited for; after that it is a TimeoutError.
            again: whether what somebody else could not make for this reason is worth a try of one's own.
        """
        found: dict[K, tuple[V, bool] | Exception] = {}
        left = list(keys)
        while left:
            news, others = self._once(left, make, left_s)
            found |= news
            failed = {key: error for key, error in news.items() if key in others and isinstance(error, Exception)}
            over = left_s() == 0.0
            left = [key for key, error in failed.items() if not over and again(error)]
        return [found[key] for key in keys]

    def _once(
        self,
        keys: Sequence[K],
        make: Callable[[Sequence[K]], Iterator[V | Exception]],
        left_s: Callable[[], float | None],
    ) -> tuple[dict[K, tuple[V, bool] | Exception], set[K]]:
        """What has come of each, and for which it was somebody else who made it."""
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
        found: dict[K, tuple[V, bool] | Exception] = {key: (value, True) for key, value in kept.items()}
        for key, value in made.items():
            found[key] = value if isinstance(value, Exception) else (value, False)
        for key, future in waiting.items():
            found[key] = _awaited(future, left_s())
        return found, set(waiting)

    def _settle(self, key: K, future: Future[V], value: V | BaseException) -> None:
        with self._lock:
            if not isinstance(value, BaseException) and self._size(value) <= self._bound:
                self._kept[key] = value
            del self._making[key]
        if isinstance(value, BaseException):
            future.set_exception(value)
        else:
            future.set_result(value)

    def __contains__(self, key: K) -> bool:
        with self._lock:
            return key in self._kept

    def drop(self, which: Callable[[K], bool]) -> None:
        """Forgets every key for which ``which`` holds."""
        with self._lock:
            for key in [key for key in self._kept if which(key)]:
                del self._kept[key]


def _awaited(future: Future[V], timeout_s: float | None) -> tuple[V, bool] | Exception:
    try:
        error = future.exception(timeout_s)
    except TimeoutError as late:
        return late
    if error is None:
        return future.result(), True
    if not isinstance(error, Exception):  # whoever made it was interrupted
        raise error
    return error
