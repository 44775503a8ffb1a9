"""The nouns of the system, without torch: what is stored, planned, asked and answered.

Everything here is a frozen value that checks itself. Times are seconds from the first frame, sizes are bytes.
Spans are half open, ``[start_s, end_s)``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any, Self

import xxhash

from x2l_cluster.errors import InvalidInput, InvalidRecipe

LAYOUT_VERSION = 2
"""Changes whenever stored bytes change their meaning; part of every recipe digest."""

LOCAL_TENANT = "local"
MAX_CHUNK_PIXELS = 1 << 28
"""More than 100 frames of 1080p; a worker that is asked for more than it has memory for would die of it."""
MAX_CHUNK_FRAMES = 1 << 16
"""What is known of each goes into one record of the state."""


# --- levels, tiers, kinds -------------------------------------------------------------------------------------------


class Level(StrEnum):
    """How much of a chunk is kept. ``L`` is the paper's *low* compression: fine detail. ``H`` is the coarse gist."""

    L = "L"
    H = "H"

    @property
    def public(self) -> str:
        """The word users see; "low" would read the wrong way round."""
        return "fine" if self is Level.L else "coarse"


class Kind(StrEnum):
    """The kinds of stored object a chunk has."""

    L = "l"
    H = "h"
    INDEX = "x"

    @classmethod
    def of(cls, level: Level) -> Kind:
        return cls.L if level is Level.L else cls.H

    @staticmethod
    def segment(kind: str) -> str:
        """The kind of segments that blobs of ``kind`` are packed into; stores route it as they route ``kind``."""
        return f"{kind}-seg"


class Tier(StrEnum):
    """Where a block lives."""

    DEVICE = "device"
    HOST = "host"
    REMOTE = "remote"
    DISK = "disk"


class Role(IntEnum):
    """What a KV entry stands for; entries of different roles are never pooled together with visual ones."""

    TEXT = 0
    """Words that belong to the chunk: subtitles and the like."""
    TIME = 1
    """The tokens of a timestamp."""
    MARKER = 2
    """Vision start and end."""
    VISUAL = 3


# --- video ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a video, ``[start_s, end_s)``."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.start_s <= self.end_s:
            raise InvalidInput(f"a span runs forward from 0 or later, got [{self.start_s}, {self.end_s})")

    def holds(self, time_s: float) -> bool:
        return self.start_s <= time_s < self.end_s

    def overlaps(self, other: Span) -> bool:
        return self.start_s < other.end_s and other.start_s < self.end_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which frames are looked at: so many a second, or ``count`` spread evenly; of the whole video or of a span."""

    fps: float = 1.0
    count: int | None = None
    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("fps", "start_s"):  # 1 and 1.0 are one sampling, with one digest
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.end_s is not None:
            object.__setattr__(self, "end_s", float(self.end_s))
        if not 0 < self.fps <= 1000:
            raise InvalidInput(f"sampling fps must be above 0 and at most 1000, got {self.fps}")
        if self.count is not None and self.count < 1:
            raise InvalidInput(f"sampling count must be at least 1, got {self.count}")
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise InvalidInput(f"sampling span must run forward from 0 or later, got [{self.start_s}, {self.end_s})")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a container says about its video stream. ``partial`` tells why only a part of it could be read."""

    duration_s: float
    width: int
    height: int
    fps: float
    frames: int | None = None
    container: str = ""
    codec: str = ""
    partial: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """The kept original of a video: ``id`` is a digest of its content."""

    id: str
    name: str
    size_bytes: int


# --- recipe ---------------------------------------------------------------------------------------------------------


class Anchors(StrEnum):
    """What a level does with the text tokens of a chunk."""

    KEEP = "keep"
    """All of them, untouched. L always keeps."""
    FIRST_TIME = "first_time"
    """One timestamp a chunk, that of its first group, and all ``TEXT``."""
    POOL = "pool"
    """Every run of timestamps and markers becomes one entry."""


class Quant(StrEnum):
    """How keys and values are stored."""

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bits(self) -> int:
        return {"none": 16, "int8": 8, "int4": 4}[self.value]


class Positions(StrEnum):
    """How stored entries are placed when a cache is assembled (keys carry no rotation, so this is free)."""

    ORIGINAL = "original"
    """Where they were in the video, whatever the model was trained for."""
    SCALED = "scaled"
    """The same while they fit into the trained range; else shrunk into it by a power of two."""
    COMPACT = "compact"
    """Contiguous, in the order of the cache (the paper's choice; depends on the plan, so H cannot be shared)."""


