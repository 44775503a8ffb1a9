"""The score index: what a scorer keeps of a chunk, and all chunks of a video stacked for one matmul a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from x2l_cluster.compress.quantise import KEY_GROUP, quantise_tensor
from x2l_cluster.errors import BlockCorrupt
from x2l_cluster.kv.block import KVBlock, Quantised
from x2l_cluster.types import Quant

Head = tuple[int, int]
"""(layer, head)."""


class Features(NamedTuple):
    """What ``kv.codec.pack`` stores of a chunk for a scorer."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadKeys:
    """Keys before RoPE of a few heads of one chunk.

    Three heads of an 8B model are 0.4 % of L. Made from the *stored* block (quantised and back), so it can be made
    again, byte for byte, whenever the block is there: a new calibration needs no new prefill.

    Attributes:
        heads: (layer, kv_head) of each.
        keys: (heads, entries, head_dim), or its quantised form.
        coords: (entries, axes) float32.
    """

    heads: tuple[Head, ...]
    keys: Tensor | Quantised
    coords: Tensor

    @classmethod
    def of(cls, block: KVBlock, heads: Sequence[Head], storage: Quant = Quant.NONE) -> Self:
        """Picks ``heads`` out of a block; ``storage`` none keeps the keys as they come (dense)."""
        layers, kv_heads = [layer for layer, _ in heads], [head for _, head in heads]
        if isinstance(block.keys, Quantised):
            q = block.keys
            picked = replace(
                q, codes=q.codes[layers, kv_heads], scale=q.scale[layers, kv_heads], low=q.low[layers, kv_heads]
            ).dequantise()
        else:
            picked = block.keys[layers, kv_heads]
        keys: Tensor | Quantised = picked
        if storage is not Quant.NONE:
            keys = quantise_tensor(picked, bits=storage.bits, axis=-2, group=KEY_GROUP[storage.bits], name="keys")
        return cls(heads=tuple(heads), keys=keys, coords=block.coords)

    @property
    def entries(self) -> int:
        return self.coords.shape[0]

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """(heads, entries, head_dim); without ``dtype`` as stored, or float32."""
        if isinstance(self.keys, Quantised):
            return self.keys.dequantise(dtype or torch.float32)
        return self.keys.to(dtype) if dtype else self.keys

    def to_tensors(self) -> Features:
        heads = [list(head) for head in self.heads]
        if isinstance(self.keys, Quantised):
            q = self.keys
            tensors = {"codes": q.codes, "scale": q.scale, "low": q.low, "coords": self.coords}
            return Features(tensors, {"form": "head_keys", "heads": heads, "bits": q.bits, "group": q.group})
        return Features({"keys": self.keys, "coords": self.coords}, {"form": "head_keys", "heads": heads})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """What was stored. Raises BlockCorrupt when tensors and metadata do not go together."""
        try:
            if meta["form"] != "head_keys":
                raise ValueError(meta["form"])
            heads = tuple((int(layer), int(head)) for layer, head in meta["heads"])
            coords = tensors["coords"]
            keys: Tensor | Quantised
            if "bits" in meta:
                keys = Quantised(
                    codes=tensors["codes"],
                    scale=tensors["scale"],
                    low=tensors["low"],
                    bits=int(meta["bits"]),
                    axis=-2,
                    group=int(meta["group"]),
                )
                steps = (*keys.shape[:1], -(-keys.shape[1] // keys.group), *keys.shape[2:])
                if keys.bits not in (4, 8) or keys.scale.shape != steps or keys.low.shape != steps:
                    raise ValueError("scales")
            else:
                keys = tensors["keys"]
            if len(keys.shape) != 3 or tuple(keys.shape[:2]) != (len(heads), coords.shape[0]):
                raise ValueError(tuple(keys.shape))
        except (KeyError, TypeError, ValueError, ArithmeticError, IndexError) as error:
            raise BlockCorrupt(f"a stored score index is not one of head keys ({error!r}); build it again") from error
        return cls(heads=heads, keys=keys, coords=coords)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bank:
    """All chunks of a video, stacked for scoring. Make it once, ask it many questions.

    Attributes:
        chunks: index of each chunk, rising; scores come in this order.
        heads: (layer, kv_head) of each row of ``keys``.
        keys: (heads, entries of all chunks, head_dim).
        coords: (entries of all chunks, axes).
        lengths: entries of each chunk.
        turned: whether ``keys`` are rotated to ``coords`` already.
        table: (chunks, longest) int64: entries of each chunk, padded with their total number; None if all are as long.
    """

    chunks: tuple[int, ...]
    heads: tuple[Head, ...]
    keys: Tensor
    coords: Tensor
    lengths: tuple[int, ...]
    table: Tensor | None = None
    turned: bool = False

    @classmethod
    def of(cls, chunks: Sequence[int], parts: Sequence[HeadKeys], dtype: torch.dtype | None = None) -> Self:
        """Stacks what :class:`HeadKeys` kept; ``dtype`` as there."""
        assert len(chunks) == len(parts), (len(chunks), len(parts))
        if not parts:
            return cls.bare(chunks)
        assert len({part.heads for part in parts}) == 1, "all parts hold the same heads"
        keys = torch.cat([part.dense(dtype) for part in parts], dim=1)
        return cls.stack(chunks, parts[0].heads, keys, torch.cat([p.coords for p in parts]), [p.entries for p in parts])

    @classmethod
    def stack(
        cls, chunks: Sequence[int], heads: Sequence[Head], keys: Tensor, coords: Tensor, lengths: Sequence[int]
    ) -> Self:
        """From stacked tensors; shapes as in the class."""
        assert sum(lengths) == keys.shape[1] == coords.shape[0], (lengths, keys.shape, coords.shape)
        table = None
        if len(set(lengths)) > 1:
            starts = np.cumsum([0, *lengths[:-1]])
            within = np.arange(max(lengths))
            cells = np.where(within < np.array(lengths)[:, None], starts[:, None] + within, sum(lengths))
            table = torch.from_numpy(cells).to(keys.device)
        return cls(
            chunks=tuple(chunks), heads=tuple(heads), keys=keys, coords=coords, lengths=tuple(lengths), table=table
        )

    @classmethod
    def bare(cls, chunks: Sequence[int]) -> Self:
        """For scorers that look at nothing."""
        return cls(
            chunks=tuple(chunks),
            heads=(),
            keys=torch.zeros(0, 0, 0),
            coords=torch.zeros(0, 0),
            lengths=(0,) * len(chunks),
        )

    def to(self, device: torch.device | str) -> Bank:
        """On another device (stored features arrive on the CPU)."""
        table = None if self.table is None else self.table.to(device)
        return replace(self, keys=self.keys.to(device), coords=self.coords.to(device), table=table)

    @property
    def chunk_of(self) -> Tensor:
        """(entries,) int64: the place in ``chunks`` of each entry's chunk."""
        return torch.repeat_interleave(torch.arange(len(self.chunks)), torch.tensor(self.lengths)).to(self.keys.device)

    def layer(self, layer: int) -> Tensor:
        """Keys (heads, entries, head_dim) of one layer's heads, in the order of ``heads``."""
        return self.keys[[i for i, head in enumerate(self.heads) if head[0] == layer]]

    def rotated(self, rotate: Callable[[Tensor, Tensor], Tensor]) -> Bank:
        """The same bank with its keys rotated to their coordinates (as all questions about one video share them).

        ``rotate`` is that of the model, ``VideoLM.rotate``.
        """
        return self if self.turned else replace(self, keys=rotate(self.keys, self.coords), turned=True)

    def by_chunk(self, x: Tensor, fill: float) -> Tensor:
        """x (..., entries) → (..., chunks, longest), short chunks filled up with ``fill``."""
        if self.table is None:
            return x.reshape(*x.shape[:-1], len(self.chunks), -1)
        return F.pad(x, (0, 1), value=fill)[..., self.table]
