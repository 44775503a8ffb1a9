"""Pooling one chunk to a level: visual tokens over their grid, anchors by rule, text never."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from x2l_cluster.compress.reduce import Indexes, reduce
from x2l_cluster.kv.block import KVBlock, Run
from x2l_cluster.types import Anchors, LevelSpec, Role


def pool(block: KVBlock, spec: LevelSpec) -> KVBlock:
    """A dense block at the ratio of a level; the identity returns the very same block.

    Keys are averaged before RoPE, at mean coordinates, as the method wants them (DESIGN §2.2 point 2; averaging KVs
    for the coarse level is what Video-XL-2 does). Visual and text entries never meet in one mean.

    Args:
        block: raw or already pooled; keys (layers, kv_heads, entries, head_dim).
        spec: ``pool`` for the visual runs, ``anchors`` for the others (``TEXT`` is always kept as it is).
    """
    if spec.is_identity:
        return block
    targets = np.full(block.entries, -1, dtype=np.int64)
    runs: list[Run] = []
    first_time = min((run.group for run in block.runs if run.role is Role.TIME), default=-1)
    joined = -1  # group whose anchors the last new run still collects
    for run in block.runs:
        start = runs[-1].stop if runs else 0
        here = slice(run.start, run.stop)
        if run.role is Role.VISUAL:
            cells, rows, cols = grid_cells(run.rows, run.cols, spec.cell)
            targets[here] = start + cells
            runs.append(
                Run(role=run.role, start=start, stop=start + rows * cols, group=run.group, rows=rows, cols=cols)
            )
            joined = -1
        elif run.role is Role.TEXT or spec.anchors is Anchors.KEEP:
            targets[here] = np.arange(start, start + len(run))
            runs.append(run.shifted(start - run.start))
            joined = -1
        elif spec.anchors is Anchors.FIRST_TIME:
            if run.role is Role.TIME and run.group == first_time:
                targets[here] = np.arange(start, start + len(run))
                runs.append(run.shifted(start - run.start))
        elif joined == run.group:
            targets[here] = start - 1
            if run.role is Role.TIME:  # a timestamp with its markers is a timestamp
                runs[-1] = Run(role=Role.TIME, start=start - 1, stop=start, group=run.group)
        else:
            targets[here] = start
            runs.append(Run(role=run.role, start=start, stop=start + 1, group=run.group))
            joined = run.group
    assert runs, f"{spec} leaves nothing of the chunk: it has neither visual tokens nor a timestamp"
    return reduce(block, targets, tuple(runs))


@lru_cache(maxsize=256)
def grid_cells(rows: int, cols: int, cell: tuple[int, int] | None) -> tuple[Indexes, int, int]:
    """Which cell each entry of a row-major grid falls into, (rows · cols,), and the rows and columns of the cells.

    Cells at the lower and right edge may be smaller. ``None`` is the whole grid.
    """
    high, wide = cell or (rows, cols)
    new_rows, new_cols = -(-rows // high), -(-cols // wide)
    cells = (np.arange(rows) // high)[:, None] * new_cols + (np.arange(cols) // wide)[None, :]
    return cells.ravel().astype(np.int64), new_rows, new_cols
