"""KV blocks as blobs: what of a :class:`KVBlock` becomes a tensor, what metadata, and what must hold on the way back.

Does no I/O. :mod:`x2l_cluster.kv.stripes` says how a large block is cut; :mod:`x2l_cluster.kv.blob` holds the
container, whose ``pack``, ``unpack`` and ``ref_of`` serve score indexes and whatever else is made of tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
import xxhash
from torch import Tensor

from x2l_cluster.errors import BlockCorrupt
from x2l_cluster.kv.blob import pack, ref_of, unpack
from x2l_cluster.kv.block import KVBlock, Quantised, Run
from x2l_cluster.kv.store import Buffer
from x2l_cluster.kv.stripes import Cut, Shared, Stripe, join, split
from x2l_cluster.types import BlockKey, BlockRef, Role

__all__ = [
    "Buffer",
    "check",
    "decode",
    "decode_block",
    "decode_stripes",
    "encode",
    "encode_stripe",
    "pack",
    "ref_of",
    "ref_of_all",
    "unpack",
]

_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)
_MAX_AXES: Final = 8
_MAX_GROUP: Final = 1024
"""Dequantising spreads a scale over its whole group first, so a huge group would claim memory without holding data."""


def encode(block: KVBlock, key: BlockKey) -> bytearray:
    """The block's stored form, uncut. Equal blocks under equal keys give equal bytes; ``ref_of`` tells what a manifest
    notes."""
    (whole,) = split(block, sys.maxsize)
    return encode_stripe(whole, key)


def encode_stripe(stripe: Stripe, key: BlockKey) -> bytearray:
    """One stripe's stored form, under the key of its block.

    Layout: ``keys`` and ``values``, dense (layers, kv_heads, entries, head_dim) or as codes, scale and low; in the
    first stripe ``coords`` (entries, axes) float32, ``counts`` (entries,) int32 and ``runs`` (runs, 6) int32 of role,
    start, stop, group, rows, cols. Metadata of a block that was cut says how. A block of one stripe is all of it.
    """
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {"form": "kv"}
    for name, part in (("keys", stripe.keys), ("values", stripe.values)):
        if isinstance(part, Quantised):
            tensors |= {f"{name}.codes": part.codes, f"{name}.scale": part.scale, f"{name}.low": part.low}
            meta[name] = [part.bits, part.axis, part.group]
        else:
            tensors[name] = part
    if stripe.shared is not None:
        coords, counts, shared = stripe.shared
        runs = [(int(run.role), run.start, run.stop, run.group, run.rows, run.cols) for run in shared]
        tensors |= {
            "coords": coords,
            "counts": counts,
            "runs": torch.tensor(runs, dtype=torch.int32).reshape(len(runs), 6),
        }
    if stripe.cut.stripes > 1:
        meta["cut"] = [*stripe.cut.whole, *stripe.cut.parts, stripe.cut.step]
    return pack(tensors, meta, replace(key, stripe=stripe.index), entries=stripe.cut.whole[2])


def ref_of_all(refs: Sequence[BlockRef]) -> BlockRef:
    """What a manifest says about a block, from what it would say of each of its stripes, in order."""
    if len(refs) == 1:
        return refs[0]
    sums = b"".join(bytes.fromhex(ref.checksum) for ref in refs)
    return replace(
        refs[0],
        size_bytes=sum(ref.size_bytes for ref in refs),
        checksum=xxhash.xxh3_64_hexdigest(sums),
        stripes=len(refs),
    )


def decode(
    buffer: Buffer, expect: BlockKey | None = None, ref: BlockRef | None = None, *, verify: bool = True
) -> KVBlock:
    """The block in a blob, as views of ``buffer`` (read-only: torch cannot say so, the caller must hold to it).

    Arguments as in :func:`x2l_cluster.kv.blob.unpack`. ``verify=False`` trusts the numbers, never the structure.

    Raises:
        BlockCorrupt: anything at all is wrong with the blob; the message says what.
    """
    stripe = _stripe(*unpack(buffer, expect, ref, verify=verify), 0, expect, ref, verify)
    if stripe.cut.stripes > 1:
        raise BlockCorrupt(f"block {expect or ''}: this is one of {stripe.cut.stripes} stripes, not the whole block")
    return join([stripe])


def decode_block(blobs: Iterable[Buffer], key: BlockKey, ref: BlockRef, *, verify: bool = True) -> KVBlock:
    """The block in all its blobs, in order; as views if it is one. Raises BlockCorrupt."""
    return join(decode_stripes(blobs, key, ref, verify=verify))


def decode_stripes(blobs: Iterable[Buffer], key: BlockKey, ref: BlockRef, *, verify: bool = True) -> Iterator[Stripe]:
    """The stripes in the blobs of a block, in order, each as soon as its blob is there, as views of it.

    That all of them belong together is known only at the end: take what is made of them for nothing before this has
    ended without an error. No stripe claims a larger block than the manifest names.

    Args:
        key: that of the block (of its first stripe).
        ref: what the manifest says about the block.

    Raises:
        BlockCorrupt: anything at all is wrong with a blob, or one is missing, of another block, or too many.
    """
    form: tuple[object, ...] | None = None
    for index, (tensors, meta) in enumerate(_checked(blobs, key, ref, verify)):
        stripe = _stripe(tensors, meta, index, key, ref, verify)
        form = form or stripe.form
        if stripe.form != form:
            raise BlockCorrupt(f"block {key}: stripe {index} is of another form than the first")
        yield stripe


def check(blobs: Iterable[Buffer], key: BlockKey, ref: BlockRef) -> None:
    """Raises BlockCorrupt unless these blobs, of whatever is stored, are what the manifest names."""
    for _ in _checked(blobs, key, ref, verify=True):
        pass


def _checked(
    blobs: Iterable[Buffer], key: BlockKey, ref: BlockRef, verify: bool
) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Tensors and metadata of each blob; at the end, whether all of them are what the manifest names."""
    seen: list[BlockRef] = []
    for index, blob in enumerate(blobs):
        yield unpack(blob, replace(key, stripe=index), ref if ref.stripes == 1 else None, verify=verify)
        seen.append(ref_of(blob))
    if not seen or ref_of_all(seen) != replace(ref, packed=None):
        raise BlockCorrupt(f"block {key}: its {len(seen)} stripes are not the {ref.stripes} that the manifest names")


