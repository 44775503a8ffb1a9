"""Where views keep what nobody shares with them: rows of one tensor, so that one product is over all of a batch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import ref

import torch
from torch import Tensor

if TYPE_CHECKING:
    from x2l_cluster.models.view import View

SMALLEST: Final = 128
"""Entries of the shortest rows that views share a tensor for; the next ones are twice as long, and so on."""
LONGEST: Final = 2048
"""Longer rows stand alone: there the product takes its time, not the call, and padding would cost memory."""
MOST: Final = 16
"""Rows of a tensor."""


class Rows:
    """KVs of some views, a row each, in the order of ``views``; grows by doubling.

    Views hold their rows and not the other way round: one that nobody has any more is gone at once, with all it kept.

    Attributes:
        room: entries of a row.
        keys, values: (layers, rows, kv_heads, room, head_dim). What no view has written is finite, so that it can be
            masked.
        mask: (rows, room) float32: the bias of what is written, −inf beyond.
        biased: whether any of it has a bias other than 0.
    """

    @torch.inference_mode()
    def __init__(self, view: View, room: int) -> None:
        like = view.stretch.pages[0]
        layers, kv_heads, _, head_dim = like.keys.shape
        self.room = room
        self.views: list[ref[View]] = []
        self.biased = False
        self.keys, self.values = (x.new_zeros((layers, 1, kv_heads, room, head_dim)) for x in (like.keys, like.values))
        self.mask = torch.empty((1, room), device=like.keys.device)
        self.add(view)

    @torch.inference_mode()
    def add(self, view: View) -> int:
        """Gives a view a row, and the KVs it has by now."""
        row = len(self.views)
        if row == len(self.mask):
            self.keys, self.values = (torch.cat((x, torch.zeros_like(x)), dim=1) for x in (self.keys, self.values))
            self.mask = torch.cat((self.mask, torch.empty_like(self.mask)))
        self.views.append(ref(view))
        self.mask[row] = float("-inf")
        start = 0
        for keys, values, bias in view.kept():
            here = slice(start, start + keys.shape[2])
            self.keys[:, row, :, here] = keys
            self.values[:, row, :, here] = values
            self.mask[row, here] = 0.0 if bias is None else bias
            self.biased |= bias is not None
            start = here.stop
        return row

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """The last row moves to where this one was."""
        end = self.views.pop()
        if row == len(self.views):
            return
        self.views[row] = end
        last, moved = end(), len(self.views)
        if last is not None:
            here = slice(0, last.kept_entries + last.own)
            self.keys[:, row, :, here] = self.keys[:, moved, :, here]
            self.values[:, row, :, here] = self.values[:, moved, :, here]
            self.mask[row] = self.mask[moved]
            last.row = row

    def written(self, row: int, entries: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (layers, kv_heads, entries, head_dim) of a row, and its mask as a bias."""
        bias = self.mask[row, :entries].clone() if self.biased else None
        return self.keys[:, row, :, :entries], self.values[:, row, :, :entries], bias


class Shelves:
    """Rows of a batch's views, those of like length together. Driven by one thread."""

    def __init__(self) -> None:
        self._rows: dict[int, list[Rows]] = {}

    def place(self, view: View, entries: int) -> tuple[Rows, int]:
        """A row with room for at least so many entries, for a view that has none here."""
        room = SMALLEST
        while room < entries:
            room *= 2
        if room > LONGEST:
            return Rows(view, entries + max(64, view.own)), 0
        for rows in self._rows.setdefault(room, []):
            if len(rows.views) < MOST:
                return rows, rows.add(view)
        rows = Rows(view, room)
        self._rows[room].append(rows)
        return rows, 0

    def free(self, rows: Rows, row: int) -> None:
        rows.remove(row)
        if not rows.views and rows in self._rows.get(rows.room, ()):
            self._rows[rows.room].remove(rows)
