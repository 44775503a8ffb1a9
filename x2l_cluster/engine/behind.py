"""Write-behind: chunk i is stored and sealed while chunk i+1 is prefilled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from x2l_cluster.errors import VideoError, X2LError

T = TypeVar("T")

PENDING: Final = 2
"""Chunks handed over and not yet sealed: one being written, one waiting. More would only hold memory: a store that is
slower than the model for two chunks is slower for all."""


class WriteBehind(Generic[T]):
    """Does ``work`` on one thing after the other, in order, on a thread of its own.

    After an error nothing more is done. When the ``with`` ends, what is pending is still done, if it ends well or for
    a fault of the file (what was prefilled before is good); for any other reason it is dropped. Either way nothing runs
    any more afterwards.
    """

    def __init__(self, work: Callable[[T], object]) -> None:
        self._work = work
        self._stopped = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="x2l-seal")
        self._pending: deque[Future[None]] = deque()

    def put(self, thing: T) -> None:
        """Hands a thing over; waits while :data:`PENDING` are under way. Raises what an earlier one met."""
        while self._pending and (len(self._pending) >= PENDING or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._one, thing))

    def drain(self) -> None:
        """Waits for all that is pending. Raises what one of them met."""
        while self._pending:
            self._pending.popleft().result()

    def _one(self, thing: T) -> None:
        if self._stopped:
            return
        try:
            self._work(thing)
        except BaseException:
            self._stopped = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.drain()
            elif isinstance(error, VideoError):
                with suppress(X2LError):  # the file's error is the one to tell
                    self.drain()
        finally:
            self._stopped = True
            self._thread.shutdown()
