"""Scorers that ask the model's own attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from x2l_cluster.errors import CalibrationMissing
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.models.base import ModelSpec
from x2l_cluster.select.calibration import Calibration
from x2l_cluster.select.features import Bank, Features, Head, HeadKeys
from x2l_cluster.select.question import Aggregation, EncodedQuestion, Encoding, TokenSet
from x2l_cluster.select.scorer import Source
from x2l_cluster.select.scoring import Way, score_heads, zscore
from x2l_cluster.types import Kind, Quant

DEFAULT_WAY = Way(rotation=False, tokens=TokenSet.CONTENT, aggregation=Aggregation.MAX)
"""The best that can be said of an unknown model: no rotation, content words, the most similar entry."""

NAIVE_WAY = Way(rotation=True, tokens=TokenSet.ALL, aggregation=Aggregation.MASS)
"""What attention is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadScorer:
    """Sums what several query heads say, each the same way.

    Attributes:
        heads: (layer, query head).
        way: rotation, token set, aggregation.
        standardise: z-score each head over the chunks before they are summed; otherwise their plain mean.
        kv_heads: (layer, kv_head) whose keys are needed.
        storage: how stored features keep them.
    """

    name: str
    heads: tuple[Head, ...]
    way: Way
    source: Source
    heads_per_kv: int
    kind: str | None = None
    encoding: Encoding = Encoding.OVER_COARSE
    standardise: bool = True
    storage: Quant = Quant.NONE
    note: str | None = None
    kv_heads: tuple[Head, ...] = field(init=False)

    def __post_init__(self) -> None:
        needed = {(layer, head // self.heads_per_kv) for layer, head in self.heads}
        object.__setattr__(self, "kv_heads", tuple(sorted(needed)))

    @property
    def layers(self) -> frozenset[int]:
        return frozenset(layer for layer, _ in self.heads)

    @property
    def rotates(self) -> bool:
        return self.way.rotation

    @property
    def until(self) -> int:
        return max(self.layers) + 1

    def index(self, block: KVBlock, visual: Tensor | None = None) -> Features:
        return HeadKeys.of(block, self.kv_heads, self.storage).to_tensors()

    def bank(self, chunks: Sequence[int], parts: Sequence[Features]) -> Bank:
        return Bank.of(chunks, [HeadKeys.from_tensors(*part) for part in parts])

    def score(self, question: EncodedQuestion, bank: Bank) -> Tensor:
        if not bank.chunks:
            return torch.zeros(0)
        scores = score_heads(question, bank, self.heads, self.way)
        return zscore(scores).sum(0) if self.standardise else scores.mean(0)


def calibrated(spec: ModelSpec, calibration: Calibration) -> HeadScorer:
    """The default scorer: L keys of the heads that calibration found (DESIGN §2.2 point 3)."""
    return HeadScorer(
        name="calibrated",
        heads=calibration.heads,
        way=calibration.way,
        source=Source.STORED,
        kind=f"{Kind.INDEX}-{calibration.digest}",
        encoding=calibration.encoding,
        storage=calibration.storage,
        heads_per_kv=_sharing(spec, calibration),
    )


def coarse(spec: ModelSpec, calibration: Calibration | None, note: str | None = None) -> HeadScorer:
    """The same over resident H: needs nothing stored. Without a calibration, all heads of all layers."""
    return HeadScorer(
        name="coarse",
        heads=calibration.heads if calibration else every_head(spec),
        way=calibration.way if calibration else DEFAULT_WAY,
        source=Source.COARSE,
        encoding=calibration.encoding if calibration else Encoding.OVER_COARSE,
        heads_per_kv=_sharing(spec, calibration),
        note=note,
    )


def attention_mean(spec: ModelSpec) -> HeadScorer:
    """The control: plain softmax attention over H with RoPE, the mean of all heads, layers and question tokens.

    What the paper's authors logged for attention scoring was hardly above chance; nor is this.
    """
    return HeadScorer(
        name="attention_mean",
        heads=every_head(spec),
        way=NAIVE_WAY,
        source=Source.COARSE,
        standardise=False,
        heads_per_kv=spec.heads // spec.kv_heads,
    )


def every_head(spec: ModelSpec) -> tuple[Head, ...]:
    return tuple((layer, head) for layer in range(spec.layers) for head in range(spec.heads))


def _sharing(spec: ModelSpec, calibration: Calibration | None) -> int:
    if calibration is not None:
        if calibration.weights != spec.weights:
            raise CalibrationMissing(
                f"the calibration is of weights {calibration.weights}, the model has {spec.weights}: "
                f"run `x2l calibrate` for it"
            )
        if any(layer >= spec.layers or head >= spec.heads for layer, head in calibration.heads):
            raise CalibrationMissing(
                f"the calibration names heads beyond {spec.layers} layers of {spec.heads}: run `x2l calibrate` again"
            )
    return spec.heads // spec.kv_heads
