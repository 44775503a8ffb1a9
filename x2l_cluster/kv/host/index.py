"""Where a key's slot is: open addressing in shared memory, to be made anew from the slots at any time."""

from __future__ import annotations

from collections.abc import Callable


class Index:
    """Slots by hash. At most half of the buckets are ever full, so searches end.

    Args:
        buckets: unsigned 32-bit numbers, a power of two of them; slot + 1, or 0 for none.
        hash_of: the 64-bit hash a slot's key has.
    """

    def __init__(self, buckets: memoryview[int], hash_of: Callable[[int], int]) -> None:
        self._buckets = buckets
        self._last = len(buckets) - 1
        self._hash_of = hash_of

    def find(self, hash_: int, is_it: Callable[[int], bool]) -> int | None:
        """The slot with this hash for which ``is_it`` holds."""
        at = hash_ & self._last
        while entry := self._buckets[at]:
            if self._hash_of(entry - 1) == hash_ and is_it(entry - 1):
                return entry - 1
            at = (at + 1) & self._last
        return None

    def add(self, slot: int) -> None:
        at = self._hash_of(slot) & self._last
        while self._buckets[at]:
            at = (at + 1) & self._last
        self._buckets[at] = slot + 1

    def replace(self, old: int, new: int) -> None:
        """Both have the same key."""
        self._buckets[self._place(old)] = new + 1

    def remove(self, slot: int) -> None:
        """Takes a slot out and moves up those behind it that would not be found across the gap."""
        gap = at = self._place(slot)
        while True:
            at = (at + 1) & self._last
            entry = self._buckets[at]
            if not entry:
                break
            home = self._hash_of(entry - 1) & self._last
            if (at - home) & self._last >= (at - gap) & self._last:
                self._buckets[gap] = entry
                gap = at
        self._buckets[gap] = 0

    def _place(self, slot: int) -> int:
        at = self._hash_of(slot) & self._last
        while (entry := self._buckets[at]) != slot + 1:
            assert entry, f"slot {slot} is not in the index"
            at = (at + 1) & self._last
        return at
