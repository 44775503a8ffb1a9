"""Whose turn it is on the device: of those who answer, who has waited longest; indexing in the time it leaves them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final, Self

PATIENCE_S: Final = 5.0
"""A long turn waits no longer than this for others to take theirs: one of them may never come back."""


class Turns:
    """The device, one forward at a time.

    A plain lock lets whoever comes back at once go before all who wait: a batch that steps on and on would never let a
    newcomer in. Here two that want it take turns.

    Turns are not alike: a chunk is prefilled in the time of many steps. Whoever takes such :meth:`long` ones gives
    those who :meth:`stay` as much time in between, so that neither is held up by more than one turn, nor starves.

    Args:
        clock: seconds that only run forward.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._line: deque[object] = deque()
        self._moved = threading.Condition()
        self._staying = 0
        self._taken_s = 0.0
        self._begun_s = 0.0
        self._owed_s = 0.0
        """What the short turns must have taken together before the next long one."""

    def __enter__(self) -> Self:
        self._enter()
        self._begun_s = self._clock()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._moved:
            self._taken_s += self._clock() - self._begun_s
            self._leave()

    def _enter(self) -> None:
        mine = object()
        with self._moved:
            self._line.append(mine)
            try:
                self._moved.wait_for(lambda: self._line[0] is mine)
            except BaseException:  # Ctrl-C: those behind must not wait for one who left
                self._line.remove(mine)
                self._moved.notify_all()
                raise

    def _leave(self) -> None:
        self._line.popleft()
        self._moved.notify_all()

    @contextmanager
    def long(self) -> Iterator[None]:
        """A turn of one who indexes."""
        with self._moved:
            self._moved.wait_for(lambda: not self._staying or self._taken_s >= self._owed_s, PATIENCE_S)
        self._enter()
        begun_s = self._clock()
        try:
            yield
        finally:
            with self._moved:
                self._owed_s = self._taken_s + self._clock() - begun_s
                self._leave()

    def stay(self) -> None:
        """From now on the caller comes back for turn after turn, until it calls :meth:`go`."""
        with self._moved:
            self._staying += 1

    def go(self) -> None:
        with self._moved:
            self._staying -= 1
            self._moved.notify_all()
