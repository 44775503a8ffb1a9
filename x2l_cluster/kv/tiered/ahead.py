"""Hints: blocks that may be asked for soon, fetched when nobody is kept waiting by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock

from x2l_cluster.errors import X2LError
from x2l_cluster.types import BlockKey


class Ahead:
    """A few hints at a time; what is too much is dropped, and nobody learns of what fails.

    Args:
        bring: fetches one block, or decides not to.
        most: hints that may wait.
        threads: hints followed at once.
    """

    def __init__(self, bring: Callable[[BlockKey], None], *, most: int = 64, threads: int = 2) -> None:
        self._bring, self._most = bring, most
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="x2l-ahead")
        self._waiting: dict[BlockKey, Future[None]] = {}
        self._lock = Lock()
        self._is_closed = False

    def hint(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            with self._lock:
                if self._is_closed or len(self._waiting) >= self._most:
                    return
                if key not in self._waiting:
                    self._waiting[key] = self._pool.submit(self._follow, key)

    def flush(self) -> None:
        """Returns when the hints given by now were followed, or dropped by closing."""
        with self._lock:
            waiting = list(self._waiting.values())
        for hint in waiting:
            with suppress(CancelledError):
                hint.result()

    def close(self) -> None:
        """Drops what has not begun, and waits for what has."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(cancel_futures=True)

    def _follow(self, key: BlockKey) -> None:
        try:
            with suppress(X2LError):
                self._bring(key)
        finally:
            with self._lock:
                self._waiting.pop(key, None)
