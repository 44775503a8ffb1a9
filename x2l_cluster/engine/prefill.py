"""Chunked prefill with bounded memory (paper §3.1–3.2): the loop that turns a video into blocks at two levels."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from x2l_cluster.compress import Memory, compress
from x2l_cluster.engine.assemble import Assembler, Prefix
from x2l_cluster.engine.place import Placement
from x2l_cluster.engine.turns import Turns
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.metrics import CHUNK_PREFILL_S
from x2l_cluster.models.base import Tokens, VideoLM
from x2l_cluster.models.pages import Page
from x2l_cluster.models.view import View
from x2l_cluster.types import Level, Recipe, Span
from x2l_cluster.video.chunks import frame_prints


class Frames(Protocol):
    """A chunk of decoded frames (``video.FrameChunk`` is one)."""

    @property
    def index(self) -> int: ...
    @property
    def frames(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]: ...
    @property
    def times_s(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]: ...
    @property
    def sampled(self) -> int: ...
    @property
    def span(self) -> Span: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefilled:
    """A chunk after prefill: its blocks as they will be stored, and what it took.

    ``prints`` are those of its sampled frames.
    ``tokens`` is what a full cache would hold of it; ``raw`` are the KVs of the (first) pass as the model returned
    them; ``visual`` the mean visual features of its groups.
    """

    index: int
    span: Span
    frames: int
    position_start: float
    position_end: float
    tokens: int
    blocks: Mapping[Level, KVBlock]
    raw: KVBlock
    visual: torch.Tensor | None
    prints: bytes


class Prefiller:
    """Prefills chunk after chunk. What later chunks see of a chunk is its *stored* form, quantised and back, so an
    uninterrupted run and a resumed one compute the same.

    One object per video; not safe for two threads.

    Args:
        prefix: KVs of everything before the first frame.
        turns: of the device, where others answer on it: encoding the frames is one, and each pass.
    """

    def __init__(self, lm: VideoLM, recipe: Recipe, prefix: Prefix, turns: Turns | None = None) -> None:
        self._lm, self._recipe, self._prefix = lm, recipe, prefix
        self._turns = turns or Turns()
        self._assembler = Assembler(lm)
        self._memory = {level: Memory(bound=recipe.memory_entries, dtype=lm.dtype) for level in lm.spec.passes}
        self._pages: dict[tuple[int, float], tuple[KVBlock, Page]] = {}
        self._position = prefix.end
        self._next = 0

    def resume(self, index: int, position: float, blocks: Mapping[Level, KVBlock]) -> None:
        """Takes a sealed chunk as done: call it for each in order. ``blocks`` hold what :meth:`remembers` names."""
        assert index == self._next, f"chunk {self._next} comes next, got {index}"
        self._remember(blocks)
        self._position = position
        self._next += 1

    @property
    def remembers(self) -> frozenset[Level]:
        """The levels whose stored blocks the prefill memory is made of."""
        return frozenset(self._lm.spec.passes) if self._lm.spec.finished else frozenset({Level.H})

    def run(self, chunks: Iterable[Frames]) -> Iterator[Prefilled]:
        """Yields each chunk as soon as it is prefilled; memory does not grow with the length of the video."""
        for chunk in chunks:
            yield self.one(chunk)

    def one(self, chunk: Frames) -> Prefilled:
        """The next chunk."""
        assert chunk.index == self._next, f"chunk {self._next} comes next, got {chunk.index}"
        begun = time.perf_counter()
        with self._turns.long():
            tokens = self._lm.embed_chunk(chunk.frames, chunk.times_s.tolist(), self._position, self._recipe)
        raw: dict[Level, KVBlock] = {}
        for level in self._lm.spec.passes:
            with self._turns.long():
                raw[level] = self._pass(tokens, level)
        with self._turns.long():
            first = raw[self._lm.spec.passes[0]]
            blocks = {level: self._compressed(raw.get(level, first), level) for level in Level}
            self._remember(blocks)
        start, self._position = self._position, tokens.end
        self._next += 1
        CHUNK_PREFILL_S.observe(time.perf_counter() - begun)
        return Prefilled(
            index=chunk.index,
            span=chunk.span,
            frames=chunk.sampled,
            position_start=start,
            position_end=tokens.end,
            tokens=len(tokens),
            blocks=blocks,
            raw=first,
            visual=tokens.visual,
            prints=frame_prints(chunk.frames[: chunk.sampled], chunk.times_s[: chunk.sampled]),
        )

    def _pass(self, tokens: Tokens, level: Level) -> KVBlock:
        where = self._assembler.placement(self._recipe.positions, anchor=self._prefix.end, end=tokens.end)
        pages = [self._page(block, where) for block in self._memory[level].segments]
        placed = replace(tokens, coords=where(tokens.coords))
        block = self._lm.prefill(placed, level, View([self._prefix.page, *pages]))
        return block if self._lm.spec.finished else replace(block, coords=tokens.coords.float())

    def _page(self, block: KVBlock, where: Placement) -> Page:
        """Segments of the memory are stable objects, so each is rotated once per scale."""
        key = (id(block), where.factor)
        if key not in self._pages:
            self._pages = {old: kept for old, kept in self._pages.items() if old[1] == where.factor}
            page = self._assembler.page(block, where(block.coords))
            self._pages[key] = (block, page)  # keeps the block, so its id is not used again
        return self._pages[key][1]

    def _compressed(self, block: KVBlock, level: Level) -> KVBlock:
        spec = self._recipe.level(level)
        if self._lm.spec.finished:
            spec = replace(spec, pool="1x1", anchors=self._recipe.fine.anchors)
        return compress(block, spec, self._recipe.kv_dtype)

    def _remember(self, blocks: Mapping[Level, KVBlock]) -> None:
        for level, memory in self._memory.items():
            stored = blocks[level if self._lm.spec.finished else Level.H]
            self._memory[level] = memory.add(stored)
        kept = {id(block) for memory in self._memory.values() for block in memory.segments}
        self._pages = {key: page for key, page in self._pages.items() if key[0] in kept}
