"""Blocks on their way back: from the tiers, checked against the manifest, as pages the model can attend to."""

from __future__ import annotations

from dataclasses import dataclass

from x2l_cluster.engine.assemble import Assembler
from x2l_cluster.engine.cache import ByteCache
from x2l_cluster.engine.place import Placement
from x2l_cluster.errors import BlockCorrupt, BlockMissing, KVError, KVMissing, StoreUnavailable
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.kv.codec import decode, unpack
from x2l_cluster.kv.store import KVStore
from x2l_cluster.models import Page, VideoLM
from x2l_cluster.select import Features
from x2l_cluster.types import BlockKey, BlockRef, ChunkRow, Kind, Level, Manifest, Tier

PageKey = tuple[str, str, str, str, int, str, float]


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
        self._pages: ByteCache[PageKey, Page] = ByteCache(budget_bytes, _page_bytes)

    def block(self, manifest: Manifest, row: ChunkRow, kind: str) -> KVBlock:
        """One stored block, verified. Raises BlockMissing, BlockCorrupt or StoreUnavailable."""
        return decode(*self._fetch(manifest, row, kind))

    def features(self, manifest: Manifest, row: ChunkRow, kind: str) -> Features:
        """What a scorer stored of a chunk. Raises as :meth:`block` does."""
        tensors, meta = unpack(*self._fetch(manifest, row, kind))
        return Features(tensors, meta)

    def _fetch(self, manifest: Manifest, row: ChunkRow, kind: str) -> tuple[memoryview, BlockKey, BlockRef]:
        ref = row.blocks.get(kind)
        if ref is None:
            raise BlockMissing(f"chunk {row.index} of video {manifest.video} has no {kind!r} block; index it again")
        key = manifest.key(ref, row.index)
        return self._kv.get(key), key, ref

    def page(self, manifest: Manifest, row: ChunkRow, level: Level, where: Placement) -> Loaded:
        """A chunk at exactly this level. Raises as :meth:`block` does."""
        kind = Kind.of(level)
        ref = row.blocks.get(kind)
        checksum = ref.checksum if ref else ""
        key = (manifest.tenant, manifest.video, manifest.recipe.digest, str(kind), row.index, checksum, where.factor)

        def make() -> Page:
            block = self.block(manifest, row, kind)
            return self._assembler.page(block, where(block.coords))

        page, hot = self._pages.get(key, make)
        moved = 0 if hot or ref is None else ref.size_bytes
        return Loaded(page=page, level=level, tier=Tier.DEVICE if hot else self._kv.route(kind).tier, moved_bytes=moved)

    def coarse(self, manifest: Manifest, where: Placement) -> list[Loaded]:
        """H of every sealed chunk. Raises KVMissing when one is gone: then the video must be indexed again."""
        loaded = []
        for row in manifest.chunks:
            try:
                loaded.append(self.page(manifest, row, Level.H, where))
            except StoreUnavailable:
                raise
            except KVError as error:
                raise KVMissing(
                    f"the coarse KVs of chunk {row.index} of video {manifest.video} are gone ({error}); index it again"
                ) from error
        return loaded

    def fine(self, manifest: Manifest, row: ChunkRow, where: Placement, *, instead: Loaded) -> Loaded:
        """L of a chunk, or ``instead`` (its H), flagged, when L is missing, damaged or out of reach."""
        try:
            return self.page(manifest, row, Level.L, where)
        except KVError as error:
            return Loaded(page=instead.page, level=Level.H, tier=instead.tier, moved_bytes=0, degraded=_reason(error))

    def forget(self, tenant: str, video: str) -> None:
        """Drops every page of a video."""
        self._pages.drop(lambda key: key[:2] == (tenant, video))


def _reason(error: KVError) -> str:
    if isinstance(error, BlockMissing):
        return "missing"
    if isinstance(error, BlockCorrupt):
        return "corrupt"
    return "unavailable"


def _page_bytes(page: Page) -> int:
    return page.keys.nbytes + page.values.nbytes
