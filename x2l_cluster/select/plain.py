"""Scorers that ask no attention head: an embedding baseline, and the controls every comparison needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from x2l_cluster.errors import BlockCorrupt, UnsupportedModel
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.select.features import Bank, Features
from x2l_cluster.select.question import EncodedQuestion, Encoding, TokenSet
from x2l_cluster.select.scorer import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingScorer:
    """Cosine of the question's content words with the mean projected visual token of each group; the best group counts.

    What frame retrievers do, with the model's own projection instead of a second network.
    """

    name: ClassVar[str] = "embedding"
    note: ClassVar[None] = None
    source: ClassVar[Source] = Source.STORED
    kind: ClassVar[str] = "x-embedding"
    encoding: ClassVar[Encoding] = Encoding.NONE
    layers: ClassVar[frozenset[int]] = frozenset()
    until: ClassVar[int] = 0
    rotates: ClassVar[bool] = False

    def index(self, block: KVBlock, visual: Tensor | None = None) -> Features:
        """Unit vectors (groups, hidden) float16. Raises UnsupportedModel for a family that tells no visual features."""
        if visual is None:
            raise UnsupportedModel("this model family gives no visual features: choose another scorer than 'embedding'")
        return Features({"groups": F.normalize(visual.float(), dim=-1).to(torch.float16)}, {"form": "groups"})

    def bank(self, chunks: Sequence[int], parts: Sequence[Features]) -> Bank:
        if not parts:
            return Bank.bare(chunks)
        if any(part.meta.get("form") != "groups" or part.tensors["groups"].dim() != 2 for part in parts):
            raise BlockCorrupt("a stored score index is not one of group embeddings; build it again")
        groups = [part.tensors["groups"].float() for part in parts]
        keys = torch.cat(groups)
        return Bank.stack(chunks, ((0, 0),), keys[None], keys.new_zeros(len(keys), 0), [len(g) for g in groups])

    def score(self, question: EncodedQuestion, bank: Bank) -> Tensor:
        if not bank.chunks:
            return torch.zeros(0)
        words = F.normalize(question.embedding[list(question.tokens(TokenSet.CONTENT))].float(), dim=-1)
        return bank.by_chunk(words @ bank.keys[0].transpose(0, 1), float("-inf")).amax(-1).mean(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blind:
    """A scorer that looks at nothing."""

    note: ClassVar[None] = None
    source: ClassVar[Source] = Source.NONE
    kind: ClassVar[None] = None
    encoding: ClassVar[Encoding] = Encoding.NONE
    layers: ClassVar[frozenset[int]] = frozenset()
    until: ClassVar[int] = 0
    rotates: ClassVar[bool] = False

    def index(self, block: KVBlock, visual: Tensor | None = None) -> Features:
        return Features({}, {})

    def bank(self, chunks: Sequence[int], parts: Sequence[Features]) -> Bank:
        return Bank.bare(chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomScorer(_Blind):
    """Draws by video, question and chunk: the same question gets the same draw, also when the video has grown."""

    name: ClassVar[str] = "random"

    def score(self, question: EncodedQuestion, bank: Bank) -> Tensor:
        draws = [xxhash.xxh3_64_intdigest(f"{question.seed}/{chunk}".encode()) / 2.0**64 for chunk in bank.chunks]
        return torch.tensor(draws, dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformStrideScorer(_Blind):
    """The best k are spread over the video, for every k: places in the order of their bits reversed."""

    name: ClassVar[str] = "uniform_stride"

    def score(self, question: EncodedQuestion, bank: Bank) -> Tensor:
        count = len(bank.chunks)
        bits = max(count - 1, 0).bit_length()
        reverse = [int(f"{place:0{bits}b}"[::-1], 2) if bits else 0 for place in range(count)]
        return torch.tensor([1 - place / 2**bits for place in reverse], dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentScorer(_Blind):
    """The later, the better."""

    name: ClassVar[str] = "recent"

    def score(self, question: EncodedQuestion, bank: Bank) -> Tensor:
        count = len(bank.chunks)
        return (torch.arange(count, dtype=torch.float32) + 1) / max(count, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleScorer(_Blind):
    """Knows the needed chunks: the upper bound in benches."""

    name: ClassVar[str] = "oracle"
    needed: Collection[int] = frozenset()

    def score(self, question: EncodedQuestion, bank: Bank) -> Tensor:
        return torch.tensor([float(chunk in self.needed) for chunk in bank.chunks], dtype=torch.float32)
