"""What indexing a video would take, by prefilling one chunk of nothing."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from cachetools import LRUCache

from x2l_cluster.engine import Prefiller, Prefix, VideoEngine
from x2l_cluster.engine.room import OWN, SHARED
from x2l_cluster.messages import Estimate
from x2l_cluster.service.requests import EstimateRequest
from x2l_cluster.types import Kind, Level, Recipe, Span, recipe_fields
from x2l_cluster.video import FrameChunk

_FINE_CHUNKS: Final = 4
"""Fine chunks of a question where no calibration bounds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """A full chunk as it would be stored."""

    tokens: int
    entries: Mapping[Level, int]
    stored_bytes: Mapping[str, int]
    """By kind."""


class Estimator:
    """Estimates for one engine. The first one of a recipe and frame size costs the prefill of a chunk."""

    def __init__(self, engine: VideoEngine) -> None:
        self._engine = engine
        self._known: LRUCache[tuple[str, int, int], _Sample] = LRUCache(maxsize=64)
        self._lock = threading.Lock()

    def __call__(self, request: EstimateRequest, chunk_s: float | None = None) -> Estimate:
        """Raises InvalidRecipe. ``chunk_s``: what a chunk takes to be indexed, if that is known."""
        lm, kv = self._engine.lm, self._engine.stores.kv
        recipe = lm.recipe(**recipe_fields(request.recipe))
        sample = self._sample(recipe, request.width, request.height)
        frames = _frames(recipe, request.duration_s)
        share = frames / recipe.chunk_frames  # the last chunk may be short
        chunks = math.ceil(share)
        stored = {kind: math.ceil(size * share) for kind, size in sample.stored_bytes.items()}
        score_bytes = sum(size for kind, size in stored.items() if kind not in (Kind.L, Kind.H))
        tiers: Counter[str] = Counter()
        for kind, size in stored.items():
            tiers[str(kv.route(kind).tier)] += size
        tokens = math.ceil(sample.tokens * share)
        entry = 2 * lm.spec.layers * lm.spec.kv_heads * lm.spec.head_dim
        calibration = self._engine.calibration
        fine = min(chunks, calibration.most(chunks) if calibration else _FINE_CHUNKS)
        seen = SHARED * sample.entries[Level.H] * share + OWN * sample.entries[Level.L] * fine
        return Estimate(
            duration_s=request.duration_s,
            frames=frames,
            chunks=chunks,
            tokens=tokens,
            fine_bytes=stored[Kind.L],
            coarse_bytes=stored[Kind.H],
            score_bytes=score_bytes,
            full_bytes=tokens * entry * (4 if recipe.kv_dtype == "float32" else 2),
            tiers=dict(tiers),
            device_bytes=math.ceil(seen) * entry * lm.dtype.itemsize,
            index_s=None if chunk_s is None else chunks * chunk_s,
        )

    def _sample(self, recipe: Recipe, width: int, height: int) -> _Sample:
        width, height = _no_larger_than_seen(recipe, width, height)
        key = (recipe.digest, width, height)
        with self._lock:  # one at a time: the device has other work
            if key not in self._known:
                self._known[key] = self._prefilled(recipe, width, height)
            return self._known[key]

    def _prefilled(self, recipe: Recipe, width: int, height: int) -> _Sample:
        lm = self._engine.lm
        times = np.arange(recipe.chunk_frames, dtype=np.float64) / recipe.sampling.fps
        nothing = FrameChunk(
            index=0,
            frames=np.zeros((recipe.chunk_frames, height, width, 3), np.uint8),
            times_s=times,
            sampled=recipe.chunk_frames,
            span=Span(start_s=0.0, end_s=float(times[-1])),
            is_last=True,
        )
        prefiller = Prefiller(lm, recipe, Prefix.of(lm, lm.prompt("?").prefix), self._engine.answerer.turns)
        done = prefiller.one(nothing)
        return _Sample(
            tokens=done.tokens,
            entries={level: block.entries for level, block in done.blocks.items()},
            stored_bytes=self._engine.stored_bytes(done, recipe),
        )


def _no_larger_than_seen(recipe: Recipe, width: int, height: int) -> tuple[int, int]:
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
