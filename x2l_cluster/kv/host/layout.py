"""The parts of an arena's file, and the check that a file has them.

::

    ┌ header ┬ slots ┬ buckets ┬ free runs ┬ backed ┬ pages … ┐
    │ 4 KiB  │ 64 B  │ index,  │ 3 × 4 B   │ 1 B a  │ blobs,  │
    │        │ each  │ 4 B each│ a page    │ page   │ 1 run   │
    │        │       │         │           │        │ each    │
    └────────┴───────┴─────────┴───────────┴────────┴─────────┘

Only the *slots* are the truth. Index, free runs and counters follow from them and are made anew whenever somebody died
while changing them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

import xxhash

MAGIC: Final = b"x2l-host"
VERSION: Final = 1
HEADER_BYTES: Final = 4096
SLOT_BYTES: Final = 64
MAX_PAGES: Final = 1 << 31
_STATIC: Final = struct.Struct("<8sIIQQQ")
"""magic, version, bytes a page, pages, slots, buckets; a checksum follows."""
STATIC_BYTES: Final = _STATIC.size + 8
_PAGES_A_SLOT: Final = 2
"""Blobs of a page or less would run out of slots before they run out of pages; then the coldest make room."""


class Word:
    """Places of the header's counters, in words of 8 bytes."""

    BUSY: Final = 32
    """Not 0 while the tables are being changed; found so under the lock: who did it died, they are made anew."""
    GENERATION: Final = 33
    """The last one given out. Every filling of any slot has its own."""
    TICK: Final = 34
    """Counts uses; the time by which blobs are hot or cold."""
    HIGH: Final = 35
    """Slots from here on were never used."""
    FREE_SLOT: Final = 36
    """First of the chain of free slots below that, plus 1; 0 ends it."""
    FREE_PAGES: Final = 37
    REBUILT: Final = 38
    """How often the tables were made anew."""
    EVICTED: Final = 40
    """Blobs evicted to make room, one counter for each class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes of an arena; everything else follows from these."""

    page_bytes: int
    pages: int
    slots: int
    buckets: int

    @classmethod
    def of(cls, budget_bytes: int, page_bytes: int) -> Self:
        """The arena whose pages take up ``budget_bytes``."""
        pages = budget_bytes // page_bytes
        slots = max(pages // _PAGES_A_SLOT, min(pages, 64))
        return cls(page_bytes=page_bytes, pages=pages, slots=slots, buckets=1 << (2 * slots - 1).bit_length())

    @property
    def slots_at(self) -> int:
        return HEADER_BYTES

    @property
    def buckets_at(self) -> int:
        return self.slots_at + self.slots * SLOT_BYTES

    @property
    def runs_at(self) -> int:
        return self.buckets_at + 4 * self.buckets

    @property
    def backed_at(self) -> int:
        return self.runs_at + 3 * 4 * self.pages

    @property
    def pages_at(self) -> int:
        """A multiple of 2 MiB in large arenas, so that huge pages fit; of a page of memory in all."""
        align = 2 << 20 if self.pages * self.page_bytes >= 64 << 20 else 4096
        return -(-(self.backed_at + self.pages) // align) * align

    @property
    def total_bytes(self) -> int:
        return self.pages_at + self.pages * self.page_bytes

    def pack(self) -> bytes:
        static = _STATIC.pack(MAGIC, VERSION, self.page_bytes, self.pages, self.slots, self.buckets)
        return static + _sum(static)

    @classmethod
    def unpack(cls, front: bytes, file_bytes: int) -> Self | str:
        """The layout of a file that begins so, or what is wrong with it."""
        magic, version, page_bytes, pages, slots, buckets = _STATIC.unpack(front[: _STATIC.size].ljust(_STATIC.size))
        found = cls(page_bytes=page_bytes, pages=pages, slots=slots, buckets=buckets)
        sane = page_bytes > 0 and 0 < pages <= MAX_PAGES and found == cls.of(pages * page_bytes, page_bytes)
        for wrong, why in (
            (len(front) < STATIC_BYTES or magic != MAGIC, "it is no arena, or unfinished"),
            (version != VERSION, f"it has version {version}, this program needs {VERSION}"),
            (front[_STATIC.size :] != _sum(front[: _STATIC.size]), "its header is damaged"),
            (not sane, "its header makes no sense"),
            (file_bytes != found.total_bytes, f"it has {file_bytes} bytes instead of {found.total_bytes}"),
        ):
            if wrong:
                return why
        return found


def _sum(static: bytes) -> bytes:
    return xxhash.xxh3_64_digest(static)
