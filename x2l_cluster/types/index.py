"""What is stored of a video, and the record that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from x2l_cluster.errors import InvalidInput
from x2l_cluster.types.kinds import Kind
from x2l_cluster.types.recipe import Recipe
from x2l_cluster.types.video import SourceRef, Span, VideoInfo

LOCAL_TENANT = "local"

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


def check_name(what: str, value: str) -> str:
    """Tenant and video ids become parts of keys and paths: nothing that could leave its place is let in."""
    if not _NAME.fullmatch(value):
        raise InvalidInput(
            f"{what} must be 1–128 letters, digits, '.', '_' or '-' (first one alphanumeric), got {value!r}"
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockKey:
    """Names one stored blob: ``tenant / video / recipe / epoch / kind / chunk / stripe``."""

    tenant: str
    video: str
    recipe: str
    epoch: int
    kind: str
    """A :class:`Kind`; of a score index with its calibration's digest behind a dash (``x-1f…``), of a segment with
    ``-seg`` behind that of what it holds."""
    chunk: int
    """Of a segment the first chunk in it."""
    stripe: int = 0

    def __post_init__(self) -> None:
        for what, value in (
            ("tenant", self.tenant),
            ("video", self.video),
            ("recipe", self.recipe),
            ("kind", self.kind),
        ):
            check_name(what, value)
        if min(self.epoch, self.chunk, self.stripe) < 0:
            raise InvalidInput(f"epoch, chunk and stripe count from 0, got {self}")

    def __str__(self) -> str:
        return "/".join(str(part) for part in self.parts)

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.tenant, self.video, self.recipe, str(self.epoch), self.kind, str(self.chunk), str(self.stripe))


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Where a blob lies that was packed into a segment with others of its kind."""

    epoch: int
    """Of the run that packed it; the blob itself keeps the epoch it was made under."""
    chunk: int
    """The first chunk in the segment."""
    offset: int
    """Bytes from the segment's front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRef:
    """What a manifest says about one stored object; readers check against it."""

    kind: str
    epoch: int
    size_bytes: int
    """Of all its stripes."""
    checksum: str
    """16 hex digits: xxh3-64 of the payload, without the header; of several stripes that of their payloads' sums."""
    entries: int
    stripes: int = 1
    """How many blobs it is stored as."""
    packed: Packed | None = None
    """In which segment it lies; without, its blobs are stored under keys of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRow:
    """A sealed chunk: its place in time and position, and its blobs by kind."""

    index: int
    span: Span
    frames: int
    position_start: float
    position_end: float
    raw_entries: int
    """KV entries the chunk had before compression: what a full cache would hold."""
    blocks: Mapping[str, BlockRef]
    prints: bytes = b""
    """Eight bytes a sampled frame (:func:`x2l_cluster.video.chunks.frame_prints`): they tell whether a recording that
    has grown still begins with what was indexed."""


class IndexStatus(StrEnum):
    INDEXING = "indexing"
    READY = "ready"
    GROWING = "growing"
    """It was ready, and there is more of the recording by now, which is being indexed."""

    @property
    def was_ready(self) -> bool:
        """Whether all of a video is, or was at one time, covered: such an index is preferred to one still in the
        making."""
        return self is not IndexStatus.INDEXING


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The record that makes an index visible. It names only blobs that are fully stored."""

    tenant: str
    video: str
    recipe: Recipe
    epoch: int
    """The latest epoch that wrote to it; rows may stem from earlier ones."""
    revision: int = 0
    status: IndexStatus = IndexStatus.INDEXING
    info: VideoInfo
    source: SourceRef | None = None
    made_s: float = 0.0
    """When indexing last published something of it, in seconds since 1970: how old it is goes by that."""
    chunks: tuple[ChunkRow, ...] = ()
    tail: int = 0
    """How many chunks, at the end, are of a growing recording as it ended before. Questions are answered over them
    until the chunks that replace them are sealed."""

    @property
    def settled(self) -> tuple[ChunkRow, ...]:
        """The chunks that stay as they are; work goes on behind them."""
        return self.chunks[: len(self.chunks) - self.tail]

    @property
    def span(self) -> Span:
        """The sealed part."""
        return (
            Span(start_s=self.chunks[0].span.start_s, end_s=self.chunks[-1].span.end_s)
            if self.chunks
            else Span(start_s=0.0, end_s=0.0)
        )

    def key(self, ref: BlockRef, chunk: int, stripe: int = 0) -> BlockKey:
        """What a blob of ``ref`` says it is, wherever it lies."""
        return self._key(ref.epoch, ref.kind, chunk, stripe)

    def keys(self, ref: BlockRef, chunk: int) -> tuple[BlockKey, ...]:
        """What a store is asked for to have all of ``ref``: its stripes in order, or the segment it lies in."""
        if ref.packed is not None:
            return (self._key(ref.packed.epoch, Kind.segment(ref.kind), ref.packed.chunk),)
        return tuple(self.key(ref, chunk, stripe) for stripe in range(ref.stripes))

    @property
    def named(self) -> frozenset[BlockKey]:
        """Every blob the rows name, segments included."""
        return frozenset(key for row in self.chunks for ref in row.blocks.values() for key in self.keys(ref, row.index))

    def _key(self, epoch: int, kind: str, chunk: int, stripe: int = 0) -> BlockKey:
        return BlockKey(
            tenant=self.tenant,
            video=self.video,
            recipe=self.recipe.digest,
            epoch=epoch,
            kind=kind,
            chunk=chunk,
            stripe=stripe,
        )

    @property
    def stored_bytes(self) -> int:
        """Of all blobs the rows name, whatever of them a store may have lost."""
        return sum(ref.size_bytes for row in self.chunks for ref in row.blocks.values())

    def size_bytes(self, kind: str) -> int:
        return sum(row.blocks[kind].size_bytes for row in self.chunks if kind in row.blocks)
