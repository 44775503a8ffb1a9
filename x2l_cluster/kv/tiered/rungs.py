"""The tiers of a store, fastest first, and what each is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from x2l_cluster.errors import InvalidInput
from x2l_cluster.kv.store import KVStore
from x2l_cluster.types import Kind, Tier

KINDS: Final = frozenset(Kind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rung:
    """One tier: the kinds (:class:`~x2l_cluster.types.Kind`) it is home to, and those it keeps copies of.

    What was put is in its home when ``put`` returns. A copy may vanish, or never come.
    """

    store: KVStore
    home: frozenset[str] = frozenset()
    copies: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.home & self.copies or not (self.home | self.copies) <= KINDS:
            raise InvalidInput(
                f"a tier is home to some kinds and keeps copies of others, of {', '.join(sorted(KINDS))}; got home "
                f"{sorted(self.home)} and copies {sorted(self.copies)}"
            )


def ladder(stores: Sequence[KVStore]) -> tuple[Rung, ...]:
    """What tiers are for by themselves: the last is home to H and score indexes; L's home is the first remote one, if
    there is any, else the last too. Whatever is faster than a home keeps copies. Raises InvalidInput.
    """
    if len(stores) < 2:
        raise InvalidInput(f"tiers are at least two stores, fastest first; got {len(stores)}")
    fine = next((place for place, store in enumerate(stores) if store.tier is Tier.REMOTE), len(stores) - 1)
    rungs = []
    for place, store in enumerate(stores):
        last = place == len(stores) - 1
        home = {Kind.L} if place == fine else set()
        copies = {Kind.L} if place < fine else set()
        (home if last else copies).update((Kind.H, Kind.INDEX))
        rungs.append(Rung(store=store, home=frozenset(home), copies=frozenset(copies)))
    return tuple(rungs)


def ways(rungs: Sequence[Rung]) -> Mapping[str, tuple[Rung, ...]]:
    """By kind, the tiers that may have it, its home last. Raises InvalidInput unless every kind has one home, behind
    all copies."""
    found = {}
    for kind in KINDS:
        way = tuple(rung for rung in rungs if kind in rung.home | rung.copies)
        homes = [rung for rung in way if kind in rung.home]
        if len(homes) != 1 or way[-1] is not homes[0]:
            raise InvalidInput(f"blocks of kind {kind.value!r} need one home, in the slowest tier that takes them")
        found[kind.value] = way
    return found
