"""From stored blocks to what a question attends to: pages in time order, mixed levels (paper §3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from x2l_cluster.engine.place import Placement, place
from x2l_cluster.kv.block import KVBlock, dense
from x2l_cluster.kv.stripes import Stripe, join
from x2l_cluster.models.base import VideoLM
from x2l_cluster.models.pages import Page
from x2l_cluster.models.view import View
from x2l_cluster.types import Level, Positions


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
    """The KVs of everything before the first frame; the same for every question and video of a model."""

    page: Page
    end: float

    @classmethod
    def of(cls, lm: VideoLM, ids: Sequence[int]) -> Prefix:
        tokens = lm.embed_text(ids, 0.0)
        block = lm.prefill(tokens, Level.L, View([empty_page(lm)]))
        return cls(page=Assembler(lm).page(block, block.coords), end=tokens.end)


class Assembler:
    """Turns blocks into pages. Rotates once, from raw keys.

    Args:
        log_count_bias: add log n to the scores of an entry that stands for n tokens. Off by default: without training
            for it, it did harm (RESULTS.md).
    """

    def __init__(self, lm: VideoLM, *, log_count_bias: bool = False) -> None:
        self._lm = lm
        self._log_count_bias = log_count_bias

    def page(self, block: KVBlock, coords: Tensor | None) -> Page:
        """One block as a page, on the model's device and in its dtype.

        Args:
            coords: where its entries stand, (entries, axes); None leaves the keys unrotated (for :meth:`compact`).
        """
        block = block.to(self._lm.device)
        keys, values = block.dense(self._lm.dtype)
        if coords is not None:
            keys = self._lm.rotate(keys, coords.to(self._lm.device))
        return Page(keys=keys, values=values, bias=self._bias(block.counts))

    def gather(self, stripes: Iterable[Stripe], where: Placement | None) -> Page:
        """A block as a page, stripe by stripe as they come, each straight to its place: the block is never whole twice.

        ``where`` places its entries; None leaves the keys unrotated.
        """
        stripes = iter(stripes)
        first = next(stripes)
        if first.cut.stripes == 1:
            block = join(chain((first,), stripes))
            return self.page(block, where(block.coords) if where else None)
        assert first.shared is not None, "the first stripe has what all share"
        coords = where(first.shared.coords).to(self._lm.device) if where else None
        keys, values = (
            torch.empty((*first.cut.whole, part.shape[-1]), device=self._lm.device, dtype=self._lm.dtype)
            for part in (first.keys, first.values)
        )
        for stripe in chain((first,), stripes):
            part, values[stripe.box] = (dense(x, self._lm.device, self._lm.dtype) for x in (stripe.keys, stripe.values))
            keys[stripe.box] = part if coords is None else self._lm.rotate(part, coords[stripe.box[2]])
        return Page(keys=keys, values=values, bias=self._bias(first.shared.counts))

    def _bias(self, counts: Tensor) -> Tensor | None:
        return counts.to(self._lm.device).float().log() if self._log_count_bias else None

    def pages(
        self, blocks: Sequence[KVBlock], mode: Positions, *, anchor: float, end: float
    ) -> tuple[list[Page], float]:
        """Blocks in time order as pages, and the position at which the question begins.

        ``end`` is the original position behind the last of them.
        """
        if mode is Positions.COMPACT:
            return self.compact([self.page(block, None) for block in blocks], anchor)
        where = self.placement(mode, anchor=anchor, end=end)
        return [self.page(block, where(block.coords)) for block in blocks], where.at(end)

    def compact(self, pages: Sequence[Page], anchor: float) -> tuple[list[Page], float]:
        """Unrotated pages at contiguous positions from ``anchor`` on, and the position behind them."""
        placed: list[Page] = []
        for page in pages:
            index = anchor + torch.arange(page.entries, device=page.keys.device, dtype=torch.float32)
            keys = self._lm.rotate(page.keys, index[:, None].expand(-1, self._lm.spec.axes))
            placed.append(replace(page, keys=keys))
            anchor += page.entries
        return placed, anchor

    def placement(self, mode: Positions, *, anchor: float, end: float) -> Placement:
        return place(mode, anchor=anchor, end=end, max_position=self._lm.spec.max_position)


def empty_page(lm: VideoLM) -> Page:
    """A page without entries: what the prefix itself attends to."""
    nothing = torch.zeros(lm.spec.layers, lm.spec.kv_heads, 0, lm.spec.head_dim, device=lm.device, dtype=lm.dtype)
    return Page(keys=nothing, values=nothing)
