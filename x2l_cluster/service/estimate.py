"""What indexing a video would take, from one chunk of it and the numbers of its model."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from x2l_cluster.engine.room import OWN, SHARED
from x2l_cluster.kv.store import KVStore
from x2l_cluster.messages import Estimate
from x2l_cluster.service.requests import EstimateRequest
from x2l_cluster.service.workers import ModelFacts, Sample
from x2l_cluster.types import Kind, Level, Recipe

_FINE_CHUNKS: Final = 4
"""Fine chunks of a question where no calibration bounds them."""


def estimated(
    request: EstimateRequest,
    recipe: Recipe,
    *,
    model: ModelFacts,
    sample: Sample,
    kv: KVStore,
    chunk_s: float | None = None,
) -> Estimate:
    """Of a whole video, in the tiers of ``kv``.

    Args:
        recipe: the one that ``request`` means.
        sample: a full chunk of that recipe, at :func:`sample_size`.
        chunk_s: what a chunk takes to be indexed, if that is known.
    """
    frames = _frames(recipe, request.duration_s)
    share = frames / recipe.chunk_frames  # the last chunk may be short
    chunks = math.ceil(share)
    stored = {kind: math.ceil(size * share) for kind, size in sample.stored_bytes.items()}
    tiers: Counter[str] = Counter()
    for kind, size in stored.items():
        tiers[str(kv.route(kind).tier)] += size
    tokens = math.ceil(sample.tokens * share)
    entry = 2 * model.spec.layers * model.spec.kv_heads * model.spec.head_dim
    fine = min(chunks, model.calibration.most(chunks) if model.calibration else _FINE_CHUNKS)
    seen = SHARED * sample.entries[Level.H] * share + OWN * sample.entries[Level.L] * fine
    return Estimate(
        duration_s=request.duration_s,
        frames=frames,
        chunks=chunks,
        tokens=tokens,
        fine_bytes=stored[Kind.L],
        coarse_bytes=stored[Kind.H],
        score_bytes=sum(size for kind, size in stored.items() if kind not in (Kind.L, Kind.H)),
        full_bytes=tokens * entry * (4 if recipe.kv_dtype == "float32" else 2),
        tiers=dict(tiers),
        device_bytes=math.ceil(seen) * entry * model.itemsize,
        index_s=None if chunk_s is None else chunks * chunk_s,
    )


def sample_size(recipe: Recipe, width: int, height: int) -> tuple[int, int]:
    """A frame of the same shape that the model sees no less of: what is thrown away need not fit into memory."""
    if recipe.height:
        return recipe.width, recipe.height
    shrink = min(1.0, math.sqrt(4 * recipe.max_pixels / (width * height)))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _frames(recipe: Recipe, duration_s: float) -> int:
    sampling = recipe.sampling
    if sampling.count is not None:
        return sampling.count
    end_s = duration_s if sampling.end_s is None else min(sampling.end_s, duration_s)
    return max(1, math.ceil((end_s - sampling.start_s) * sampling.fps))
