"""A question as scorers see it, and the choices a calibration makes about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from torch import Tensor

from x2l_cluster.models.base import Prompt, Tokens, VideoLM


class Encoding(StrEnum):
    """What the question's tokens have seen when their queries are taken."""

    OVER_COARSE = "over_coarse"
    """The prefix and all resident H: the question in the light of the video."""
    ALONE = "alone"
    """The prefix only: cheap, and the same for every video."""
    NONE = "none"
    """The scorer takes no queries: no forward is needed."""


class TokenSet(StrEnum):
    """Whose queries count."""

    ALL = "all"
    """Every token of the user's words."""
    CONTENT = "content"
    """Those that carry meaning: on a real LM the right heads find the needle with these, and are lost with all."""
    LAST = "last"
    """The token the answer begins after."""


class Aggregation(StrEnum):
    """How one token's similarities to all entries become one number a chunk."""

    MAX = "max"
    """The most similar entry."""
    MASS = "mass"
    """The share of softmax attention."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedQuestion:
    """One question, forwarded (or, for ``Encoding.NONE``, only placed).

    Attributes:
        queries: layer → (heads, tokens, head_dim), before RoPE; the layers the scorer asked for.
        coords: (tokens, axes) of the tokens, for rotated scoring.
        question, content, last: token indexes, see :class:`TokenSet`.
        embedding: (tokens, hidden), the input embeddings.
        rotate: RoPE of the model, ``VideoLM.rotate``.
        heads_per_kv: query heads that share a KV head.
        seed: names video and question, for scorers that draw lots.
    """

    coords: Tensor
    question: tuple[int, ...]
    content: tuple[int, ...]
    last: tuple[int, ...]
    embedding: Tensor
    rotate: Callable[[Tensor, Tensor], Tensor]
    heads_per_kv: int = 1
    queries: Mapping[int, Tensor] = field(default_factory=dict)
    seed: str = ""

    @classmethod
    def of(cls, prompt: Prompt, tokens: Tokens, queries: Mapping[int, Tensor], lm: VideoLM, seed: str = "") -> Self:
        """From the forward of ``prompt.suffix``: ``tokens`` is what went in, ``queries`` the trace's of that step."""
        return cls(
            coords=tokens.coords,
            question=prompt.question,
            content=prompt.content,
            last=(len(tokens) - 1,),
            embedding=tokens.embeds,
            rotate=lm.rotate,
            heads_per_kv=lm.spec.heads // lm.spec.kv_heads,
            queries=queries,
            seed=seed,
        )

    def tokens(self, which: TokenSet) -> tuple[int, ...]:
        """Token indexes of a set; the next wider one where it is empty."""
        chosen = {TokenSet.ALL: self.question, TokenSet.CONTENT: self.content, TokenSet.LAST: self.last}[which]
        return chosen or self.question or tuple(range(self.coords.shape[0]))
