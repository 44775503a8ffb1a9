"""The one primitive of pooling: many entries become one, by a weighted mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from x2l_cluster.kv.block import KVBlock, Run

Indexes = np.ndarray[Any, np.dtype[np.int64]]
"""One-dimensional int64."""


def reduce(block: KVBlock, targets: Indexes, runs: tuple[Run, ...]) -> KVBlock:
    """A dense block whose entry ``t`` is the mean of all entries of ``block`` with target ``t``.

    Means of keys, values and coordinates are weighted by counts, so reducing what was reduced before is right; counts
    are summed. Keys and values are accumulated in float32, coordinates in float64 (positions of long videos are
    large). An entry alone in its target is copied bit by bit. The order of summation is fixed: equal input gives
    equal bytes, on CUDA too (no atomics).

    Args:
        block: dense.
        targets: (entries,), the new index of each entry, or −1 to drop it; every index of ``runs`` occurs.
        runs: what the new entries are.
    """
    assert isinstance(block.keys, Tensor), "only dense blocks are pooled"
    assert isinstance(block.values, Tensor), "only dense blocks are pooled"
    new = runs[-1].stop
    kept = targets[targets >= 0]
    sizes = np.bincount(kept, minlength=new)
    assert sizes.shape == (new,), "targets stay within the new runs"
    assert sizes.all(), "every new entry stands for at least one old one"
    order = np.argsort(targets, kind="stable")[len(targets) - len(kept) :]
    first = np.cumsum(sizes) - sizes

    layers, heads, _, dim = block.keys.shape
    device = block.keys.device
    keys = block.keys.new_empty((layers, heads, new, dim))
    values = block.values.new_empty((layers, heads, new, block.values.shape[3]))
    coords = block.coords.new_empty((new, block.coords.shape[1]))
    counts = block.counts.new_empty((new,))
    for size in np.unique(sizes):  # cells of equal size go together: a handful of sizes, whatever the grid
        here = np.nonzero(sizes == size)[0]
        old = torch.from_numpy(order[first[here, None] + np.arange(size)]).to(device)
        out = torch.from_numpy(here).to(device)
        weights = block.counts[old]
        counts[out] = weights.sum(1, dtype=block.counts.dtype)
        keys[:, :, out] = _mean(block.keys, old, weights)
        values[:, :, out] = _mean(block.values, old, weights)
        coords[out] = _mean(block.coords.double(), old, weights).to(coords.dtype)
    return KVBlock(keys=keys, values=values, coords=coords, counts=counts, runs=runs)


def _mean(x: Tensor, old: Tensor, weights: Tensor) -> Tensor:
    """x (..., entries, dim), old and weights (new, size) → (..., new, dim) in the dtype of ``x``."""
    new, size = old.shape
    picked = x.index_select(-2, old.flatten())
    if size == 1:
        return picked
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    factors = weights.to(wide)[:, :, None]
    total = (picked.to(wide).reshape(*x.shape[:-2], new, size, x.shape[-1]) * factors).sum(-2)
    return (total / factors.sum(1)).to(x.dtype)
