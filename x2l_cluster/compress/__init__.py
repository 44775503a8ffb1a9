"""A KV block becomes a smaller KV block: pooling over the visual grid, then small integers. No I/O, no model."""

from __future__ import annotations

import torch

from x2l_cluster.compress.fold import Memory
from x2l_cluster.compress.pool import pool
from x2l_cluster.compress.quantise import quantise
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.types import LevelSpec

__all__ = ["Memory", "compress", "pool", "quantise"]


def compress(raw: KVBlock, spec: LevelSpec, kv_dtype: torch.dtype | str) -> KVBlock:
    """Raw KVs of a chunk as the level stores them: pooled, then quantised (or cast to ``kv_dtype``).

    ``kv_dtype`` is a torch dtype or its name, as :attr:`Recipe.kv_dtype` has it. On the device of the input. Raises
    NonFinite when the numbers cannot be stored.
    """
    return quantise(pool(raw, spec), spec.quant, kv_dtype)
