"""The slots of an arena: 64 bytes each, the only truth about what it holds.

The life of a slot::

    FREE ── reserve ─▶ WRITING ── publish ─▶ READY ── delete, replaced ─▶ RETIRED ── last lease ends ─▶ FREE
                          └── abort, death ─▶ FREE  └── evicted ─▶ FREE

State and generation of a slot share one aligned word of 8 bytes, so each of these arrows is one store that happened or
did not, wherever a process dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from x2l_cluster.kv.host.layout import HEADER_BYTES, SLOT_BYTES, Layout, Word

FREE: Final = 0
WRITING: Final = 1
READY: Final = 2
RETIRED: Final = 3
STATE: Final = 3
"""The bits of a word that are the state."""
_FIELDS: Final = SLOT_BYTES // 8


class F:
    """Places of a slot's fields, in words."""

    WORD: Final = 0
    """Generation × 4 + state."""
    HASH: Final = 1
    PLACE: Final = 2
    """First page + 2³² × pages. Of a free slot: the next free one + 1."""
    BYTES: Final = 3
    USED: Final = 4
    """The tick of its last use."""
    FORM: Final = 5
    """Bytes of the key's text + 2³² × eviction class."""
    VIDEO: Final = 6
    TENANT: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a blob lies."""

    slot: int
    generation: int
    start: int
    """Offset into the pages, in bytes."""
    size: int


class Slots:
    """The slots, as this process sees them."""

    def __init__(self, view: memoryview, layout: Layout) -> None:
        self._layout = layout
        self._words: memoryview[int] = view[:HEADER_BYTES].cast("Q")
        self._slots: memoryview[int] = view[layout.slots_at : layout.buckets_at].cast("Q")
        self._pages = view[layout.pages_at :]

    def get(self, slot: int, field: int) -> int:
        return self._slots[slot * _FIELDS + field]

    def _set(self, slot: int, field: int, value: int) -> None:
        self._slots[slot * _FIELDS + field] = value

    def holds(self, slot: int, generation: int) -> bool:
        """Whether the slot still holds what it held under that generation, visible or retired. Needs no lock."""
        word = self.get(slot, F.WORD)
        return word >> 2 == generation and word & STATE in (READY, RETIRED)

    def shows(self, slot: int, generation: int) -> bool:
        """Whether that generation is what readers should see. Needs no lock, but a lease to stay true."""
        return self.get(slot, F.WORD) == generation << 2 | READY

    def touch(self, slot: int) -> None:
        """Makes the slot the hottest. Needs no lock: at worst two get the same tick."""
        tick = self._words[Word.TICK] + 1
        self._words[Word.TICK] = tick
        self._set(slot, F.USED, tick)

    def found(self, slot: int) -> Found:
        return Found(
            slot=slot,
            generation=self.get(slot, F.WORD) >> 2,
            start=(self.get(slot, F.PLACE) & 0xFFFFFFFF) * self._layout.page_bytes,
            size=self.get(slot, F.BYTES),
        )

    def text(self, slot: int) -> bytes:
        """The slot's key. It stands behind its blob, so that the blob can begin at a page."""
        at = (self.get(slot, F.PLACE) & 0xFFFFFFFF) * self._layout.page_bytes + self.get(slot, F.BYTES)
        return bytes(self._pages[at : at + (self.get(slot, F.FORM) & 0xFFFFFFFF)])

    def ready(self, *, video: int | None = None, tenant: int | None = None) -> list[int]:
        """Visible slots, with this hash of a video or tenant. A look at every slot."""
        table = self._table()
        mask = table[:, F.WORD] & STATE == READY
        if video is not None:
            mask &= table[:, F.VIDEO] == video
        if tenant is not None:
            mask &= table[:, F.TENANT] == tenant
        return [int(slot) for slot in np.flatnonzero(mask)]

    def held_bytes(self) -> int:
        table = self._table()
        return int(table[table[:, F.WORD] & STATE == READY, F.BYTES].sum())

    def counter(self, word: int) -> int:
        return self._words[word]

    def _table(self, *, all_of_them: bool = False) -> npt.NDArray[np.uint64]:
        table = np.frombuffer(self._slots, dtype=np.uint64).reshape(-1, _FIELDS)
        return table if all_of_them else table[: self._words[Word.HIGH]]

    def _mark(self, slot: int, state: int) -> None:
        self._set(slot, F.WORD, self.get(slot, F.WORD) & ~STATE | state)
