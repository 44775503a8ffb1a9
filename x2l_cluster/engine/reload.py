"""Blocks on their way back: from the tiers, checked against the manifest, as pages the model can attend to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from x2l_cluster.engine.assemble import Assembler
from x2l_cluster.engine.cache import ByteCache
from x2l_cluster.engine.place import Placement
from x2l_cluster.errors import BlockMissing, KVError, KVMissing, StoreUnavailable
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.kv.codec import decode, unpack
from x2l_cluster.kv.measured import reason_of
from x2l_cluster.kv.store import KVStore, Want
from x2l_cluster.metrics import KV_MISSES, kind_of
from x2l_cluster.models import Page, VideoLM
from x2l_cluster.select import Features
from x2l_cluster.types import BlockKey, BlockRef, ChunkRow, Kind, Level, Manifest, Tier

T = TypeVar("T")
PageKey = tuple[str, str, str, str, int, str, float]
REPAIR = "index the file again with repair=True (`x2l index FILE --repair`)"
COARSE_SHARE = 0.75
"""Of the budget: H of hot videos is read whole by every question, so it must not be driven out by passing L."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A page and where it came from. ``degraded`` tells why it is coarse although fine was planned."""

    page: Page
    level: Level
    tier: Tier
    moved_bytes: int
    degraded: str | None = None


class Reloader:
    """Reads blocks and keeps their pages hot: H for as long as it fits, L while questions share it.

    Safe for several threads; a block that many ask for at once is fetched once.

    Args:
        budget_bytes: what the pages kept hot may take.
    """

    def __init__(self, lm: VideoLM, kv: KVStore, *, budget_bytes: int) -> None:
        self._kv = kv
        self._assembler = Assembler(lm)
        coarse_bytes = int(budget_bytes * COARSE_SHARE)
        self._pages: dict[Level, ByteCache[PageKey, Page]] = {
            Level.H: ByteCache(coarse_bytes, _page_bytes),
            Level.L: ByteCache(budget_bytes - coarse_bytes, _page_bytes),
        }

    def block(self, manifest: Manifest, row: ChunkRow, kind: str) -> KVBlock:
        """One stored block, verified. Raises BlockMissing, BlockCorrupt or StoreUnavailable."""
        return self._read(manifest, row, kind, decode)[0]

    def features(self, manifest: Manifest, row: ChunkRow, kind: str) -> Features:
        """What a scorer stored of a chunk. Raises as :meth:`block` does."""
        (tensors, meta), _ = self._read(manifest, row, kind, unpack)
        return Features(tensors, meta)

    def _read(
        self, manifest: Manifest, row: ChunkRow, kind: str, make: Callable[[memoryview, BlockKey, BlockRef], T]
    ) -> tuple[T, Tier]:
        """What ``make`` finds in a stored blob, and the tier it came from. What cannot be used is a counted miss."""
        ref = row.blocks.get(kind)
        if ref is None:
            raise BlockMissing(f"chunk {row.index} of video {manifest.video} has no {kind!r} block; {REPAIR}")
        key = manifest.key(ref, row.index)
        try:
            found = self._kv.fetch(key, want=Want(size_bytes=ref.size_bytes))
            return make(found.blob, key, ref), found.tier
        except KVError as error:
            KV_MISSES.labels(kind_of(kind), reason_of(error)).inc()
            raise

    def page(self, manifest: Manifest, row: ChunkRow, level: Level, where: Placement | None) -> Loaded:
        """A chunk at exactly this level; unrotated without a placement. Raises as :meth:`block` does."""
        kind = Kind.of(level)
        ref = row.blocks.get(kind)
        tier = Tier.DEVICE

        def make() -> Page:
            nonlocal tier
            block, tier = self._read(manifest, row, kind, decode)
            return self._assembler.page(block, where(block.coords) if where else None)

        page, hot = self._pages[level].get(_key(manifest, row, level, where), make)
        moved = 0 if hot or ref is None else ref.size_bytes
        return Loaded(page=page, level=level, tier=tier, moved_bytes=moved)

    def coarse(self, manifest: Manifest, where: Placement | None) -> list[Loaded]:
        """H of every sealed chunk. Raises KVMissing when one is gone: then the index must be repaired."""
        loaded = []
        for row in manifest.chunks:
            try:
                loaded.append(self.page(manifest, row, Level.H, where))
            except StoreUnavailable:
                raise
            except KVError as error:
                raise KVMissing(
                    f"the coarse KVs of chunk {row.index} of video {manifest.video} are gone ({error}); {REPAIR}"
                ) from error
        return loaded

    def fine(
        self,
        manifest: Manifest,
        rows: Sequence[ChunkRow],
        where: Placement | None,
        *,
        instead: Mapping[int, Loaded],
        strict: bool = False,
    ) -> dict[int, Loaded]:
        """L of some chunks by index, or what ``instead`` has of them (their H), flagged, when L is missing, damaged or
        out of reach. A store that does not answer is not asked again for the same question.

        Raises BlockMissing, BlockCorrupt or StoreUnavailable if ``strict``.
        """
        loaded: dict[int, Loaded] = {}
        away = False
        for row in rows:
            coarse = instead[row.index]
            try:
                if away and not self._is_hot(manifest, row, where):
                    raise StoreUnavailable("the store did not answer for an earlier chunk of this question")
                loaded[row.index] = self.page(manifest, row, Level.L, where)
            except KVError as error:
                if strict:
                    raise
                away = away or isinstance(error, StoreUnavailable)
                loaded[row.index] = replace(coarse, moved_bytes=0, degraded=reason_of(error))
        return loaded

    def _is_hot(self, manifest: Manifest, row: ChunkRow, where: Placement | None) -> bool:
        return _key(manifest, row, Level.L, where) in self._pages[Level.L]

    def forget(self, tenant: str, video: str) -> None:
        """Drops every page of a video."""
        for pages in self._pages.values():
            pages.drop(lambda key: key[:2] == (tenant, video))


def _key(manifest: Manifest, row: ChunkRow, level: Level, where: Placement | None) -> PageKey:
    kind = Kind.of(level)
    ref = row.blocks.get(kind)
    checksum = ref.checksum if ref else ""
    factor = where.factor if where else 0.0
    return (manifest.tenant, manifest.video, manifest.recipe.digest, str(kind), row.index, checksum, factor)


def _page_bytes(page: Page) -> int:
    return page.keys.nbytes + page.values.nbytes
