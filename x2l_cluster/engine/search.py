"""Searching: moments of many videos that fit a question, by their score indexes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from x2l_cluster.engine.assemble import Prefix
from x2l_cluster.engine.place import Placement
from x2l_cluster.engine.score import Scoring
from x2l_cluster.engine.turns import Turns
from x2l_cluster.errors import X2LError
from x2l_cluster.models import Step, VideoLM, View
from x2l_cluster.select import Aggregation, Calibration, EncodedQuestion, Encoding, get_scorer
from x2l_cluster.select.attention import HeadScorer
from x2l_cluster.select.scorer import ChunkScorer
from x2l_cluster.select.scoring import score_heads, zscore
from x2l_cluster.types import Manifest, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A chunk that fits. Scores compare within one search."""

    video: str
    chunk: int
    span: Span
    score: float


class Search:
    """Ranks the chunks of many videos together.

    The question is encoded without any video, so once for all of them, and each head is z-scored over all chunks of
    all videos: over those of one video, the best moment of every video would look alike.

    Args:
        calibration: whose heads are asked; without one, the embedding scorer is.
    """

    def __init__(self, lm: VideoLM, scoring: Scoring, turns: Turns, calibration: Calibration | None) -> None:
        self._lm, self._scoring, self._turns = lm, scoring, turns
        self._scorer: ChunkScorer = get_scorer("calibrated" if calibration else "embedding", lm.spec, calibration)
        if isinstance(self._scorer, HeadScorer):
            # Distances and shares of attention mean nothing between videos; the most similar entry does.
            way = self._scorer.way._replace(rotation=False, aggregation=Aggregation.MAX)
            self._scorer = replace(self._scorer, encoding=Encoding.ALONE, way=way)

    def __call__(
        self, question: str, manifests: Sequence[Manifest], prefix: Prefix, *, limit: int
    ) -> tuple[list[Hit], dict[str, X2LError]]:
        """The best moments, best first, and what kept videos from being searched, by id."""
        encoded = self._encode(question, prefix)
        scored: list[tuple[Manifest, Tensor]] = []
        skipped: dict[str, X2LError] = {}
        for manifest in manifests:
            try:
                if manifest.chunks:
                    scored.append((manifest, self._raw(encoded, manifest, prefix)))
            except X2LError as error:
                skipped[manifest.video] = error
        if not scored:
            return [], skipped
        together = torch.cat([scores for _, scores in scored], dim=-1)
        ranks = (zscore(together) if isinstance(self._scorer, HeadScorer) else together).sum(0).tolist()
        rows = [(manifest.video, row) for manifest, _ in scored for row in manifest.chunks]
        hits = [
            Hit(video=video, chunk=row.index, span=row.span, score=score)
            for (video, row), score in zip(rows, ranks, strict=True)
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.video, hit.chunk))[:limit], skipped

    def _encode(self, question: str, prefix: Prefix) -> EncodedQuestion:
        prompt = self._lm.prompt(question)
        tokens = self._lm.embed_text(prompt.suffix, prefix.end)
        if not self._scorer.layers:
            return EncodedQuestion.of(prompt, tokens, {}, self._lm)
        with self._turns:
            step = Step(tokens=tokens, view=View([prefix.page]))
            trace = self._lm.forward([step], queries=self._scorer.layers, until=self._scorer.until)
        return EncodedQuestion.of(prompt, tokens, trace.queries[0], self._lm)

    def _raw(self, question: EncodedQuestion, manifest: Manifest, prefix: Prefix) -> Tensor:
        """(heads, chunks) on the CPU, or (1, chunks) of a scorer without heads."""
        bank = self._scoring.bank(manifest, self._scorer, Placement(anchor=prefix.end))
        if isinstance(self._scorer, HeadScorer):
            return score_heads(question, bank, self._scorer.heads, self._scorer.way).cpu()
        return self._scorer.score(question, bank)[None].cpu()
