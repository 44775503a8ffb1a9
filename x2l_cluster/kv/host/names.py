"""Keys as an arena knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import xxhash

from x2l_cluster.types import BlockKey, Kind, check_name

RANKS: Final = {Kind.L.value: 0, Kind.INDEX.value: 1, Kind.H.value: 2}
"""Order of eviction: without L a question loses detail, without its index aim, without H it has no answer."""
LAST_RANK: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A key as the tables know it. ``text`` decides; hashes only narrow the search."""

    text: bytes
    hash: int
    video: int
    tenant: int
    rank: int
    """Eviction class, 0 goes first."""


def hash_of(text: bytes) -> int:
    return xxhash.xxh3_64_intdigest(text)


def prefix_of(tenant: str, video: str | None = None) -> bytes:
    tenant = check_name("tenant", tenant)
    return f"{tenant}/".encode() if video is None else f"{tenant}/{check_name('video', video)}/".encode()


def name_of(key: BlockKey) -> Name:
    text = str(key).encode()
    return Name(
        text=text,
        hash=hash_of(text),
        video=hash_of(prefix_of(key.tenant, key.video)),
        tenant=hash_of(prefix_of(key.tenant)),
        rank=RANKS.get(key.kind.partition("-")[0], LAST_RANK),
    )


def key_of(text: bytes) -> BlockKey:
    tenant, video, recipe, epoch, kind, chunk, stripe = text.decode().split("/")
    return BlockKey(
        tenant=tenant,
        video=video,
        recipe=recipe,
        epoch=int(epoch),
        kind=kind,
        chunk=int(chunk),
        stripe=int(stripe),
    )
