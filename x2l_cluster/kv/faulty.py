"""A store that fails on purpose: what a disk, a network, or another program may do to blobs, by seed and rate.

A fault strikes the read of a blob (a reset strikes writes too), at most one each. What strikes depends on the seed, the
key and how often that key was asked for, so the same reads meet the same faults whatever threads do. It is for tests,
benches and drills: by URL, ``faulty:seed=7,flip=0.05,kinds=l@URL``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from random import Random
from threading import Lock
from typing import Any, Self

from x2l_cluster.errors import BlockCorrupt, BlockMissing, InvalidInput, StoreLate, StoreUnavailable
from x2l_cluster.kv.blob import Head, pack, unpack
from x2l_cluster.kv.store import ANY, Buffer, Fetched, KVStore, SingleStore, Want, missing_message, room_for
from x2l_cluster.types import BlockKey, Kind, Tier


class Fault(StrEnum):
    """What may happen to a blob on its way."""

    DROP = "drop"
    """It is not found, though it is there."""
    DELAY = "delay"
    """It comes late; too late for a reader that does not wait so long."""
    TRUNCATE = "truncate"
    FLIP = "flip"
    """One bit is another."""
    EVICT = "evict"
    """It is deleted before it is read."""
    STALE_EPOCH = "stale_epoch"
    """An honest blob of an earlier run comes, with other content."""
    STALE_RECIPE = "stale_recipe"
    """An honest blob of another key comes."""
    RESET = "reset"
    """The connection breaks; of a write nobody can tell whether it was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """How often what goes wrong.

    Attributes:
        drop … reset: share of reads that meet this :class:`Fault`, 0 to 1; all together at most 1.
        kinds: what is struck: letters of ``l``, ``h`` and ``x``.
        delay_s: by how much a delayed blob is late; ``patience_s`` is how long a reader waits that does not say.
    """

    seed: int = 0
    drop: float = 0.0
    delay: float = 0.0
    truncate: float = 0.0
    flip: float = 0.0
    evict: float = 0.0
    stale_epoch: float = 0.0
    stale_recipe: float = 0.0
    reset: float = 0.0
    kinds: str = "lhx"
    delay_s: float = 0.05
    patience_s: float = 5.0

    def __post_init__(self) -> None:
        rates = [self.rate(fault) for fault in Fault]
        if min(rates) < 0 or sum(rates) > 1 + 1e-9:
            raise InvalidInput(f"rates of faults are shares of the reads, together at most 1, got {rates}")
        if not self.kinds or not set(self.kinds) <= {str(kind) for kind in Kind}:
            raise InvalidInput(f"kinds of faults are letters of l, h and x, got {self.kinds!r}")
        if min(self.delay_s, self.patience_s) < 0:
            raise InvalidInput(f"delay_s and patience_s count from 0, got {self.delay_s} and {self.patience_s}")

    def rate(self, fault: Fault) -> float:
        rate: float = getattr(self, fault)
        return rate

    @classmethod
    def parse(cls, text: str) -> Self:
        """``seed=7,flip=0.05,drop=0.1,kinds=lx``. Raises InvalidInput."""
        types: dict[str, Callable[[str], Any]] = {"seed": int, "kinds": str}
        known = {field.name: types.get(field.name, float) for field in fields(cls)}
        given: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                given[name] = known[name](value)
            except (KeyError, ValueError):
                raise InvalidInput(
                    f"faults {text!r}: {part!r} is none of {', '.join(f'{name}=…' for name in known)}"
                ) from None
        return cls(**given)


class Dice:
    """Decides what strikes, and counts it. Safe for several threads."""

    def __init__(self, plan: FaultPlan) -> None:
        self._plan = plan
        self._asked: Counter[tuple[str, BlockKey]] = Counter()
        self._struck: Counter[Fault] = Counter()
        self._lock = Lock()

    def throw(self, what: str, key: BlockKey, *faults: Fault) -> tuple[Fault | None, Random]:
        """Which of ``faults`` strikes, if one does, and the chance that says how."""
        if key.kind[0] not in self._plan.kinds:
            return None, Random(0)
        with self._lock:
            self._asked[what, key] += 1
            chance = Random(f"{self._plan.seed}/{what}/{key}/{self._asked[what, key]}")
            mark = chance.random()
            for fault in faults:
                mark -= self._plan.rate(fault)
                if mark < 0:
                    self._struck[fault] += 1
                    return fault, chance
        return None, chance

    @property
    def struck(self) -> dict[Fault, int]:
        with self._lock:
            return dict(self._struck)


