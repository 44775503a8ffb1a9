"""All attention goes through here: a request's queries against the pages it may see.

A *page* is a stretch of rotated keys and values that many requests may share (the prefix; a chunk at a level; the
prefill memory). A *view* is what one request attends to: some pages in time order, then its own tokens. On a CPU the
view lays its pages out once, contiguously, with room for the tokens to come, and calls SDPA; a paged engine replaces
this file and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


class View:
    """What one request sees: shared pages, then its own tokens, which grow layer by layer.

    Not safe for use by two threads at once; pages are never written to.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        assert pages, "a view begins with at least the prefix"
        self.pages = tuple(pages)
        self.shared = sum(page.entries for page in pages)
        self.own = 0
        """Own tokens every layer has seen: moved on by :meth:`advance`."""
        self._bias = self._join_bias()
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def _join_bias(self) -> Tensor | None:
        if all(page.bias is None for page in self.pages):
            return None
        device = self.pages[0].keys.device
        return torch.cat(
            [torch.zeros(p.entries, device=device) if p.bias is None else p.bias.float() for p in self.pages]
        )

    @property
    def entries(self) -> int:
        return self.shared + self.own

    def _room(self, new: int) -> None:
        need = self.entries + new
        if self._keys is not None and self._keys.shape[2] >= need:
            return
        layers, heads, _, dim = self.pages[0].keys.shape
        room = need + max(64, self.own)
        fresh = [page.new_empty((layers, heads, room, dim)) for page in (self.pages[0].keys, self.pages[0].values)]
        if self._keys is None or self._values is None:
            torch.cat([page.keys for page in self.pages], dim=2, out=fresh[0][:, :, : self.shared])
            torch.cat([page.values for page in self.pages], dim=2, out=fresh[1][:, :, : self.shared])
        else:
            fresh[0][:, :, : self.entries] = self._keys[:, :, : self.entries]
            fresh[1][:, :, : self.entries] = self._values[:, :, : self.entries]
        self._keys, self._values = fresh

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts new rotated keys and values (kv_heads, new, head_dim) of one layer behind what is there.

        Returns all of the layer's keys and values, (kv_heads, entries + new, head_dim).
        """
        new = keys.shape[1]
        self._room(new)
        assert self._keys is not None and self._values is not None
        here = slice(self.entries, self.entries + new)
        self._keys[layer, :, here] = keys
        self._values[layer, :, here] = values
        return self._keys[layer, :, : here.stop], self._values[layer, :, : here.stop]

    def advance(self, new: int) -> None:
        """Every layer has taken ``new`` tokens."""
        self.own += new

    def mask(self, new: int) -> Tensor | None:
        """Additive mask (new, entries + new) float32: biases of the past, causal among the new. None: all zeros."""
        if new == 1 and self._bias is None:
            return None
        device = self.pages[0].keys.device
        past = self.entries
        mask = torch.zeros(new, past + new, device=device)
        if self._bias is not None:
            mask[:, : self.shared] = self._bias
        mask[:, past:] = torch.full((new, new), float("-inf"), device=device).triu(1)
        return mask


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Grouped-query attention of one request.

    Args:
        queries: (heads, new, head_dim), rotated.
        keys, values: (kv_heads, seen, head_dim), rotated.
        mask: additive, (new, seen), or None.
        scale: factor of the scores.

    Returns:
        (new, heads * head_dim).
    """
    out = F.scaled_dot_product_attention(
        queries[None],
        keys[None],
        values[None],
        attn_mask=None if mask is None else mask.to(queries.dtype)[None, None],
        scale=scale,
        enable_gqa=queries.shape[0] != keys.shape[0],
    )
    return out[0].transpose(0, 1).flatten(1)
