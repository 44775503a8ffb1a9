"""Letting go: of fine detail on purpose, and of blobs that nothing names any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from x2l_cluster.errors import ManifestCorrupt, UnknownVideo
from x2l_cluster.kv.store import KVStore
from x2l_cluster.metrics import KV_EVICTIONS, kind_of
from x2l_cluster.state.base import StateStore
from x2l_cluster.types import BlockKey, Kind, Manifest


def decay(manifest: Manifest, *, kv: KVStore, state: StateStore) -> Manifest:
    """Lets go of the fine blocks of an index: first no row names them any more, then they go.

    Raises UnknownVideo, ManifestConflict while it is being indexed, StoreUnavailable (it can be called again then).
    """
    tenant, video, recipe = manifest.tenant, manifest.video, manifest.recipe.digest
    left = state.decay(tenant, video, recipe)
    gone = [
        key
        for key in kv.keys(tenant, video)
        if key.recipe == recipe and kind_of(key.kind) == Kind.L and key.epoch <= left.epoch  # later: of a repair
    ]
    kv.delete(gone)
    KV_EVICTIONS.labels(kv.route(Kind.L).tier.value, str(Kind.L), "decay").inc(len(gone))
    return left


def orphaned(state: StateStore) -> Callable[[str, str], bool]:
    """Whether a tenant's video has no manifest, for an evictor: its blobs are what a deletion did not reach."""

    def without_manifest(tenant: str, video: str) -> bool:
        try:
            state.manifest(tenant, video)
        except UnknownVideo:
            return True
        except ManifestCorrupt:
            return False
        return False

    return without_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphans:
    """Blobs of a video that nothing names and nothing will.

    Attributes:
        unknown: blobs no manifest names, of runs later than any that the state knows of. They are left alone: it is the
            state that is too old (lost, or restored from a backup), not they.
    """

    tenant: str
    video: str
    keys: tuple[BlockKey, ...] = field(repr=False)
    unknown: int = 0


def orphans(kv: KVStore, state: StateStore) -> Iterator[Orphans]:
    """Looks at every video a store has blobs of, and yields those with something amiss. Walks all of the store.

    A run begins in the state before it stores anything, under a number above all earlier ones, and a row that has been
    published never changes to name an older blob. So a blob, listed before the state is asked, is an orphan if

    - its index is gone (a deletion did not reach it, or it was written after one), or
    - a later run has begun and no row names it (an overtaken run, one that died, a deletion half done).

    What the latest run has stored and not yet published is neither. Raises StoreUnavailable.
    """
    for tenant, video in sorted(kv.videos()):
        found = orphans_of(tenant, video, kv=kv, state=state)
        if found.keys or found.unknown:
            yield found


def orphans_of(tenant: str, video: str, *, kv: KVStore, state: StateStore) -> Orphans:
    """As :func:`orphans`, of one video. Raises StoreUnavailable."""
    held = list(kv.keys(tenant, video))
    latest = state.epoch(tenant)  # of whatever was listed, the run had begun by now
    lost: list[BlockKey] = []
    unknown = 0
    for recipe in sorted({key.recipe for key in held}):
        keys = [key for key in held if key.recipe == recipe]
        try:
            manifest = state.manifest(tenant, video, recipe)
        except UnknownVideo:
            lost += [key for key in keys if key.epoch <= latest]
            unknown += sum(key.epoch > latest for key in keys)
        except ManifestCorrupt:
            continue  # nobody knows what it names
        else:
            named = manifest.named
            lost += [key for key in keys if key.epoch < manifest.epoch and key not in named]
    return Orphans(tenant=tenant, video=video, keys=tuple(lost), unknown=unknown)
