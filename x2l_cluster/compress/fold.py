"""The prefill memory: the compressed past a chunk attends to, as a left fold over stored H blocks.

Policy. The memory is a row of segments, oldest first. A new block becomes a segment of its own, in full, of rank 0.
While the memory is over its bound, two adjacent segments of one rank become one of the next rank: their groups are
merged 2:1 in time (equal grids cell by cell, weighted by counts) and of their timestamps every other one is dropped.
The rank with the most segments gives way, its oldest two first, the older rank on a tie. So the ranks share the bound
about equally, as the levels of a log-structured tree do: the recent past is there in full, and every doubling of the
video costs the older parts one more halving in time. With a bound of ``K`` blocks and ``R`` ranks in use, the latest
``K / R`` chunks are in full and ``K / R · 2**R`` chunks are covered; nothing is ever wholly forgotten.

When no rank has two segments (a bound of very few blocks), the two oldest segments merge whatever their ranks; when
a single segment is over the bound, it is merged in time, then in space, and its text goes last.

Merging works on what was stored (quantised and back), in a fixed order, so folding the stored blocks again after a
resume gives equal tensors. A segment that did not change stays the same object: caches may go by identity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Self

import numpy as np
import torch

from x2l_cluster.compress.pool import pool
from x2l_cluster.compress.reduce import reduce
from x2l_cluster.kv.block import KVBlock, Run, concat
from x2l_cluster.types import Anchors, LevelSpec, Quant, Role

_WHOLE = LevelSpec(pool="group", anchors=Anchors.KEEP, quant=Quant.NONE)
_QUARTER = LevelSpec(pool="2x2", anchors=Anchors.KEEP, quant=Quant.NONE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """The folded past. ``add`` returns a new memory; amortised work per chunk is constant.

    Attributes:
        bound: most entries the memory may hold; None is unbounded (then the memory is just all blocks).
        dtype: of the keys and values it hands out, and in which merges are kept.
        segments: dense blocks, oldest first.
        ranks: of each segment, how often it was merged; not rising.
    """

    bound: int | None
    dtype: torch.dtype = torch.float32
    segments: tuple[KVBlock, ...] = ()
    ranks: tuple[int, ...] = ()

    @classmethod
    def of(cls, blocks: Iterable[KVBlock], bound: int | None, dtype: torch.dtype = torch.float32) -> Self:
        """The fold over stored blocks, in chunk order (what a resumed worker starts from)."""
        memory = cls(bound=bound, dtype=dtype)
        for block in blocks:
            memory = memory.add(block)
        return memory

    @property
    def entries(self) -> int:
        return sum(segment.entries for segment in self.segments)

    @property
    def block(self) -> KVBlock | None:
        """The whole memory as one dense block; None while it is empty."""
        return concat(self.segments) if self.segments else None

    def add(self, block: KVBlock) -> Self:
        """The memory after one more chunk, given its H block as it is stored."""
        segments = [*self.segments, block.dequantised(self.dtype)]
        ranks = [*self.ranks, 0]
        while self.bound is not None and sum(s.entries for s in segments) > self.bound:
            if len(segments) == 1:
                segments[0] = shrink(segments[0])
                continue
            at = _oldest_pair(ranks)
            segments[at : at + 2] = [halve(concat(segments[at : at + 2]))]
            ranks[at : at + 2] = [ranks[at] + 1]
        return replace(self, segments=tuple(segments), ranks=tuple(ranks))


def _oldest_pair(ranks: list[int]) -> int:
    """Where the two segments to merge begin."""
    rank, count = max(Counter(ranks).items(), key=lambda item: (item[1], item[0]))
    return ranks.index(rank) if count > 1 else 0


def halve(block: KVBlock) -> KVBlock:
    """A dense block at half its resolution in time.

    Groups are taken in pairs, an odd last one stays alone: the visual runs of a pair become one run, and of the
    groups that have text every other one keeps it. Grids of different size are averaged whole before they meet.
    """
    if len({(run.rows, run.cols) for run in block.runs if run.role is Role.VISUAL}) > 1:
        block = pool(block, _WHOLE)
    order = {group: i for i, group in enumerate(sorted({run.group for run in block.runs}))}
    texts = {group: i for i, group in enumerate(sorted({r.group for r in block.runs if r.role is not Role.VISUAL}))}
    seen = {run.group: run.start for run in reversed(block.runs) if run.role is Role.VISUAL}
    targets = np.full(block.entries, -1, dtype=np.int64)
    runs: list[Run] = []

    def emit(parts: list[Run], group: int) -> None:
        start = runs[-1].stop if runs else 0
        for part in parts:
            targets[part.start : part.stop] = np.arange(start, start + len(part))
        runs.append(replace(parts[0], start=start, stop=start + len(parts[0]), group=group))

    def pair_of(run: Run) -> int:
        return order[run.group] // 2

    for pair, members in groupby(sorted(block.runs, key=pair_of), key=pair_of):
        pictures: list[Run] = []
        after: list[Run] = []
        for run in members:
            if run.role is Role.VISUAL:
                pictures.append(run)
            elif texts[run.group] % 2 == 0:
                if run.start < seen.get(run.group, block.entries):
                    emit([run], pair)
                else:
                    after.append(run)
        if pictures:
            emit(pictures, pair)
        for run in after:
            emit([run], pair)
    return reduce(block, targets, tuple(runs))


def shrink(block: KVBlock) -> KVBlock:
    """A dense block of more than one entry with fewer entries, or one step nearer to it: time, space, text."""
    visual = [run for run in block.runs if run.role is Role.VISUAL]
    if len({run.group for run in block.runs}) > 1 or len(visual) > 1:
        return halve(block)
    if visual and len(visual[0]) > 1:
        return pool(block, _QUARTER)
    targets = np.full(block.entries, -1, dtype=np.int64)
    if visual:
        targets[visual[0].start] = 0
        return reduce(block, targets, (replace(visual[0], start=0, stop=1),))
    gone = block.entries // 2
    targets[gone:] = np.arange(block.entries - gone)
    left = [replace(run, start=max(run.start - gone, 0), stop=run.stop - gone) for run in block.runs if run.stop > gone]
    return reduce(block, targets, tuple(left))
