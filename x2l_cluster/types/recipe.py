"""Everything that shapes the KVs of an index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

import xxhash

from x2l_cluster.errors import InvalidRecipe
from x2l_cluster.types.kinds import Level
from x2l_cluster.types.video import Sampling

LAYOUT_VERSION = 2
"""Changes whenever stored bytes change their meaning; part of every recipe digest."""
MAX_CHUNK_PIXELS = 1 << 28
"""More than 100 frames of 1080p; a worker that is asked for more than it has memory for would die of it."""
MAX_CHUNK_FRAMES = 1 << 16
"""What is known of each goes into one record of the state."""


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
