"""Which pages are free: runs of pages in lists by size, neighbours merged at once (segregated fit, boundary tags).

The state lies in shared memory given by the caller, so that every process sees it; all of it can be made anew. Cost is
independent of how many pages or runs there are, but for a request that only the list of its own size class can serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_CLASSES_A_DOUBLING: Final = 4
BINS: Final = 128
_GLANCES: Final = 8
"""Runs looked at in the list of the request's own class before a larger run is split."""


def size_class(pages: int) -> int:
    """The list for runs of so many pages; four to a doubling."""
    top = pages.bit_length() - 1
    if top < 2:
        return pages
    return _CLASSES_A_DOUBLING * (top - 1) + ((pages >> (top - 2)) & 3)


class Runs:
    """Free runs among ``len(tags)`` pages.

    Args:
        tags, nexts, befores: one unsigned 32-bit number a page. A free run has its length in the tag of its first and
            its last page; used runs have 0 in both. The other two chain runs of a class by first page + 1.
        heads: one unsigned 32-bit number a class.
    """

    def __init__(
        self, tags: memoryview[int], nexts: memoryview[int], befores: memoryview[int], heads: memoryview[int]
    ) -> None:
        self._tags = tags
        self._nexts = nexts
        self._befores = befores
        self._heads = heads
        self.pages = len(tags)
        self._classes = size_class(self.pages) + 1

    def clear(self) -> None:
        """No page is free."""
        for bin_ in range(BINS):
            self._heads[bin_] = 0

    def take(self, pages: int) -> int | None:
        """First page of a run taken out, None when no free run is long enough."""
        start = self._find(pages)
        if start is None:
            return None
        length = self._tags[start]
        self._unlink(start, length)
        self._tag(start, pages, 0)
        if length > pages:
            self._link(start + pages, length - pages)
        return start

    def give(self, start: int, pages: int) -> None:
        """Makes a run free that was taken, and one with its free neighbours."""
        end = start + pages
        if end < self.pages and (after := self._tags[end]):
            self._unlink(end, after)
            self._tag(end, after, 0)
            end += after
        if start and (before := self._tags[start - 1]):
            start -= before
            self._unlink(start, before)
            self._tag(start, before, 0)
        self._link(start, end - start)

    def lay(self, used: Iterator[tuple[int, int]]) -> int:
        """Makes everything anew: free is what lies between these runs (start, pages), in order. Returns free pages."""
        self.clear()
        free, at = 0, 0
        for start, pages in used:
            self._tag(start, pages, 0)
            if start > at:
                self._link(at, start - at)
                free += start - at
            at = start + pages
        if at < self.pages:
            self._link(at, self.pages - at)
            free += self.pages - at
        return free

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Every free run (start, pages), in no order."""
        for bin_ in range(BINS):
            at = self._heads[bin_]
            while at:
                yield at - 1, self._tags[at - 1]
                at = self._nexts[at - 1]

    def _find(self, pages: int) -> int | None:
        own = size_class(pages)
        at, glances = self._heads[own], 0
        while at and glances < _GLANCES:
            if self._tags[at - 1] >= pages:
                return at - 1
            at = self._nexts[at - 1]
            glances += 1
        for bin_ in range(own + 1, self._classes):
            if head := self._heads[bin_]:
                return head - 1
        while at:
            if self._tags[at - 1] >= pages:
                return at - 1
            at = self._nexts[at - 1]
        return None

    def _tag(self, start: int, pages: int, tag: int) -> None:
        self._tags[start] = tag
        self._tags[start + pages - 1] = tag

    def _link(self, start: int, pages: int) -> None:
        self._tag(start, pages, pages)
        bin_ = size_class(pages)
        head = self._heads[bin_]
        self._nexts[start] = head
        self._befores[start] = 0
        if head:
            self._befores[head - 1] = start + 1
        self._heads[bin_] = start + 1

    def _unlink(self, start: int, pages: int) -> None:
        after, before = self._nexts[start], self._befores[start]
        if after:
            self._befores[after - 1] = before
        if before:
            self._nexts[before - 1] = after
        else:
            self._heads[size_class(pages)] = after
