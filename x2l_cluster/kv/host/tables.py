"""What follows from the slots: where a key is, what is free, who is cold. All of it in shared memory.

It is made anew from the slots (:meth:`Tables.rebuild`) whenever a process died while changing it. Every method wants
the arena's lock; those that change something, from :meth:`Arena.changing`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import numpy as np

from x2l_cluster.errors import StoreFull, StoreUnavailable
from x2l_cluster.kv.host.index import Index
from x2l_cluster.kv.host.layout import Layout, Word
from x2l_cluster.kv.host.leases import Claims
from x2l_cluster.kv.host.locks import Locks, slot_byte
from x2l_cluster.kv.host.names import Name
from x2l_cluster.kv.host.runs import BINS, Runs
from x2l_cluster.kv.host.slots import FREE, READY, RETIRED, STATE, WRITING, F, Found, Slots

_HEADS_AT: Final = 1024
_BATCH: Final = 256
"""Victims looked up at once; finding them costs one look at every slot."""
_TICK_BITS: Final = 56


class Tables(Slots):
    """The tables of one arena, as this process sees them."""

    def __init__(self, view: memoryview, layout: Layout, probe: Locks) -> None:
        runs = view[layout.runs_at : layout.backed_at].cast("I")
        count = layout.pages
        super().__init__(view, layout)
        self._probe = probe
        self._buckets: memoryview[int] = view[layout.buckets_at : layout.runs_at].cast("I")
        self.runs = Runs(
            runs[:count],
            runs[count : 2 * count],
            runs[2 * count : 3 * count],
            view[_HEADS_AT : _HEADS_AT + 4 * BINS].cast("I"),
        )
        self._index = Index(self._buckets, lambda slot: self.get(slot, F.HASH))
        self._cold: deque[tuple[int, int, int, int]] = deque()

    def find(self, name: Name) -> int | None:
        return self._index.find(name.hash, lambda slot: self.text(slot) == name.text)

    def reserve(self, name: Name, size: int, claims: Claims) -> Found:
        """A slot and pages for a blob, invisible, for a writer that holds the slot through ``claims``.

        Raises StoreFull, with nothing taken, when even eviction makes no room.
        """
        pages = -(-(size + len(name.text)) // self._layout.page_bytes)
        if pages > self._layout.pages:
            raise self._full(name, size, "it is larger than the arena")
        start = self._run(pages)
        slot = self._slot(claims)
        if start is None or slot is None:
            victims = self._victims()
            self._reclaim()
            while True:
                start = self._run(pages) if start is None else start
                slot = self._slot(claims) if slot is None else slot
                if start is not None and slot is not None:
                    break
                victim = next(victims, None)
                if victim is None:
                    if start is not None:
                        self._give(start, pages)
                    if slot is not None:
                        self._chain(slot)
                        claims.end(slot)
                    raise self._full(name, size, "everything else is being read or written")
                self._evict(victim)
            if self._cold and self._cold[-1][3]:  # only blobs of the first class stay the right victims for a while
                self._cold = deque(entry for entry in self._cold if not entry[3])
        generation = self._words[Word.GENERATION] + 1
        self._words[Word.GENERATION] = generation
        fields = (name.hash, start | pages << 32, size, 0, len(name.text) | name.rank << 32, name.video, name.tenant)
        for field, value in enumerate(fields, start=1):
            self._set(slot, field, value)
        self.touch(slot)
        self._set(slot, F.WORD, generation << 2 | WRITING)
        return self.found(slot)

    def publish(self, name: Name, found: Found) -> None:
        """Makes a written slot visible, in place of what had its key. The caller then lets go of its claim."""
        if self.get(found.slot, F.WORD) != found.generation << 2 | WRITING:
            raise StoreUnavailable(f"block {name.text.decode()} lost its place while it was written: put it again")
        old = self.find(name)
        self._set(found.slot, F.WORD, found.generation << 2 | READY)  # both are there now; the younger counts
        if old is None:
            self._index.add(found.slot)
        else:
            self._index.replace(old, found.slot)
            self._retire(old)

    def abort(self, found: Found) -> None:
        """Frees a reserved slot; the caller then lets go of its claim."""
        if self.get(found.slot, F.WORD) == found.generation << 2 | WRITING:
            self._free(found.slot)

    def delete(self, slot: int) -> int:
        """Takes a visible slot away from readers to come; those with a lease keep it. Returns its bytes."""
        size = self.get(slot, F.BYTES)
        self._index.remove(slot)
        self._retire(slot)
        return size

    def rebuild(self) -> None:
        """Makes everything that is derived anew. A slot that makes no sense is freed: a miss, nothing worse."""
        table = self._table(all_of_them=True)
        known = np.flatnonzero(table[:, F.WORD])
        high = int(known[-1]) + 1 if len(known) else 0
        self._words[Word.HIGH] = high
        np.frombuffer(self._buckets, dtype=np.uint32)[:] = 0
        self._words[Word.GENERATION] = max(
            self._words[Word.GENERATION], int(table[:high, F.WORD].max() >> 2) if high else 0
        )
        used, end = [], 0
        for slot in np.argsort(table[:high, F.PLACE] & 0xFFFFFFFF, kind="stable").tolist():
            state = self.get(slot, F.WORD) & STATE
            start, pages = self.get(slot, F.PLACE) & 0xFFFFFFFF, self.get(slot, F.PLACE) >> 32
            if state == FREE:
                continue
            if start < end or not pages or start + pages > self._layout.pages or not self._fits(slot, pages):
                self._mark(slot, FREE)
                continue
            if state == READY:
                self._admit(slot)
            elif self._probe.claim(slot_byte(slot)):
                self._mark(slot, FREE)
                self._probe.end(slot_byte(slot))
                continue
            used.append((start, pages))
            end = start + pages
        self._words[Word.FREE_PAGES] = self.runs.lay(iter(used))
        self._words[Word.FREE_SLOT] = 0
        for slot in range(high - 1, -1, -1):
            if self.get(slot, F.WORD) & STATE == FREE:
                self._chain(slot)
        self._cold.clear()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _fits(self, slot: int, pages: int) -> bool:
        needed = self.get(slot, F.BYTES) + (self.get(slot, F.FORM) & 0xFFFFFFFF)
        return needed <= pages * self._layout.page_bytes

    def _admit(self, slot: int) -> None:
        """A visible slot into the index, unless a younger one with its key is there."""
        text = self.text(slot)
        twin = self._index.find(self.get(slot, F.HASH), lambda other: self.text(other) == text)
        if twin is None:
            self._index.add(slot)
        elif self.get(twin, F.WORD) > self.get(slot, F.WORD):
            self._mark(slot, RETIRED)
        else:
            self._index.replace(twin, slot)
            self._mark(twin, RETIRED)

    def _retire(self, slot: int) -> None:
        self._mark(slot, RETIRED)
        if self._probe.claim(slot_byte(slot)):
            self._free(slot)
            self._probe.end(slot_byte(slot))

    def _free(self, slot: int) -> None:
        place = self.get(slot, F.PLACE)
        self._mark(slot, FREE)
        self._give(place & 0xFFFFFFFF, place >> 32)
        self._chain(slot)

    def _give(self, start: int, pages: int) -> None:
        self.runs.give(start, pages)
        self._words[Word.FREE_PAGES] += pages

    def _run(self, pages: int) -> int | None:
        start = self.runs.take(pages)
        if start is not None:
            self._words[Word.FREE_PAGES] -= pages
        return start

    def _chain(self, slot: int) -> None:
        self._set(slot, F.PLACE, self._words[Word.FREE_SLOT])
        self._words[Word.FREE_SLOT] = slot + 1

    def _slot(self, claims: Claims) -> int | None:
        """A free slot, claimed. One that a slow reader probes in this moment is left for later."""
        passed = []
        slot = None
        while slot is None and (head := self._words[Word.FREE_SLOT]):
            self._words[Word.FREE_SLOT] = self.get(head - 1, F.PLACE)
            if claims.take(head - 1):
                slot = head - 1
            else:
                passed.append(head - 1)
        for other in passed:
            self._chain(other)
        if slot is None and (high := self._words[Word.HIGH]) < self._layout.slots and claims.take(high):
            self._words[Word.HIGH] = high + 1
            slot = high
        return slot

    def _reclaim(self) -> None:
        """Frees what writers left that died, and what was retired under leases that have ended."""
        state = self._table()[:, F.WORD] & STATE
        for slot in np.flatnonzero((state == WRITING) | (state == RETIRED)).tolist():
            if self._probe.claim(slot_byte(slot)):
                self._free(slot)
                self._probe.end(slot_byte(slot))

    def _victims(self) -> Iterator[int]:
        """Visible slots nobody leases, L before score index before H, the coldest first; held through the probe."""
        yield from self._claimable()
        for limit in (_BATCH, None):
            self._cold = self._coldest(limit)
            yield from self._claimable()

    def _claimable(self) -> Iterator[int]:
        while self._cold:
            slot, word, used, _ = self._cold.popleft()
            unchanged = self.get(slot, F.WORD) == word and self.get(slot, F.USED) == used
            if unchanged and self._probe.claim(slot_byte(slot)):
                yield slot

    def _coldest(self, limit: int | None) -> deque[tuple[int, int, int, int]]:
        """Slot, word, last use and class of visible slots, in the order of eviction."""
        table = self._table()
        slots = np.flatnonzero(table[:, F.WORD] & STATE == READY)
        order = (table[slots, F.FORM] >> 32 << _TICK_BITS) + table[slots, F.USED]
        if limit is not None and limit < len(slots):
            first = np.argpartition(order, limit)[:limit]
            slots, order = slots[first], order[first]
        slots = slots[np.argsort(order, kind="stable")]
        rows = table[slots]
        return deque(
            zip(
                slots.tolist(),
                rows[:, F.WORD].tolist(),
                rows[:, F.USED].tolist(),
                (rows[:, F.FORM] >> 32).tolist(),
                strict=True,
            )
        )

    def _evict(self, slot: int) -> None:
        """A slot held through the probe."""
        self._words[Word.EVICTED + (self.get(slot, F.FORM) >> 32)] += 1
        self._index.remove(slot)
        self._free(slot)
        self._probe.end(slot_byte(slot))

    def _full(self, name: Name, size: int, why: str) -> StoreFull:
        layout = self._layout
        return StoreFull(
            f"block {name.text.decode()} of {size} bytes does not fit into the arena of "
            f"{layout.pages * layout.page_bytes} bytes: {why}; other tiers keep it, or raise the budget"
        )
