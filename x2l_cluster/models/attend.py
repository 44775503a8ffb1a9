"""All attention goes through here: requests' queries against what each may see (``view.py``).

What is shared is attended to once for all who share it, what is not in one product over rows that lie together
(``rows.py``), and the two are put together by the mass each of them has: attention does not depend on the order of what
it sees, because positions are in the keys. A paged engine of a GPU replaces this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from x2l_cluster.models.pages import Stretch
from x2l_cluster.models.partial import Partial, merged, partial
from x2l_cluster.models.view import View


class Attention:
    """The attention of one forward, layer after layer, of several requests at once.

    Args:
        views: what each request sees; new tokens are written into them.
        sizes: how many new tokens each has.
        sharing: query heads to a KV head.
        dtype: of queries, keys and values.
    """

    def __init__(self, views: Sequence[View], sizes: Sequence[int], sharing: int, dtype: torch.dtype) -> None:
        spans = [(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]
        for view, size in zip(views, sizes, strict=True):  # all of them first: rows move when others get theirs
            view.room(size)
        # One token each, as in decoding, is one product for all of them; nothing else is worth putting together.
        ones = [
            n for n, (view, size) in enumerate(zip(views, sizes, strict=True)) if size == 1 and view.stretch.entries
        ]
        ones = ones if len(ones) > 1 else []
        others = sorted(set(range(len(views))) - set(ones))
        self._ones = _Ones([views[n] for n in ones], sharing, dtype) if ones else None
        self._others = [(spans[n], _Several(views[n], sizes[n], dtype)) for n in others]
        device = views[0].stretch.pages[0].keys.device
        self._at = torch.tensor([spans[n][0] for n in ones], device=device)

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attends, all rotated.

        Args:
            queries: (tokens, heads, head_dim), requests one behind the other.
            keys, values: (tokens, kv_heads, head_dim) of the new tokens.
            scale: factor of the scores.

        Returns:
            (tokens, heads * head_dim).
        """
        if self._ones is not None and not self._others:
            return self._ones(layer, queries, keys, values, scale)
        seen = torch.empty_like(queries).flatten(1)
        if self._ones is not None:
            at = self._at
            seen[at] = self._ones(layer, queries[at], keys[at], values[at], scale)
        for (start, stop), one in self._others:
            seen[start:stop] = one(layer, queries[start:stop], keys[start:stop], values[start:stop], scale)
        return seen


class _Several:
    """One request with some new tokens, which see each other causally."""

    def __init__(self, view: View, new: int, dtype: torch.dtype) -> None:
        rows, row = view.rows, view.row
        assert rows is not None
        self._stretch, self._new = view.stretch, new
        past = view.kept_entries + view.own
        self._here, self._upto = slice(past, past + new), past + new
        self._keys, self._values = rows.keys[:, row], rows.values[:, row]
        rows.mask[row, self._here] = 0.0
        self._mask: Tensor | None = None
        if new > 1 or rows.biased:
            mask = rows.mask[row, : self._upto].expand(new, -1).clone()
            mask[:, past:] = torch.full((new, new), float("-inf"), device=mask.device).triu(1)
            self._mask = mask.to(dtype)
        self._bias = None if view.bias is None else view.bias.to(dtype)[None, None, None]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        all_keys, all_values = self._keys[layer], self._values[layer]
        all_keys[:, self._here] = keys.transpose(0, 1)
        all_values[:, self._here] = values.transpose(0, 1)
        new, heads, dim = queries.shape
        kv_heads, sharing = keys.shape[1], heads // keys.shape[1]
        # The query heads that share a KV head become more rows of it: no head is ever copied.
        rows = queries.transpose(0, 1).reshape(1, kv_heads, sharing * new, dim)
        mask = None if self._mask is None else self._mask.repeat(sharing, 1)[None, None]
        own = partial(rows, all_keys[None, :, : self._upto], all_values[None, :, : self._upto], mask, scale)
        seen = own[0]
        if self._stretch.entries:
            shared_keys, shared_values = self._stretch.layer(layer)
            seen = merged(partial(rows, shared_keys[None], shared_values[None], self._bias, scale), own)
        return seen[0].reshape(heads, new, dim).transpose(0, 1).flatten(1)


class _Ones:
    """Requests with one new token each: a product a stretch they share, and one over the rows they have together."""

    def __init__(self, views: Sequence[View], sharing: int, dtype: torch.dtype) -> None:
        device = views[0].stretch.pages[0].keys.device
        together: dict[Stretch, list[int]] = {}
        for number, view in enumerate(views):
            together.setdefault(view.stretch, []).append(number)
        self._rows = [_OnRows(views, members, dtype) for members in _neighbours(views)]
        self._stretches = [_OnStretch(views, members, sharing, dtype) for members in together.values()]
        self._by_row = _Order(self._rows, device)
        self._by_stretch = _Order(self._stretches, device)

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        tokens, kv_heads, dim = keys.shape
        grouped = queries.view(tokens, kv_heads, -1, dim)
        for part in self._rows:
            part.write(layer, keys, values)
        own = self._by_row(layer, grouped, scale)
        shared = self._by_stretch(layer, grouped, scale)
        return merged(shared, own).flatten(1)


