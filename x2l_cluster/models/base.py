"""The seam to the models: everything the engine needs of a video language model, and nothing else.

A ``VideoLM`` holds weights and no state of any request, so that two requests can interleave on one object. It never
sees a file, a store or a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from x2l_cluster.errors import InvalidRecipe
from x2l_cluster.kv.block import KVBlock, Run
from x2l_cluster.models.view import View
from x2l_cluster.types import Level, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model is, in numbers.

    Attributes:
        family: name of the adapter.
        weights: digest of weights and configuration; part of every recipe.
        axes: rotary axes of a position (3 for M-RoPE: time, height, width).
        max_position: positions the model was trained for.
        group_frames: frames merged into one temporal step.
        unit: pixels; sides of frames that a recipe fixes are multiples of it.
        passes: the levels that need a prefill of their own. One-pass families derive both levels from the raw KVs of
            a single pass, ``(Level.L,)``; families that compress inside the model (VST) run one pass per level.
        finished: whether :meth:`VideoLM.prefill` returns blocks that are already compressed for the level.
    """

    family: str
    weights: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    axes: int
    max_position: int
    group_frames: int
    passes: tuple[Level, ...] = (Level.L,)
    finished: bool = False
    unit: int = 1

    def recipe(self, **fields: Any) -> Recipe:
        """A recipe for this model; family and weights are its own. Raises InvalidRecipe for what it cannot do."""
        recipe = Recipe.of(**(fields | {"family": self.family, "weights": self.weights}))
        if recipe.chunk_frames % self.group_frames:
            raise InvalidRecipe(
                f"chunk_frames is a multiple of {self.group_frames} for this model, got {recipe.chunk_frames}"
            )
        if recipe.height % self.unit or recipe.width % self.unit:
            raise InvalidRecipe(
                f"height and width must be multiples of {self.unit}, got {recipe.height}x{recipe.width}"
            )
        return recipe


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """A stretch of input, embedded and placed, ready for :meth:`VideoLM.forward`.

    Attributes:
        embeds: (tokens, hidden).
        coords: (tokens, axes) float32.
        runs: what the tokens are.
        end: the position that follows.
        visual: mean visual features of every group, (groups, hidden), for the embedding scorer; None for text.
        extra: what only the family understands (DeepStack features, say).
    """

    embeds: Tensor
    coords: Tensor
    runs: tuple[Run, ...]
    end: float
    visual: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.embeds.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question as the model's chat template writes it, around the video.

    Attributes:
        prefix: token ids before the first frame; the same for every question, so its KVs are shared.
        suffix: token ids after the last frame, up to where the answer begins.
        question: positions inside ``suffix`` that are the user's own words.
        content: those of ``question`` that carry meaning (no function words, no punctuation).
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    question: tuple[int, ...]
    content: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One request's share of a forward: its new tokens and what they may look at."""

    tokens: Tokens
    view: View


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """What a forward produced, one item per step, in order.

    Attributes:
        hidden: (tokens, hidden), after the last layer that ran (normed if that was the very last).
        keys, values: (layers, kv_heads, tokens, head_dim) before RoPE, when ``keep_kv`` was asked for.
        queries: layer → (heads, tokens, head_dim) before RoPE (after q_norm), for the layers asked for.
    """

    hidden: tuple[Tensor, ...]
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    queries: tuple[Mapping[int, Tensor], ...] = ()


class VideoLM(Protocol):
    """A video language model whose KVs can be taken out, compressed, kept and put back."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    def recipe(self, **changes: Any) -> Recipe:
        """The recipe this model does best with, changed as asked. Raises InvalidRecipe for what it cannot do."""
        ...

    def prompt(self, question: str, history: Sequence[tuple[str, str]] = ()) -> Prompt:
        """The question in the model's own chat template; ``history`` holds earlier (question, answer) turns."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens left out."""
        ...

    def embed_text(self, ids: Sequence[int], position: float) -> Tokens:
        """Text tokens placed from ``position`` on."""
        ...

    def embed_next(self, ids: Sequence[int], positions: Sequence[float]) -> list[Tokens]:
        """The next token of several requests, each placed by itself: :meth:`embed_text` of one id for each, at once."""
        ...

    def embed_chunk(
        self, frames: np.ndarray[Any, np.dtype[np.uint8]], times_s: Sequence[float], position: float, recipe: Recipe
    ) -> Tokens:
        """Frames uint8 (frames, height, width, 3) with their times as the model sees them, placed from ``position`` on.

        The number of frames is a multiple of ``spec.group_frames``. Resizes, normalises and encodes.
        """
        ...

    def prefill(self, tokens: Tokens, level: Level, memory: View) -> KVBlock:
        """KVs of a chunk that sees ``memory`` (prefix, compressed past) and itself, causally; ``memory`` is left as is.

        ``level`` names the pass. Returns raw KVs, or a block compressed for the level where ``spec.finished``.
        """
        ...

    def forward(
        self,
        steps: Sequence[Step],
        *,
        keep_kv: bool = False,
        queries: frozenset[int] = frozenset(),
        until: int | None = None,
    ) -> Trace:
        """Runs several requests at once: the linear layers over all their tokens, attention each over its own view.

        Args:
            keep_kv: return keys (before RoPE) and values.
            queries: layers whose queries (before RoPE) are returned.
            until: stop after this many layers (scoring needs no more than the last calibrated one).

        Writes the new tokens into each view, but moves none on: the caller calls ``view.advance``.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) after the last layer → (n, vocabulary) float32."""
        ...

    def rotate(self, keys: Tensor, coords: Tensor) -> Tensor:
        """RoPE: keys or queries (..., entries, head_dim) at coords (entries, axes); fractional coordinates are fine."""
        ...