class FaultyKV(SingleStore):
    """Another store, with faults; it closes that.

    Args:
        sleep: how a delay passes.
        dice: those of another wrapper, to go on with.
    """

    def __init__(
        self,
        store: KVStore,
        plan: FaultPlan,
        *,
        sleep: Callable[[float], None] = time.sleep,
        dice: Dice | None = None,
    ) -> None:
        self._store = store
        self._plan = plan
        self._sleep = sleep
        self._dice = dice or Dice(plan)

    @property
    def tier(self) -> Tier:
        return self._store.tier

    @property
    def durable(self) -> bool:
        return self._store.durable

    @property
    def struck(self) -> Mapping[Fault, int]:
        """How often each fault struck."""
        return self._dice.struck

    def route(self, kind: str) -> Self:
        kept = self._store.route(kind)
        return self if kept is self._store else type(self)(kept, self._plan, sleep=self._sleep, dice=self._dice)

    def put(self, key: BlockKey, blob: Buffer) -> None:
        fault, chance = self._dice.throw("put", key, Fault.RESET)
        if fault is None or chance.random() < 0.5:
            self._store.put(key, blob)
        if fault is not None:
            raise _reset(key)

    def get(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> memoryview:
        return self.fetch(key, into, want=want).blob

    def fetch(self, key: BlockKey, into: memoryview | None = None, *, want: Want = ANY) -> Fetched:
        fault, chance = self._dice.throw("get", key, *Fault)
        match fault:
            case Fault.RESET:
                raise _reset(key)
            case Fault.DROP:
                raise BlockMissing(missing_message(key, "the store (a fault on purpose)"))
            case Fault.EVICT:
                self._store.delete([key])
            case Fault.DELAY:
                self._delay(key, want)
            case Fault.TRUNCATE | Fault.FLIP | Fault.STALE_EPOCH | Fault.STALE_RECIPE:
                found = self._store.fetch(key, want=want)
                return replace(found, blob=_deliver(key, self._spoilt(key, found.blob, fault, chance), into))
        return self._store.fetch(key, into, want=want)

    def prefetch(self, keys: Iterable[BlockKey]) -> None:
        self._store.prefetch(keys)

    def delete(self, keys: Iterable[BlockKey]) -> int:
        return self._store.delete(keys)

    def delete_video(self, tenant: str, video: str) -> int:
        return self._store.delete_video(tenant, video)

    def keys(self, tenant: str, video: str) -> Iterator[BlockKey]:
        return self._store.keys(tenant, video)

    def videos(self) -> Iterator[tuple[str, str]]:
        return self._store.videos()

    def places(self) -> Iterator[KVStore]:
        return self._store.places()

    def held_bytes(self, tenant: str | None = None) -> int:
        return self._store.held_bytes(tenant)

    def close(self) -> None:
        self._store.close()

    def _delay(self, key: BlockKey, want: Want) -> None:
        patience_s = self._plan.patience_s if want.within_s is None else want.within_s
        self._sleep(min(self._plan.delay_s, patience_s))
        if patience_s < self._plan.delay_s:
            raise StoreLate(f"block {key} did not come within {patience_s} s (a fault on purpose): ask again")

    def _spoilt(self, key: BlockKey, sound: memoryview, fault: Fault, chance: Random) -> bytes:
        blob = bytearray(sound)
        if fault is Fault.FLIP and blob:
            blob[chance.randrange(len(blob))] ^= 1 << chance.randrange(8)
        elif fault is Fault.TRUNCATE and blob:
            del blob[chance.randrange(len(blob)) :]
        elif fault is Fault.STALE_EPOCH:
            blob = _as_if(self._another(key, chance) or blob, replace(key, epoch=key.epoch - 1 if key.epoch else 1))
        elif fault is Fault.STALE_RECIPE:
            blob = self._another(key, chance) or _as_if(blob, replace(key, recipe="another"))
        return bytes(blob)

    def _another(self, key: BlockKey, chance: Random) -> bytearray | None:
        """A blob of the same kind and video under another key."""
        others = sorted(
            (other for other in self._store.keys(key.tenant, key.video) if other.kind == key.kind and other != key),
            key=str,
        )
        return bytearray(self._store.get(chance.choice(others))) if others else None


def _as_if(blob: bytearray, key: BlockKey) -> bytearray:
    """The same content, honestly headed by another key."""
    try:
        tensors, meta = unpack(blob)
        return pack(tensors, meta, key, entries=Head.read(blob).entries)
    except BlockCorrupt:  # not a blob by itself
        return blob


def _deliver(key: BlockKey, blob: bytes, into: memoryview | None) -> memoryview:
    if into is None:
        return memoryview(blob)
    room = room_for(key, len(blob), into)
    room[:] = blob
    return room.toreadonly()


def _reset(key: BlockKey) -> StoreUnavailable:
    return StoreUnavailable(f"the connection was reset at block {key} (a fault on purpose): ask again")
