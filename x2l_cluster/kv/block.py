"""One chunk's keys and values at one level: the value that is compressed, stored, fetched and attended to.

Notation, everywhere in this project: ``keys (layers, kv_heads, entries, head_dim)``. Keys are kept *before* RoPE (after
k_norm where the model has one), so positions are chosen when a cache is assembled (paper §3.3; Video-XL's code keeps
them the same way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from x2l_cluster.types import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A stretch of consecutive entries of one role: ``[start, stop)``.

    ``group`` is the temporal step inside the chunk it belongs to. A visual run is a grid of ``rows`` by ``cols``
    entries in row-major order; text runs have no grid.
    """

    role: Role
    start: int
    stop: int
    group: int
    rows: int = 0
    cols: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.start < self.stop, self
        assert self.role is not Role.VISUAL or self.rows * self.cols == self.stop - self.start, self

    def __len__(self) -> int:
        return self.stop - self.start

    def shifted(self, by: int) -> Run:
        return replace(self, start=self.start + by, stop=self.stop + by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A tensor in small integers: ``value ≈ low + code * scale``, with one ``scale`` and ``low`` per group.

    Attributes:
        codes: uint8; 8 bits: the shape of the tensor; 4 bits: half its last axis, the even channel in the low nibble.
        scale, low: shape of the tensor with axis ``axis`` divided (rounded up) by ``group``.
        axis: -2 groups along entries (keys, per channel), -1 along channels (values, per token).
        group: how many consecutive elements along ``axis`` share a scale; the last group may be short.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    bits: int
    axis: int
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        *head, last = self.codes.shape
        return (*head, last * 8 // self.bits)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + self.low.nbytes

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor, on the device of the codes."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack((codes & 0x0F, codes >> 4), dim=-1).flatten(-2)
        size = codes.shape[self.axis]

        def spread(x: Tensor) -> Tensor:
            return x.float().repeat_interleave(self.group, dim=self.axis).narrow(self.axis, 0, size)

        return torch.addcmul(spread(self.low), codes.float(), spread(self.scale)).to(dtype)

    def to(self, device: torch.device | str) -> Quantised:
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), low=self.low.to(device))


def dense(part: Tensor | Quantised, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Keys or values as a plain tensor; they travel in their stored form."""
    part = part.to(device)
    return part.dequantise(dtype) if isinstance(part, Quantised) else part.to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVBlock:
    """Keys and values of a chunk (or of several, concatenated) in all layers.

    Attributes:
        keys: (layers, kv_heads, entries, head_dim), before RoPE; a tensor or its quantised form.
        values: the same shape.
        coords: (entries, axes) float32: original position of every entry on every rotary axis; pooled entries lie at
            the mean of what they stand for.
        counts: (entries,) int32: how many tokens each entry stands for.
        runs: what the entries are, covering all of them in order.
    """

    keys: Tensor | Quantised
    values: Tensor | Quantised
    coords: Tensor
    counts: Tensor
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        entries = self.keys.shape[2]
        assert self.values.shape[:3] == self.keys.shape[:3], (self.keys.shape, self.values.shape)
        assert self.coords.shape[0] == entries and self.counts.shape == (entries,), (self.coords.shape, entries)
        ends = [0, *(run.stop for run in self.runs)]
        assert [run.start for run in self.runs] == ends[:-1] and ends[-1] == entries, "runs must tile the entries"

    @property
    def layers(self) -> int:
        return self.keys.shape[0]

    @property
    def entries(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + self.coords.nbytes + self.counts.nbytes

    @property
    def is_quantised(self) -> bool:
        return isinstance(self.keys, Quantised)

    def roles(self) -> Tensor:
        """(entries,) uint8 of :class:`Role`."""
        return torch.cat([torch.full((len(r),), int(r.role), dtype=torch.uint8) for r in self.runs])

    def dense(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Keys and values as plain tensors in ``dtype``."""
        keys = self.keys.dequantise(dtype) if isinstance(self.keys, Quantised) else self.keys.to(dtype)
        values = self.values.dequantise(dtype) if isinstance(self.values, Quantised) else self.values.to(dtype)
        return keys, values

    def dequantised(self, dtype: torch.dtype = torch.float32) -> KVBlock:
        keys, values = self.dense(dtype)
        return replace(self, keys=keys, values=values)

    def to(self, device: torch.device | str) -> KVBlock:
        return replace(
            self,
            keys=self.keys.to(device),
            values=self.values.to(device),
            coords=self.coords.to(device),
            counts=self.counts.to(device),
        )


def concat(blocks: Sequence[KVBlock]) -> KVBlock:
    """Blocks in time order as one dense block; group numbers go on counting."""
    dense = [block.dense(torch.float32 if block.is_quantised else block.keys.dtype) for block in blocks]  # type: ignore[union-attr]
    starts = [0, *accumulate(block.entries for block in blocks)]
    groups = [0, *accumulate(1 + max(run.group for run in block.runs) for block in blocks)]
    return KVBlock(
        keys=torch.cat([keys for keys, _ in dense], dim=2),
        values=torch.cat([values for _, values in dense], dim=2),
        coords=torch.cat([block.coords for block in blocks]),
        counts=torch.cat([block.counts for block in blocks]),
        runs=tuple(
            replace(run.shifted(start), group=run.group + group)
            for block, start, group in zip(blocks, starts, groups, strict=False)
            for run in block.runs
        ),
    )
