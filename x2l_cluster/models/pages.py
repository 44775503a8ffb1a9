"""What requests attend to and share: pages, and stretches of them laid out once for everybody who sees them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Page:
    """Rotated KVs: keys and values (layers, kv_heads, entries, head_dim); bias (entries,) float32 or None for zeros.

    The bias is added to the attention scores of an entry: log n for entries that stand for n tokens where wanted,
    −inf where an entry must not be seen.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None

    @property
    def entries(self) -> int:
        return self.keys.shape[2]


class Stretch:
    """Pages in order, each layer laid out contiguously when it is first asked for. Get one by :meth:`of`.

    A forward that stops early (scoring) costs no more than the layers it uses. Safe for several threads: two that lay
    the same layer out at once make the same of it.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        assert pages, "a stretch begins with at least the prefix"
        self.pages = tuple(pages)
        ends = [0]
        for page in pages:
            ends.append(ends[-1] + page.entries)
        self.places = tuple(pairwise(ends))
        """Where each page begins and ends."""
        self.entries = ends[-1]
        self.bias = self._join_bias()
        self._laid: dict[int, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def of(pages: Sequence[Page]) -> Stretch:
        """The stretch of these very pages; the same one for as long as anybody has it."""
        key = tuple(map(id, pages))
        with _LOCK:
            known = _KNOWN.get(key)
            if known is None:
                known = _KNOWN[key] = Stretch(pages)  # keeps the pages, so their ids are not used again
            return known

    def _join_bias(self) -> Tensor | None:
        if all(page.bias is None for page in self.pages):
            return None
        device = self.pages[0].keys.device
        return torch.cat(
            [torch.zeros(p.entries, device=device) if p.bias is None else p.bias.float() for p in self.pages]
        )

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (kv_heads, entries, head_dim) each."""
        laid = self._laid.get(index)
        if laid is None:
            if len(self.pages) == 1:
                laid = self.pages[0].keys[index], self.pages[0].values[index]
            else:
                laid = (
                    torch.cat([page.keys[index] for page in self.pages], dim=1),
                    torch.cat([page.values[index] for page in self.pages], dim=1),
                )
            self._laid[index] = laid
        return laid


_KNOWN: Final[WeakValueDictionary[tuple[int, ...], Stretch]] = WeakValueDictionary()
_LOCK: Final = threading.Lock()
