"""Ways to read a blob: where it lies, under a lease; or as a copy, which needs none."""

from __future__ import annotations

import threading
import weakref
from typing import Final

import numpy as np
import numpy.typing as npt

from x2l_cluster.errors import BlockMissing
from x2l_cluster.kv.files import errors_as_store
from x2l_cluster.kv.host.arena import Arena
from x2l_cluster.kv.host.leases import Leases
from x2l_cluster.kv.host.names import name_of
from x2l_cluster.kv.host.slots import Found
from x2l_cluster.kv.store import missing_message, room_for
from x2l_cluster.types import BlockKey

_PLACES: Final = 1 << 16
"""Places of blobs a process remembers. A generation is never given out twice, so a place that was remembered is right
as long as its slot shows that generation, and nobody else needs to be asked."""


class Reader:
    """Finds blobs in an arena, remembers where they were, and counts how often they were there."""

    def __init__(self, arena: Arena, leases: Leases) -> None:
        self._arena = arena
        self._tables = arena.tables
        self._bytes = arena.pages.data
        self._leases = leases
        self._places: dict[BlockKey, Found] = {}
        self._fence = threading.Lock()
        self.hits = self.misses = 0

    def lease(self, key: BlockKey, *, counts: bool = True) -> Found:
        """Where the blob is, under a lease to be ended by the caller, or by :meth:`view`. Raises BlockMissing."""
        found = self._places.get(key)
        if found is None or not self._hold(found):
            found = self._look_up(key, counts)
        self._tables.touch(found.slot)
        self.hits += counts
        return found

    def view(self, found: Found) -> memoryview:
        """The blob itself; the lease ends with the last view of it."""
        blob = self._arena.pages[found.start : found.start + found.size]
        weakref.finalize(blob, self._leases.end, found.slot).atexit = False
        return blob.data.toreadonly()

    def copy(self, key: BlockKey, into: memoryview) -> memoryview:
        """A copy of the blob in the caller's memory.

        Raises:
            BlockMissing: it is not there.
            BlockCorrupt: it is larger than ``into``.
        """
        known = self._places.get(key)
        if known is not None and self._tables.shows(known.slot, known.generation):
            room = self._copied(key, known, into)
            if room is not None:
                self._tables.touch(known.slot)
                self.hits += 1
                return room
        found = self.lease(key)
        try:
            room = self._copied(key, found, into)
            if room is None:
                raise taken_away(key)
            return room
        finally:
            self._leases.end(found.slot)

    def _copied(self, key: BlockKey, found: Found, into: memoryview) -> memoryview | None:
        """None if the slot was given away before the end of the copy.

        Who gives a slot away says so in its word before anybody writes to its pages. Taking a lock keeps the processor
        from reading the word again before the bytes. Copied from view to view: for a stripe of a megabyte that has
        just emptied the caches, numpy's way to the same memmove costs a tenth of it.
        """
        room = room_for(key, found.size, into)
        room[:] = self._bytes[found.start : found.start + found.size]
        with self._fence:
            return room.toreadonly() if self._tables.holds(found.slot, found.generation) else None

    def _hold(self, found: Found) -> bool:
        """A lease first, then the generation: under a lease it stays what it is."""
        if not self._leases.take(found.slot):
            return False
        if self._tables.shows(found.slot, found.generation):
            return True
        self._leases.end(found.slot)
        return False

    def _look_up(self, key: BlockKey, counts: bool) -> Found:
        name = name_of(key)
        with errors_as_store(self._arena.path), self._arena.reading() as tables:
            slot = tables.find(name)
            if slot is None or not self._leases.take(slot):
                self.misses += counts
                self._places.pop(key, None)
                raise BlockMissing(missing_message(key, f"the arena {self._arena.path}"))
            found = tables.found(slot)
        if len(self._places) >= _PLACES:
            self._places.clear()
        self._places[key] = found
        return found


def as_array(view: memoryview) -> npt.NDArray[np.uint8]:
    """The bytes of a view, without a copy; an empty one cannot say so itself."""
    return np.frombuffer(view, dtype=np.uint8) if view.nbytes else np.empty(0, dtype=np.uint8)


def taken_away(key: BlockKey) -> BlockMissing:
    return BlockMissing(f"block {key} was taken away while it was read: answer coarse, or read it again")
