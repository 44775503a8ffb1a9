"""Random KV blocks as a model would give them."""

from __future__ import annotations

import torch

from x2l_cluster.kv.block import KVBlock, Run
from x2l_cluster.types import Role


def raw_block(
    *,
    groups: int = 3,
    rows: int = 4,
    cols: int = 4,
    time: int = 3,
    text: int = 0,
    layers: int = 2,
    heads: int = 2,
    dim: int = 8,
    seed: int = 0,
    start: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> KVBlock:
    """Each group: timestamp, vision start, grid, vision end, subtitle. Coordinates on three axes."""
    runs: list[Run] = []

    def put(role: Role, size: int, group: int, rows: int = 0, cols: int = 0) -> None:
        at = runs[-1].stop if runs else 0
        if size:
            runs.append(Run(role=role, start=at, stop=at + size, group=group, rows=rows, cols=cols))

    for group in range(groups):
        put(Role.TIME, time, group)
        put(Role.MARKER, 1, group)
        put(Role.VISUAL, rows * cols, group, rows, cols)
        put(Role.MARKER, 1, group)
        put(Role.TEXT, text, group)
    entries = runs[-1].stop
    gen = torch.Generator().manual_seed(seed)
    shape = (layers, heads, entries, dim)
    line = start + torch.arange(entries, dtype=torch.float32)
    return KVBlock(
        keys=torch.randn(shape, generator=gen).to(dtype),
        values=torch.randn(shape, generator=gen).to(dtype),
        coords=torch.stack((line, line * 0.5, line + 1), dim=1),
        counts=torch.ones(entries, dtype=torch.int32),
        runs=tuple(runs),
    )


def same(a: KVBlock, b: KVBlock) -> bool:
    """Bit-equal dense blocks."""
    assert isinstance(a.keys, torch.Tensor)
    assert isinstance(b.keys, torch.Tensor)
    assert isinstance(a.values, torch.Tensor)
    assert isinstance(b.values, torch.Tensor)
    return (
        a.runs == b.runs
        and torch.equal(a.keys, b.keys)
        and torch.equal(a.values, b.values)
        and torch.equal(a.coords, b.coords)
        and torch.equal(a.counts, b.counts)
    )
