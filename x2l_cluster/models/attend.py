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

    A layer is laid out when it is first asked for, so a forward that stops early (scoring) costs no more than it uses.
    Not safe for use by two threads at once; pages are never written to.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        assert pages, "a view begins with at least the prefix"
        self.pages = tuple(pages)
        self.shared = sum(page.entries for page in pages)
        self.own = 0
        """Own tokens every layer has seen: moved on by :meth:`advance`."""
        self._bias = self._join_bias()
        self._laid: dict[int, tuple[Tensor, Tensor]] = {}

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

    def _room(self, layer: int, new: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (kv_heads, room, head_dim) each, with room for ``new`` more."""
        laid = self._laid.get(layer)
        need = self.entries + new
        if laid is not None and laid[0].shape[1] >= need:
            return laid
        room = need + max(64, self.own)
        first = self.pages[0]
        heads, _, dim = first.keys.shape[1:]
        keys, values = (x.new_empty((heads, room, dim)) for x in (first.keys, first.values))
        if laid is None:
            torch.cat([page.keys[layer] for page in self.pages], dim=1, out=keys[:, : self.shared])
            torch.cat([page.values[layer] for page in self.pages], dim=1, out=values[:, : self.shared])
        else:
            keys[:, : self.entries] = laid[0][:, : self.entries]
            values[:, : self.entries] = laid[1][:, : self.entries]
        self._laid[layer] = keys, values
        return keys, values

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts new rotated keys and values (kv_heads, new, head_dim) of one layer behind what is there.

        Returns all of the layer's keys and values, (kv_heads, entries + new, head_dim).
        """
        new = keys.shape[1]
        all_keys, all_values = self._room(layer, new)
        here = slice(self.entries, self.entries + new)
        all_keys[:, here] = keys
        all_values[:, here] = values
        return all_keys[:, : here.stop], all_values[:, : here.stop]

    def advance(self, new: int) -> None:
        """Every layer has taken ``new`` tokens."""
        self.own += new

    def mask(self, new: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Additive mask (new, entries + new): biases of the past, causal among the new. None: all zeros."""
        if new == 1 and self._bias is None:
            return None
        device = self.pages[0].keys.device
        past = self.entries
        mask = torch.zeros(new, past + new, device=device)
        if self._bias is not None:
            mask[:, : self.shared] = self._bias
        mask[:, past:] = torch.full((new, new), float("-inf"), device=device).triu(1)
        return mask.to(dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Grouped-query attention of one request.

    Args:
        queries: (heads, new, head_dim), rotated.
        keys, values: (kv_heads, seen, head_dim), rotated.
        mask: additive, (new, seen), of the queries' dtype, or None.
        scale: factor of the scores.

    Returns:
        (new, heads * head_dim).
    """
    # The query heads that share a KV head become more rows of it: no head is ever copied, and every SDPA kernel can
    # take it (those of a GPU that take a mask do not group heads themselves).
    kv_heads, sharing = keys.shape[0], queries.shape[0] // keys.shape[0]
    new, dim = queries.shape[1:]
    out = F.scaled_dot_product_attention(
        queries.reshape(1, kv_heads, sharing * new, dim),
        keys[None],
        values[None],
        attn_mask=None if mask is None else mask.repeat(sharing, 1)[None, None],
        scale=scale,
    )
    return out.view(kv_heads * sharing, new, dim).transpose(0, 1).flatten(1)
