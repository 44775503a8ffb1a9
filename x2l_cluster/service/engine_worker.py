"""What is asked of a model by a service without one, answered by an engine of this process. Plain calls, in threads."""

from __future__ import annotations

import threading

import numpy as np
from cachetools import LRUCache

from x2l_cluster.engine import Prefiller, Prefix, VideoEngine
from x2l_cluster.errors import UnknownVideo
from x2l_cluster.messages import Estimate, Found, Moment
from x2l_cluster.service.catalogue import Catalogue
from x2l_cluster.service.estimate import estimated, sample_size
from x2l_cluster.service.requests import EstimateRequest, SearchRequest
from x2l_cluster.service.workers import ModelFacts, Sample
from x2l_cluster.types import Recipe, Span, recipe_fields
from x2l_cluster.video import FrameChunk


class EngineWorker:
    """Samples and searches; see :class:`~x2l_cluster.service.workers.Workers`."""

    def __init__(self, engine: VideoEngine) -> None:
        self._engine = engine
        self._catalogue = Catalogue(engine.stores)
        self._samples: LRUCache[tuple[str, int, int], Sample] = LRUCache(maxsize=64)
        self._sampling = threading.Lock()
        self.facts = ModelFacts.of(engine)

    def sample(self, recipe: Recipe, width: int, height: int) -> Sample:
        """The first one of a recipe and frame size costs the prefill of a chunk of nothing."""
        key = (recipe.digest, width, height)
        with self._sampling:  # one at a time: the device has other work
            if key not in self._samples:
                self._samples[key] = self._prefilled(recipe, width, height)
            return self._samples[key]

    def search(self, tenant: str, request: SearchRequest) -> Found:
        """Raises UnknownVideo for a video that is named, ModelMismatch."""
        weights = self.facts.spec.weights
        manifests = []
        for video in request.videos or [video.id for video in self._catalogue.videos(tenant, weights)]:
            try:
                manifests.append(self._catalogue.manifest(tenant, video, weights))
            except UnknownVideo:  # of all there are, one may just have been deleted
                if request.videos:
                    raise
        hits, skipped = self._engine.search(request.question, manifests, limit=request.limit)
        return Found(
            moments=tuple(Moment(video=hit.video, chunk=hit.chunk, span=hit.span, score=hit.score) for hit in hits),
            searched=len(manifests) - len(skipped),
            skipped={video: type(error).code for video, error in skipped.items()},
        )

    def estimate(self, request: EstimateRequest, chunk_s: float | None = None) -> Estimate:
        """Of the engine's own model and stores. Raises InvalidRecipe."""
        recipe = self.facts.recipe(**recipe_fields(request.recipe))
        sample = self.sample(recipe, *sample_size(recipe, request.width, request.height))
        return estimated(request, recipe, model=self.facts, sample=sample, kv=self._engine.stores.kv, chunk_s=chunk_s)

    def forget(self, tenant: str, video: str) -> None:
        self._engine.answerer.forget(tenant, video)

    def _prefilled(self, recipe: Recipe, width: int, height: int) -> Sample:
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
        prefix = Prefix.of(lm, lm.prompt("?").prefix)
        done = Prefiller(lm, recipe, prefix, self._engine.answerer.turns).one(nothing)
        return Sample(
            tokens=done.tokens,
            entries={level: block.entries for level, block in done.blocks.items()},
            stored_bytes=self._engine.stored_bytes(done, recipe),
        )
