"""KV blocks as blobs: what of a :class:`KVBlock` becomes a tensor, what metadata, and what must hold on the way back.

Does no I/O. :mod:`x2l_cluster.kv.blob` holds the container; its ``pack``, ``unpack`` and ``ref_of`` serve score
indexes and whatever else is made of tensors.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from x2l_cluster.errors import BlockCorrupt
from x2l_cluster.kv.blob import pack, ref_of, unpack
from x2l_cluster.kv.block import KVBlock, Quantised, Run
from x2l_cluster.kv.store import Buffer
from x2l_cluster.types import BlockKey, BlockRef, Role

__all__ = ["Buffer", "decode", "encode", "pack", "ref_of", "unpack"]

_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)
_MAX_AXES: Final = 8
_MAX_GROUP: Final = 1024
"""Dequantising spreads a scale over its whole group first, so a huge group would claim memory without holding data."""


def encode(block: KVBlock, key: BlockKey) -> bytearray:
    """The block's stored form. Equal blocks under equal keys give equal bytes; ``ref_of`` tells what a manifest notes.

    Layout: ``keys`` and ``values``, dense (layers, kv_heads, entries, head_dim) or as codes, scale and low; ``coords``
    (entries, axes) float32; ``counts`` (entries,) int32; ``runs`` (runs, 6) int32 of role, start, stop, group, rows,
    cols. All of it layer-major, so the early layers of keys lie at the front.
    """
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {"form": "kv"}
    for name, part in (("keys", block.keys), ("values", block.values)):
        if isinstance(part, Quantised):
            tensors |= {f"{name}.codes": part.codes, f"{name}.scale": part.scale, f"{name}.low": part.low}
            meta[name] = [part.bits, part.axis, part.group]
        else:
            tensors[name] = part
    tensors["coords"] = block.coords
    tensors["counts"] = block.counts
    runs = [(int(run.role), run.start, run.stop, run.group, run.rows, run.cols) for run in block.runs]
    tensors["runs"] = torch.tensor(runs, dtype=torch.int32).reshape(len(runs), 6)
    return pack(tensors, meta, key, entries=block.entries)


def decode(
    buffer: Buffer, expect: BlockKey | None = None, ref: BlockRef | None = None, *, verify: bool = True
) -> KVBlock:
    """The block in a blob, as views of ``buffer`` (read-only: torch cannot say so, the caller must hold to it).

    Arguments as in :func:`x2l_cluster.kv.blob.unpack`. ``verify=False`` trusts the numbers, never the structure.

    Raises:
        BlockCorrupt: anything at all is wrong with the blob; the message says what.
    """
    tensors, meta = unpack(buffer, expect, ref, verify=verify)
    try:
        if meta.pop("form", None) != "kv":
            raise _Wrong("it is no KV block")
        keys = _part("keys", tensors, meta, verify)
        values = _part("values", tensors, meta, verify)
        entries = keys.shape[2]
        if values.shape[:3] != keys.shape[:3]:
            raise _Wrong(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not go together")
        coords = _take(tensors, "coords", torch.float32)
        counts = _take(tensors, "counts", torch.int32)
        runs = _take(tensors, "runs", torch.int32)
        if coords.dim() != 2 or coords.shape[0] != entries or not 1 <= coords.shape[1] <= _MAX_AXES:
            raise _Wrong(f"{entries} entries have coordinates of shape {tuple(coords.shape)}")
        if counts.shape != (entries,) or bool((counts < 0).any()):
            raise _Wrong(f"{entries} entries have counts of shape {tuple(counts.shape)}, or negative ones")
        if verify and not bool(coords.isfinite().all()):
            raise _Wrong("a coordinate is not a number")
        if tensors or meta:
            raise _Wrong(f"nobody knows {[*tensors, *meta]}")
        if ref is not None and ref.entries != entries:
            raise _Wrong(f"the manifest says {ref.entries} entries, here are {entries}")
        return KVBlock(keys=keys, values=values, coords=coords, counts=counts, runs=_runs(runs, entries))
    except _Wrong as error:
        raise BlockCorrupt(f"block {expect or ''}: {error}") from error


class _Wrong(Exception):
    """What is wrong with a blob; becomes a BlockCorrupt that names it."""


def _take(tensors: dict[str, Tensor], name: str, *dtypes: torch.dtype) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.dtype not in dtypes:
        raise _Wrong(f"{name} is missing or of the wrong type")
    return tensor


def _part(name: str, tensors: dict[str, Tensor], meta: dict[str, Any], verify: bool) -> Tensor | Quantised:
    """Keys or values, dense or quantised."""
    if name in tensors:
        dense = _take(tensors, name, *_FLOATS)
        if dense.dim() != 4:
            raise _Wrong(f"{name} has {dense.dim()} dimensions, not 4")
        return dense
    codes = _take(tensors, f"{name}.codes", torch.uint8)
    scale = _take(tensors, f"{name}.scale", *_FLOATS)
    low = _take(tensors, f"{name}.low", *_FLOATS)
    bits, axis, group = _numbers(name, meta.pop(name, None))
    if codes.dim() != 4 or bits not in (4, 8) or axis not in (-1, -2) or not 1 <= group <= _MAX_GROUP:
        raise _Wrong(f"{name} cannot be {bits} bits in groups of {group} along axis {axis}")
    grouped = [*codes.shape[:3], codes.shape[3] * 8 // bits]
    grouped[axis] = -(-grouped[axis] // group)
    if list(scale.shape) != grouped or scale.shape != low.shape:
        raise _Wrong(f"{name}: scales of shape {tuple(scale.shape)} and {tuple(low.shape)}, not {grouped}")
    if verify and not bool(scale.isfinite().all() and low.isfinite().all()):
        raise _Wrong(f"{name}: a scale is not a number")
    return Quantised(codes=codes, scale=scale, low=low, bits=bits, axis=axis, group=group)


def _numbers(name: str, value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3 or any(type(number) is not int for number in value):
        raise _Wrong(f"{name}: {value!r} is no bits, axis and group")
    return value[0], value[1], value[2]


def _runs(table: Tensor, entries: int) -> tuple[Run, ...]:
    if table.dim() != 2 or table.shape[1] != 6 or table.shape[0] > entries:
        raise _Wrong(f"{entries} entries cannot have runs of shape {tuple(table.shape)}")
    runs, end = [], 0
    for role, start, stop, group, rows, cols in table.tolist():
        if start != end or stop <= start or min(group, rows, cols) < 0 or role not in set(Role):
            raise _Wrong(f"runs must tile the entries, but after {end} comes {(role, start, stop, group, rows, cols)}")
        if role == Role.VISUAL and rows * cols != stop - start:
            raise _Wrong(f"a grid of {rows} by {cols} cannot hold {stop - start} entries")
        runs.append(Run(role=Role(role), start=start, stop=stop, group=group, rows=rows, cols=cols))
        end = stop
    if end != entries:
        raise _Wrong(f"runs end at {end}, entries at {entries}")
    return tuple(runs)