def _stripe(
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    index: int,
    expect: BlockKey | None,
    ref: BlockRef | None,
    verify: bool,
) -> Stripe:
    try:
        if meta.pop("form", None) != "kv":
            raise _Wrong("it is no KV block")
        keys = _part("keys", tensors, meta, verify)
        values = _part("values", tensors, meta, verify)
        if values.shape[:3] != keys.shape[:3]:
            raise _Wrong(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not go together")
        cut = _cut(meta.pop("cut", None), keys, values)
        if index >= cut.stripes or keys.shape[:3] != tuple(side.stop - side.start for side in cut.box(index)):
            raise _Wrong(f"{tuple(keys.shape)} is not what stripe {index} of {cut} holds")
        entries = cut.whole[2]
        if ref is not None and (ref.entries, ref.stripes) != (entries, cut.stripes):
            raise _Wrong(
                f"the manifest says {ref.entries} entries in {ref.stripes} stripes, here are {entries} in {cut.stripes}"
            )
        shared = None if index else _shared(tensors, entries, verify)
        if tensors or meta:
            raise _Wrong(f"nobody knows {[*tensors, *meta]}")
        return Stripe(cut=cut, index=index, keys=keys, values=values, shared=shared)
    except _Wrong as error:
        raise BlockCorrupt(f"block {expect or ''}: {error}") from error


def _cut(numbers: Any, keys: Tensor | Quantised, values: Tensor | Quantised) -> Cut:
    if numbers is None:
        layers, heads, entries = keys.shape[:3]
        return Cut(whole=(layers, heads, entries))
    if not isinstance(numbers, list) or len(numbers) != 7 or any(type(n) is not int or n < 1 for n in numbers):
        raise _Wrong(f"{numbers!r} is no way to cut a block")
    layers, heads, entries, *parts, step = numbers
    cut = Cut(whole=(layers, heads, entries), parts=(parts[0], parts[1], parts[2]), step=step)
    groups = [part.group for part in (keys, values) if isinstance(part, Quantised) and part.axis == -2]
    if not cut.is_possible or (cut.parts[2] > 1 and any(step % group for group in groups)):
        raise _Wrong(f"{cut} is no way to cut a block")
    return cut


def _shared(tensors: dict[str, Tensor], entries: int, verify: bool) -> Shared:
    coords = _take(tensors, "coords", torch.float32)
    counts = _take(tensors, "counts", torch.int32)
    runs = _take(tensors, "runs", torch.int32)
    if coords.dim() != 2 or coords.shape[0] != entries or not 1 <= coords.shape[1] <= _MAX_AXES:
        raise _Wrong(f"{entries} entries have coordinates of shape {tuple(coords.shape)}")
    if counts.shape != (entries,) or bool((counts < 0).any()):
        raise _Wrong(f"{entries} entries have counts of shape {tuple(counts.shape)}, or negative ones")
    if verify and not bool(coords.isfinite().all()):
        raise _Wrong("a coordinate is not a number")
    return Shared(coords, counts, _runs(runs, entries))


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
