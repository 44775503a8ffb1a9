"""The seam: how a scorer says what it needs, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from torch import Tensor

from x2l_cluster.kv.block import KVBlock
from x2l_cluster.select.features import Bank, Features
from x2l_cluster.select.question import EncodedQuestion, Encoding


class Source(StrEnum):
    """Where the features of a scorer come from."""

    STORED = "stored"
    """Made from L at index time and stored under ``kind``."""
    COARSE = "coarse"
    """Made from resident H when a question comes; nothing is stored."""
    NONE = "none"


class ChunkScorer(Protocol):
    """Gives each chunk of a video an importance for a question.

    Index time, if ``kind``: ``index(L block as stored, visual)``, whose features are stored. Question time: features
    of every chunk (stored ones; or ``index`` of each resident H block; or none, as ``source`` says) become a ``bank``,
    which serves all questions about the video; the question is encoded as ``encoding`` says, with the queries of
    ``layers`` (a forward of ``until`` layers is enough); ``score`` tells.
    """

    @property
    def name(self) -> str:
        """What plans and answers report."""
        ...

    @property
    def note(self) -> str | None:
        """What the user should know, when this is not quite the scorer asked for."""
        ...

    @property
    def source(self) -> Source: ...

    @property
    def kind(self) -> str | None:
        """Stored kind of its features (``x-…``); None unless ``source`` is stored."""
        ...

    @property
    def encoding(self) -> Encoding: ...

    @property
    def layers(self) -> frozenset[int]:
        """Layers whose queries it reads."""
        ...

    @property
    def rotates(self) -> bool:
        """Whether the keys of its bank may be rotated once, for all questions (``Bank.rotated``)."""
        ...

    @property
    def until(self) -> int:
        """Layers the question's forward has to run: the deepest of ``layers`` and all below; 0 for none."""
        ...

    def index(self, block: KVBlock, visual: Tensor | None = None) -> Features:
        """The features of one chunk, deterministic: equal input, equal bytes.

        Args:
            block: the chunk as stored (L, or H for ``Source.COARSE``), quantised or dequantised.
            visual: mean visual features of every group, (groups, hidden), of scorers that read them.
        """
        ...

    def bank(self, chunks: Sequence[int], parts: Sequence[Features]) -> Bank:
        """A video for scoring: the indexes of its chunks, rising, and their features (none for no source)."""
        ...

    def score(self, question: EncodedQuestion, bank: Bank) -> Tensor:
        """(chunks,) float32 on the device of the bank, higher is more important; finite for finite input."""
        ...
