"""What to let go of when a tier is full: entries in, blocks to evict out. Pure; who does it is :mod:`.evictor`.

Blobs without a manifest go first, then L, the coldest first; score indexes and H only if the operator says so, since
without them a video cannot be asked about. A tenant has a quota that nobody else's writes can push it below. A block
goes whole, with all its stripes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from x2l_cluster.errors import InvalidInput
from x2l_cluster.types import BlockKey, Kind

_RANKS = (Kind.L, Kind.INDEX, Kind.H)
"""The order in which kinds go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A blob that a store holds. The larger ``heat``, the later it was wanted; only the order counts."""

    key: BlockKey
    size_bytes: int
    heat: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a tier may hold.

    Attributes:
        high, low: shares of the budget: above the one eviction begins, at the other it ends.
        quota_bytes: what a tenant may hold before others' writes can push its blocks out; 0 protects nobody.
        quotas: the same for tenants by name.
        coarse_too: when no L is left to evict, score indexes and H go too. Right for a tier that only keeps copies of
            them; where it is their home, their videos must then be repaired before they can be asked about.
    """

    budget_bytes: int
    high: float = 0.9
    low: float = 0.8
    quota_bytes: int = 0
    quotas: Mapping[str, int] = field(default_factory=dict)
    coarse_too: bool = False

    def __post_init__(self) -> None:
        if self.budget_bytes < 1 or not 0 < self.low <= self.high <= 1:
            raise InvalidInput(
                f"a tier has a budget of at least a byte, and watermarks 0 < low <= high <= 1; got {self.budget_bytes} "
                f"bytes, {self.low} and {self.high}"
            )
        if min(self.quota_bytes, *self.quotas.values(), 0) < 0:
            raise InvalidInput("quotas count from 0")

    @classmethod
    def parse(cls, text: str) -> Self:
        """``budget=50000000000,high=0.9,low=0.8,quota=1000000000,coarse=yes``. Raises InvalidInput."""
        known: dict[str, tuple[str, Callable[[str], Any]]] = {
            "budget": ("budget_bytes", int),
            "high": ("high", float),
            "low": ("low", float),
            "quota": ("quota_bytes", int),
            "coarse": ("coarse_too", {"yes": True, "no": False}.__getitem__),
        }
        given: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                field_name, read = known[name]
                given[field_name] = read(value)
            except (KeyError, ValueError):
                raise InvalidInput(
                    f"limits {text!r}: {part!r} is none of {', '.join(f'{name}=…' for name in known)}"
                ) from None
        if "budget_bytes" not in given:
            raise InvalidInput(f"limits {text!r} name no budget: give budget=BYTES")
        return cls(**given)

    @property
    def high_bytes(self) -> int:
        return int(self.budget_bytes * self.high)

    @property
    def low_bytes(self) -> int:
        return int(self.budget_bytes * self.low)

    def quota(self, tenant: str) -> int:
        return self.quotas.get(tenant, self.quota_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A block to evict: all blobs of it. ``over_quota``: it goes since its tenant holds more than its quota."""

    entries: tuple[Entry, ...]
    over_quota: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)

    @property
    def heat(self) -> float:
        return max(entry.heat for entry in self.entries)

    @property
    def key(self) -> BlockKey:
        """That of the block; blobs of it differ from that in their stripe."""
        return replace(self.entries[0].key, stripe=0)


def choose(
    entries: Iterable[Entry],
    limits: Limits,
    free_bytes: int,
    *,
    tenant: str | None = None,
    orphaned: Callable[[str, str], bool] | None = None,
) -> Iterator[Victim]:
    """Blocks that free at least so many bytes, or all that may go if those are not enough; the first ones first.

    Args:
        tenant: who needs the room: when nobody is above quota, its own blocks go, never another's.
        orphaned: whether a tenant's video has no manifest; by default all have one.
    """
    blocks = _blocks(entries)
    held: Counter[str] = Counter()
    for block in blocks:
        held[block.key.tenant] += block.size_bytes
    for victim in _in_order(blocks, limits, held, tenant, orphaned):  # which looks at ``held`` as it is by then
        if free_bytes <= 0:
            return
        free_bytes -= victim.size_bytes
        held[victim.key.tenant] -= victim.size_bytes
        yield victim


def _blocks(entries: Iterable[Entry]) -> list[Victim]:
    """Coldest first; what is equally cold in the order of its name."""
    stripes: defaultdict[BlockKey, list[Entry]] = defaultdict(list)
    for entry in entries:
        stripes[replace(entry.key, stripe=0)].append(entry)
    blocks = [Victim(entries=tuple(parts)) for parts in stripes.values()]
    return sorted(blocks, key=lambda block: (block.heat, block.key.parts))


def _in_order(
    blocks: list[Victim],
    limits: Limits,
    held: Mapping[str, int],
    tenant: str | None,
    orphaned: Callable[[str, str], bool] | None,
) -> Iterator[Victim]:
    videos = {(block.key.tenant, block.key.video) for block in blocks}
    orphans = {video for video in videos if orphaned and orphaned(*video)}
    left: list[Victim] = []
    for block in blocks:
        if (block.key.tenant, block.key.video) in orphans:
            yield block
        else:
            left.append(block)
    for kind in _RANKS if limits.coarse_too else (Kind.L,):
        mine: list[Victim] = []
        for block in left:
            if block.key.kind.partition("-")[0] != kind:
                continue
            quota = limits.quota(block.key.tenant)
            if held[block.key.tenant] - block.size_bytes >= quota:
                yield replace(block, over_quota=quota > 0)
            elif block.key.tenant == tenant:
                mine.append(block)
        yield from mine
