"""What one request attends to: a stretch of pages that others see too, other pages instead of some, its own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from x2l_cluster.models.pages import Page, Stretch
from x2l_cluster.models.rows import Rows, Shelves

Piece = tuple[Tensor, Tensor, Tensor | None]
"""Keys, values (layers, kv_heads, entries, head_dim) and biases (entries,)."""
_NONE: Final[Mapping[int, Page]] = {}


class View:
    """What one request sees: a stretch of pages, ``instead`` of some of them others, then its own tokens.

    Not safe for use by two threads at once; pages are never written to.

    Args:
        pages: in time order; all who are given the same ones share them.
        instead: by place in ``pages``: what is seen there instead.
    """

    def __init__(self, pages: Sequence[Page], instead: Mapping[int, Page] = _NONE) -> None:
        self.stretch = Stretch.of(pages)
        self._instead = tuple(instead[place] for place in sorted(instead))
        hidden = [self.stretch.places[place] for place in sorted(instead)]
        self.kept_entries = sum(page.entries for page in self._instead)
        self.shared = self.stretch.entries - sum(stop - start for start, stop in hidden) + self.kept_entries
        """Entries of pages it sees."""
        self.own = 0
        """Own tokens every layer has seen: moved on by :meth:`advance`."""
        self.bias = self._hide(hidden)
        """Of the stretch, (entries,) float32; None for zeros."""
        self.rows: Rows | None = None
        self.row = 0
        self._shelves = Shelves()

    def _hide(self, hidden: Sequence[tuple[int, int]]) -> Tensor | None:
        if not hidden:
            return self.stretch.bias
        device = self.stretch.pages[0].keys.device
        bias = self.stretch.bias
        bias = torch.zeros(self.stretch.entries, device=device) if bias is None else bias.clone()
        for start, stop in hidden:
            bias[start:stop] = float("-inf")
        return bias

    @property
    def pages(self) -> tuple[Page, ...]:
        return self.stretch.pages

    @property
    def entries(self) -> int:
        return self.shared + self.own

    @property
    def place(self) -> tuple[int, int]:
        """Where its row lies: a batch in this order attends to its rows without being put in order for it."""
        return id(self.rows), self.row

    def join(self, shelves: Shelves) -> None:
        """From now on its row lies with those of a batch."""
        assert self.rows is None, "a view joins a batch before its first forward"
        self._shelves = shelves

    def leave(self) -> None:
        """Gives its row back; the view is of no use any more."""
        if self.rows is not None:
            self._shelves.free(self.rows, self.row)
            self.rows = None

    def room(self, new: int) -> None:
        """Makes room in its row for ``new`` more own tokens."""
        need = self.kept_entries + self.own + new
        if self.rows is None:
            self.rows, self.row = self._shelves.place(self, need)
        elif need > self.rows.room:
            old = self.rows, self.row
            self.rows, self.row = self._shelves.place(self, need)
            self._shelves.free(*old)

    def kept(self) -> Iterator[Piece]:
        """What belongs into its row, for who lays it out."""
        if self.rows is not None:
            yield self.rows.written(self.row, self.kept_entries + self.own)
        else:
            for page in self._instead:
                yield page.keys, page.values, page.bias

    def advance(self, new: int) -> None:
        """Every layer has taken ``new`` tokens."""
        self.own += new
