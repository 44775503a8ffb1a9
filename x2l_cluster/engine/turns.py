"""A lock that serves whoever has waited longest."""

from __future__ import annotations

import threading
from collections import deque
from typing import Self


class Turns:
    """The device, one forward at a time.

    A plain lock lets whoever comes back at once go before all who wait: a batch that steps on and on would never let a
    newcomer in. Here two that want it take turns.
    """

    def __init__(self) -> None:
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    def __enter__(self) -> Self:
        mine = object()
        with self._moved:
            self._line.append(mine)
            try:
                self._moved.wait_for(lambda: self._line[0] is mine)
            except BaseException:  # Ctrl-C: those behind must not wait for one who left
                self._line.remove(mine)
                self._moved.notify_all()
                raise
        return self

    def __exit__(self, *exc: object) -> None:
        with self._moved:
            self._line.popleft()
            self._moved.notify_all()
