"""The nouns of the system, without torch: what is stored, planned, asked and answered.

Everything here is a frozen value that checks itself. Times are seconds from the first frame, sizes are bytes.
Spans are half open, ``[start_s, end_s)``.
"""

from x2l_cluster.types.answers import Answer, Detail, Evidence, PlannedChunk, ReloadPlan, Usage
from x2l_cluster.types.index import (
    LOCAL_TENANT,
    BlockKey,
    BlockRef,
    ChunkRow,
    IndexStatus,
    Manifest,
    Packed,
    check_name,
)
from x2l_cluster.types.kinds import Kind, Level, Role, Tier
from x2l_cluster.types.recipe import (
    COARSE,
    FINE,
    LAYOUT_VERSION,
    MAX_CHUNK_FRAMES,
    MAX_CHUNK_PIXELS,
    Anchors,
    LevelSpec,
    Positions,
    Quant,
    Recipe,
    recipe_fields,
)
from x2l_cluster.types.video import Sampling, SourceRef, Span, VideoInfo

__all__ = [
    "COARSE",
    "FINE",
    "LAYOUT_VERSION",
    "LOCAL_TENANT",
    "MAX_CHUNK_FRAMES",
    "MAX_CHUNK_PIXELS",
    "Anchors",
    "Answer",
    "BlockKey",
    "BlockRef",
    "ChunkRow",
    "Detail",
    "Evidence",
    "IndexStatus",
    "Kind",
    "Level",
    "LevelSpec",
    "Manifest",
    "Packed",
    "PlannedChunk",
    "Positions",
    "Quant",
    "Recipe",
    "ReloadPlan",
    "Role",
    "Sampling",
    "SourceRef",
    "Span",
    "Tier",
    "Usage",
    "VideoInfo",
    "check_name",
    "recipe_fields",
]
