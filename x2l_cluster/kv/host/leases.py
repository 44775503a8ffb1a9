"""Which slots this process holds on to: to read, for how many views each; or alone, to write. One kernel lock a slot.

A hold ends by release, or by the death of the process, when the kernel drops its locks; never by the clock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from x2l_cluster.kv.host.locks import Locks, slot_byte


class Leases:
    """Readers' counted holds on slots, shared with those of other processes.

    Releases come from finalizers too, which Python may run anywhere, even inside a method of this class on the same
    thread. They therefore only note the slot and settle if nobody is at work; whoever is settles on leaving.
    """

    def __init__(self, locks: Locks, *, clock: Callable[[], float] = time.monotonic):
        self._locks = locks
        self._clock = clock
        self._held: dict[int, tuple[int, float]] = {}
        self._ended: deque[int] = deque()
        self._lock = threading.Lock()
        self._closing = False
        self._dead = False

    def take(self, slot: int) -> bool:
        """Holds the slot; False when somebody else excludes that."""
        with self._lock:
            count, since = self._held.get(slot, (0, 0.0))
            taken = not self._closing and (count > 0 or self._locks.share(slot_byte(slot)))
            if taken:
                self._held[slot] = (count + 1, since or self._clock())
        self._settle()
        return taken

    def end(self, slot: int) -> None:
        """Undoes one :meth:`take`. Safe in finalizers."""
        self._ended.append(slot)
        self._settle()

    def close(self) -> None:
        """Takes no more; closes the file when the last hold has ended."""
        self._closing = True
        self._settle(always=True)

    def forget(self) -> None:
        """Lets go of the descriptor at once. In a forked child the locks are the parent's, and are so left to it."""
        self._dead = True
        self._locks.close()

    def oldest_s(self) -> float:
        """Age of the oldest hold in seconds, 0 without any."""
        with self._lock:
            age = max((self._clock() - since for _, since in self._held.values()), default=0.0)
        self._settle()
        return age

    def __len__(self) -> int:
        return len(self._held)

    def _settle(self, *, always: bool = False) -> None:
        while (self._ended or always) and not self._dead and self._lock.acquire(blocking=False):
            always = False
            try:
                while self._ended:
                    self._end(self._ended.popleft())
                if self._closing and not self._held:
                    self._locks.close()
            finally:
                self._lock.release()

    def _end(self, slot: int) -> None:
        count, since = self._held[slot]
        if count > 1:
            self._held[slot] = (count - 1, since)
        else:
            del self._held[slot]
            self._locks.end(slot_byte(slot))


class Claims:
    """A writer's holds on slots, each alone. Closing waits for the writers there are, so that none loses its slot."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self._held: set[int] = set()
        self._lock = threading.RLock()
        self._closing = False

    def take(self, slot: int) -> bool:
        with self._lock:
            if self._closing or not self._locks.claim(slot_byte(slot)):
                return False
            self._held.add(slot)
            return True

    def end(self, slot: int) -> None:
        with self._lock:
            self._held.discard(slot)
            self._locks.end(slot_byte(slot))
            self._close_if_done()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._close_if_done()

    def forget(self) -> None:
        """In a forked child, as :meth:`Leases.forget`."""
        self._locks.close()

    def _close_if_done(self) -> None:
        if self._closing and not self._held:
            self._locks.close()