def _neighbours(views: Sequence[View]) -> list[list[int]]:
    """Numbers of views, in the order of their rows, in runs whose rows lie side by side."""
    runs: list[list[int]] = []
    for number in sorted(range(len(views)), key=lambda number: views[number].place):
        view, before = views[number], views[runs[-1][-1]] if runs else None
        if before is not None and before.rows is view.rows and before.row + 1 == view.row:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


class _OnRows:
    """Views whose rows lie side by side, over what only each of them sees."""

    def __init__(self, views: Sequence[View], members: list[int], dtype: torch.dtype) -> None:
        first = views[members[0]]
        assert first.rows is not None
        self.members, self._rows = members, first.rows
        ends = [views[member].kept_entries + views[member].own for member in members]
        self._here, self._upto = slice(first.row, first.row + len(members)), max(ends) + 1
        mask, room = self._rows.mask, self._rows.room
        places = torch.tensor([(first.row + n) * room + end for n, end in enumerate(ends)], device=mask.device)
        mask.view(-1)[places] = 0.0
        # Rows of one head each, in the flat tensor of a layer: where the new keys and values go.
        kv_heads = self._rows.keys.shape[2]
        row, end = places // room, places % room
        heads = torch.arange(kv_heads, device=mask.device)
        self._places = ((row[:, None] * kv_heads + heads) * room + end[:, None]).flatten()
        self._who = _index(members, mask.device)
        needless = len(members) == 1 and not self._rows.biased
        self._mask = None if needless else mask[self._here, None, None, : self._upto].to(dtype)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        for kept, new in ((self._rows.keys, keys), (self._rows.values, values)):
            mine = new[self._who].reshape(-1, new.shape[-1])
            kept[layer].view(-1, new.shape[-1]).index_copy_(0, self._places, mine)

    def __call__(self, layer: int, queries: Tensor, scale: float) -> Partial:
        keys = self._rows.keys[layer, self._here, :, : self._upto]
        values = self._rows.values[layer, self._here, :, : self._upto]
        return partial(queries, keys, values, self._mask, scale)


class _OnStretch:
    """Views of one stretch, over that."""

    def __init__(self, views: Sequence[View], members: list[int], sharing: int, dtype: torch.dtype) -> None:
        self.members, self._stretch = members, views[members[0]].stretch
        self._mask: Tensor | None = None
        biases = [views[member].bias for member in members]
        if any(bias is not None for bias in biases):
            zeros = torch.zeros(self._stretch.entries, device=self._stretch.pages[0].keys.device)
            bias = torch.stack([zeros if bias is None else bias for bias in biases]).to(dtype)
            self._mask = bias.repeat_interleave(sharing, 0)[None, None]

    def __call__(self, layer: int, queries: Tensor, scale: float) -> Partial:
        keys, values = self._stretch.layer(layer)
        members, kv_heads, sharing, dim = queries.shape
        rows = queries.transpose(0, 1).reshape(1, kv_heads, members * sharing, dim)
        seen, mass = partial(rows, keys[None], values[None], self._mask, scale)
        split = (kv_heads, members, sharing)
        return seen[0].view(*split, dim).transpose(0, 1), mass[0].view(split).transpose(0, 1)


class _Part(Protocol):
    """Some members of a batch: their queries (members, kv_heads, sharing, head_dim) over what they see together."""

    members: list[int]

    def __call__(self, layer: int, queries: Tensor, scale: float) -> Partial: ...


class _Order:
    """Parts of a batch, each of some members, as one over all of them in the order of the batch."""

    def __init__(self, parts: Sequence[_Part], device: torch.device) -> None:
        self._parts = parts
        self._who = [_index(part.members, device) for part in parts]
        order = [member for part in parts for member in part.members]
        self._back = None if order == sorted(order) else torch.tensor(order, device=device).argsort()

    def __call__(self, layer: int, queries: Tensor, scale: float) -> Partial:
        done = [part(layer, queries[who], scale) for part, who in zip(self._parts, self._who, strict=True)]
        seen, mass = done[0] if len(done) == 1 else (torch.cat([part[n] for part in done]) for n in (0, 1))
        return (seen, mass) if self._back is None else (seen[self._back], mass[self._back])


def _index(members: list[int], device: torch.device) -> slice | Tensor:
    """Picks members of a batch; those that stand side by side are not copied for it."""
    if members == list(range(members[0], members[-1] + 1)):
        return slice(members[0], members[-1] + 1)
    return torch.tensor(members, device=device)