_POOL = re.compile(r"^(\d+)x(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSpec:
    """How a level is made from raw KVs.

    ``pool`` is ``"RxC"`` (cells of R rows by C columns of a group's visual grid become one entry; ``"1x1"`` is the
    identity) or ``"group"`` (the whole grid becomes one entry).
    """

    pool: str = "1x1"
    anchors: Anchors = Anchors.KEEP
    quant: Quant = Quant.INT8

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "anchors", Anchors(self.anchors))
            object.__setattr__(self, "quant", Quant(self.quant))
        except ValueError as error:
            raise InvalidRecipe(f"this is no level: {error}") from error
        match = _POOL.fullmatch(self.pool)
        if self.pool != "group" and not (match and int(match[1]) and int(match[2])):
            raise InvalidRecipe(f"pool is 'RxC' with positive numbers, or 'group'; got {self.pool!r}")

    @property
    def cell(self) -> tuple[int, int] | None:
        """Rows and columns of a cell; None for the whole grid."""
        match = _POOL.fullmatch(self.pool)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def is_identity(self) -> bool:
        return self.cell == (1, 1) and self.anchors is Anchors.KEEP


FINE = LevelSpec(pool="1x2", anchors=Anchors.KEEP, quant=Quant.INT8)
COARSE = LevelSpec(pool="4x4", anchors=Anchors.FIRST_TIME, quant=Quant.INT8)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that shapes the KVs of an index. Equal digests mean interchangeable blocks.

    Attributes:
        family: the ``VideoLM`` adapter.
        weights: digest of weights, configuration, tokenizer and chat template.
        dtype: what the model computes in.
        height, width: pixels a frame is resized to; 0 keeps the aspect within ``max_pixels``.
        chunk_frames: frames a chunk, a multiple of the family's frames a group.
        fine, coarse: how L and H are made.
        memory_entries: bound of the prefill memory; None is unbounded.
        edges_fine: first and last chunk are always answered with L (the paper's code does so).
        kv_dtype: what unquantised keys and values are stored as.
    """

    family: str
    weights: str
    dtype: str = "float32"
    sampling: Sampling = field(default_factory=Sampling)
    height: int = 0
    width: int = 0
    max_pixels: int = 448 * 448
    chunk_frames: int = 16
    fine: LevelSpec = FINE
    coarse: LevelSpec = COARSE
    memory_entries: int | None = 4096
    edges_fine: bool = False
    positions: Positions = Positions.SCALED
    kv_dtype: str = "float16"
    layout: int = LAYOUT_VERSION

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "positions", Positions(self.positions))
        except ValueError as error:
            raise InvalidRecipe(f"positions are {', '.join(Positions)}, got {self.positions!r}") from error
        if not 1 <= self.chunk_frames <= MAX_CHUNK_FRAMES:
            raise InvalidRecipe(f"chunk_frames is from 1 to {MAX_CHUNK_FRAMES}, got {self.chunk_frames}")
        if (self.height == 0) != (self.width == 0) or min(self.height, self.width) < 0:
            raise InvalidRecipe(f"give both height and width, or neither; got {self.height}x{self.width}")
        pixels = self.chunk_frames * (self.height * self.width or self.max_pixels)
        if pixels > MAX_CHUNK_PIXELS:
            raise InvalidRecipe(
                f"a chunk would have {pixels} pixels and may have {MAX_CHUNK_PIXELS}: take fewer, or smaller frames"
            )
        if self.memory_entries is not None and self.memory_entries < 1:
            raise InvalidRecipe(f"memory_entries must be at least 1 or None, got {self.memory_entries}")
        if self.fine.anchors is not Anchors.KEEP:
            raise InvalidRecipe("the fine level always keeps its text: set fine.anchors to 'keep'")
        if self.kv_dtype not in ("float16", "bfloat16", "float32"):
            raise InvalidRecipe(f"kv_dtype is float16, bfloat16 or float32, got {self.kv_dtype!r}")

    def level(self, level: Level) -> LevelSpec:
        return self.fine if level is Level.L else self.coarse

    @cached_property
    def digest(self) -> str:
        """16 hex digits over every field."""
        return xxhash.xxh3_64_hexdigest(repr(sorted(_flat(asdict(self)).items())).encode())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """As the constructor, but an unknown or missing field is an InvalidRecipe too."""
        try:
            return cls(**fields)
        except TypeError as error:
            raise InvalidRecipe(f"these are no fields of a recipe: {error}") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls.of(**recipe_fields(data))


def recipe_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of a recipe, from plain JSON types to what :class:`Recipe` takes. Raises InvalidRecipe."""
    fields = dict(data)
    try:
        if "sampling" in fields:
            fields["sampling"] = Sampling(**fields["sampling"])
        for name in {"fine", "coarse"} & fields.keys():
            fields[name] = LevelSpec(**fields[name])
    except TypeError as error:
        raise InvalidRecipe(f"these are no fields of a recipe: {error}") from error
    return fields


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat


# --- what is stored -------------------------------------------------------------------------------------------------

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


# --- questions and answers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """How much fine detail a question may reload; exactly one way of saying it.

    ``auto`` (as many chunks as calibrated confidence asks for), ``coarse`` (none), ``fine`` (all), ``k`` chunks, or as
    many as fit into ``budget_bytes``.
    """

    mode: str = "auto"
    k: int | None = None
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "coarse", "fine", "k", "budget"):
            raise InvalidInput(f"detail is auto, coarse, fine, k or budget; got {self.mode!r}")
        if (self.mode == "k") != (self.k is not None) or (self.k is not None and self.k < 0):
            raise InvalidInput(f"detail k goes with a whole number from 0; got mode {self.mode!r} and k {self.k}")
        if self.mode == "budget" and self.budget_bytes is None:
            raise InvalidInput("detail budget goes with budget_bytes")
        if self.budget_bytes is not None and self.budget_bytes < 0:
            raise InvalidInput(f"budget_bytes counts from 0, got {self.budget_bytes}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """``auto``, ``coarse``, ``fine``, ``k=3`` or ``budget=2000000``."""
        name, _, value = text.partition("=")
        if value and not value.isdecimal():
            raise InvalidInput(f"detail {text!r}: {value!r} is not a whole number")
        if name == "k" and value:
            return cls(mode="k", k=int(value))
        if name == "budget" and value:
            return cls(mode="budget", budget_bytes=int(value))
        return cls(mode=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChunk:
    """One chunk as the plan sees it."""

    chunk: int
    span: Span
    level: Level
    score: float
    reason: str
    """Why at this level: ``score``, ``pinned`` (a time was named), ``edge``, ``all``, or ``rest``."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadPlan:
    """For one question and one video: which chunks come back as L. The rest stays H."""

    chunks: tuple[PlannedChunk, ...]
    scorer: str
    detail: Detail
    note: str | None = None
    """What the user should know when this is not quite the scoring asked for."""
    degraded: str | None = None
    """Why what the scorer wanted could not be had, so that other chunks may be planned: ``missing``, ``corrupt``,
    ``stale``, ``late`` or ``unavailable``."""

    @property
    def fine(self) -> tuple[int, ...]:
        return tuple(c.chunk for c in self.chunks if c.level is Level.L)

    @property
    def reload_bytes(self) -> int:
        """What has to travel: stored bytes of the planned L blocks."""
        return sum(c.size_bytes for c in self.chunks if c.level is Level.L)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A moment the answer was given fine detail of (or would have been: then ``degraded`` says why not)."""

    chunk: int
    span: Span
    level: Level
    score: float
    tier: Tier
    size_bytes: int
    degraded: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the answer cost."""

    prompt_tokens: int
    answer_tokens: int
    kv_entries: int
    """Entries of the assembled cache, without the question's own."""
    full_entries: int
    """Entries a full cache of the same video would hold."""
    reload_bytes: int
    full_bytes: int
    """Bytes of that full cache, unquantised, in the recipe's dtype."""

    @property
    def kv_share(self) -> float:
        return self.kv_entries / self.full_entries if self.full_entries else 0.0

    @property
    def moved_share(self) -> float:
        return self.reload_bytes / self.full_bytes if self.full_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer with its reasons."""

    text: str
    video: str
    plan: ReloadPlan
    evidence: tuple[Evidence, ...]
    usage: Usage
    timings: Mapping[str, float]
    """Seconds by phase, shared evenly in a batch: coarse_s, score_s, reload_s, assemble_s, decode_s. Of an answering
    loop also queue_s (before all of them) and ttft_s (to the first token)."""
    finish: str = "stop"
    """``stop``, ``length``, or ``deadline`` (there was no time for more)."""
    covered: Span | None = None
    """The part of the video that was indexed when the question was asked."""

    @property
    def degraded(self) -> bool:
        """Whether a store did not deliver what this answer should have been given."""
        return self.plan.degraded is not None or any(e.degraded for e in self.evidence)
