"""Blocks on their way back: from the tiers, checked against the manifest, as pages the model can attend to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from x2l_cluster.engine.assemble import Assembler
from x2l_cluster.engine.cache import ByteCache
from x2l_cluster.engine.place import Placement
from x2l_cluster.engine.read import REPAIR, Reader
from x2l_cluster.errors import KVError, KVMissing, StoreLate, StoreUnavailable
from x2l_cluster.kv.codec import Buffer, decode_stripes
from x2l_cluster.kv.measured import reason_of
from x2l_cluster.models import Page, VideoLM
from x2l_cluster.types import BlockKey, BlockRef, ChunkRow, Kind, Level, Manifest, Tier

PageKey = tuple[str, str, str, str, int, str, float]
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
        reader: where blocks come from.
        budget_bytes: what the pages kept hot may take.
    """

    def __init__(self, lm: VideoLM, reader: Reader, *, budget_bytes: int) -> None:
        self._reader = reader
        self._assembler = Assembler(lm)
        coarse_bytes = int(budget_bytes * COARSE_SHARE)
        self._pages: dict[Level, ByteCache[PageKey, Page]] = {
            Level.H: ByteCache(coarse_bytes, _page_bytes),
            Level.L: ByteCache(budget_bytes - coarse_bytes, _page_bytes),
        }

    def pages(
        self,
        manifest: Manifest,
        rows: Sequence[ChunkRow],
        level: Level,
        where: Placement | None,
        *,
        most_s: float | None = None,
    ) -> list[Loaded | KVError]:
        """Chunks at exactly this level, under one deadline, or why one cannot be had; unrotated without a placement.

        A block that somebody else fetches is waited for no longer than that, and what came too late for somebody else
        is tried again for who has more time.
        """
        kind = Kind.of(level)
        deadline = self._reader.deadline([(row, kind) for row in rows], most_s=most_s)
        by_key = {_key(manifest, row, level, where): row for row in rows}
        tiers: dict[int, Tier] = {}

        def read(blobs: Iterator[Buffer], key: BlockKey, ref: BlockRef) -> Page:
            return self._assembler.gather(decode_stripes(blobs, key, ref), where)

        def make(keys: Sequence[PageKey]) -> Iterator[Page | Exception]:
            missing = [by_key[key] for key in keys]
            with self._reader.batch(manifest, [(row, kind) for row in missing], deadline=deadline) as batch:
                for row in missing:
                    try:
                        page = batch.use(row, kind, read)
                        tiers[row.index] = batch.tier
                        yield page
                    except KVError as error:
                        yield error

        loaded: list[Loaded | KVError] = []

        def left_s() -> float:
            try:
                return deadline.left_s()
            except StoreLate:
                return 0.0

        made = self._pages[level].get_all(list(by_key), make, left_s=left_s, again=lambda e: isinstance(e, StoreLate))
        for row, found in zip(rows, made, strict=True):
            if isinstance(found, KVError):
                loaded.append(found)
            elif isinstance(found, TimeoutError):
                late = (
                    f"chunk {row.index} of video {manifest.video}, which another question fetches, did not come in time"
                )
                loaded.append(StoreLate(late))
            elif isinstance(found, Exception):  # somebody else made it, and failed
                raise found
            else:
                page, hot = found
                moved = 0 if hot else row.blocks[kind].size_bytes
                loaded.append(Loaded(page=page, level=level, tier=tiers.get(row.index, Tier.DEVICE), moved_bytes=moved))
        return loaded

    def coarse(self, manifest: Manifest, where: Placement | None) -> list[Loaded]:
        """H of every sealed chunk. Raises KVMissing when one is gone: then the index must be repaired."""
        loaded = []
        for row, found in zip(manifest.chunks, self.pages(manifest, manifest.chunks, Level.H, where), strict=True):
            if isinstance(found, StoreUnavailable):
                raise found
            if isinstance(found, KVError):
                raise KVMissing(
                    f"the coarse KVs of chunk {row.index} of video {manifest.video} are gone ({found}); {REPAIR}"
                ) from found
            loaded.append(found)
        return loaded

    def fine(
        self,
        manifest: Manifest,
        rows: Sequence[ChunkRow],
        where: Placement | None,
        *,
        instead: Mapping[int, Loaded],
        strict: bool = False,
        most_s: float | None = None,
    ) -> dict[int, Loaded]:
        """L of some chunks by index, or what ``instead`` has of them (their H), flagged, when L is missing, damaged,
        out of reach or not there after ``most_s``. A store that does not answer is not asked again for the same
        question.

        Raises BlockMissing, BlockCorrupt or StoreUnavailable if ``strict``.
        """
        loaded: dict[int, Loaded] = {}
        for row, found in zip(rows, self.pages(manifest, rows, Level.L, where, most_s=most_s), strict=True):
            if isinstance(found, Loaded):
                loaded[row.index] = found
            elif strict:
                raise found
            else:
                loaded[row.index] = replace(instead[row.index], moved_bytes=0, degraded=reason_of(found))
        return loaded

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
