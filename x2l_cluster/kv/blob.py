"""The stored form of anything made of tensors: one blob, checked, and read without a copy.

::

    ┌ preamble, 64 bytes ┬ header ┬ description ┬ tensor │ tensor │ … ┐
    │ magic, version,    │ msgpack│ msgpack     │ raw, little endian  │
    │ lengths, checksums │        │             │ each from a multiple│
    └────────────────────┴────────┴─────────────┴ of 64 on ───────────┘
                                  └────────── payload ────────────────┘

The **header** says *whose* blob this is (its key, epoch included). The **payload** says *what* it is: a description
(names, dtypes, shapes, small metadata) and the tensors. Equal content gives equal payload bytes whatever the epoch, and
the payload's checksum, which manifests hold, covers the description too. Every part starts at a multiple of 64 bytes
and nothing is left to the writer's choice, so equal keys and tensors mean equal bytes.

Two xxh3-64 checksums: the *head* sum covers preamble, header and description and is always verified, so that no length
or shape is believed unchecked; the *payload* sum covers the rest and may be skipped by a reader that verified the blob
when it was admitted to its tier. They find damage, not forgery: sizes are therefore checked even where a sum fits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import msgpack
import numpy as np
import torch
import xxhash
from torch import Tensor

from x2l_cluster.errors import BlockCorrupt, BlockStale, InvalidInput, X2LError
from x2l_cluster.kv.store import Buffer
from x2l_cluster.types import BlockKey, BlockRef

MAGIC: Final = b"x2l-blob"
VERSION: Final = 1
ALIGN: Final = 64
_PREAMBLE: Final = struct.Struct("<8sIIIIQQ16xQ")
"""magic, version, header, description and entries (u32 each), payload length, payload sum; last the head sum."""
_SUM_AT: Final = _PREAMBLE.size - 8
_MAX_HEADER: Final = 4 << 10
_MAX_DESCRIPTION: Final = 256 << 10
_MAX_ITEMS: Final = 1024
_MAX_DIMS: Final = 8
_MAX_ELEMENTS: Final = 1 << 40
_DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int32": torch.int32,
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
assert _PREAMBLE.size == ALIGN


def pack(tensors: Mapping[str, Tensor], meta: Mapping[str, Any], key: BlockKey, *, entries: int = 0) -> bytearray:
    """One blob of named tensors and small metadata, under its key.

    Args:
        tensors: any shape, on any device, in the dtypes of this format (float32, float16, bfloat16, uint8, int32).
        meta: plain values msgpack knows; a few kilobytes, not data.
        entries: what :attr:`BlockRef.entries` of this blob says.

    Raises:
        InvalidInput: a dtype, a number of dimensions or a size of the description this format does not have.
    """
    table, placed, size = [], [], 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES or tensor.dim() > _MAX_DIMS:
            raise InvalidInput(
                f"blob {key}: tensor {name!r} is {tensor.dtype} with {tensor.dim()} dimensions; "
                f"stored are {', '.join(_DTYPES)} with at most {_MAX_DIMS}"
            )
        table.append([name, _NAMES[tensor.dtype], list(tensor.shape)])
        placed.append((size, tensor))
        size += _padded(tensor.numel() * tensor.element_size())
    header = _fill(msgpack.packb(list(_identity(key))))
    description = _fill(msgpack.packb([table, dict(meta)]))
    if len(header) > _MAX_HEADER or len(description) > _MAX_DESCRIPTION or len(table) > _MAX_ITEMS:
        raise InvalidInput(
            f"blob {key}: the description takes {len(description)} bytes, at most {_MAX_DESCRIPTION} fit"
        )

    blob = bytearray(ALIGN + len(header) + len(description) + size)
    start = ALIGN + len(header)
    body = start + len(description)
    blob[ALIGN:start] = header
    blob[start:body] = description
    room = torch.frombuffer(blob, dtype=torch.uint8)
    for offset, tensor in placed:
        if nbytes := tensor.numel() * tensor.element_size():
            room[body + offset :][:nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    with memoryview(blob) as view:
        payload_sum = xxhash.xxh3_64_intdigest(view[start:])
        fields = (MAGIC, VERSION, len(header), len(description), entries, len(view) - start, payload_sum)
        _PREAMBLE.pack_into(blob, 0, *fields, 0)
        struct.pack_into("<Q", blob, _SUM_AT, _head_sum(view, body))
    return blob


def unpack(
    buffer: Buffer, expect: BlockKey | None = None, ref: BlockRef | None = None, *, verify: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a blob. The tensors are views of ``buffer``: treat them as read-only.

    Args:
        expect: the key the blob was fetched by.
        ref: what the manifest says about it.
        verify: whether the payload's checksum is computed; head, key and ``ref`` are checked always.

    Raises:
        BlockCorrupt: the blob is damaged, hostile, or another one than expected. Nothing else is ever raised, and
            beside a few megabytes for the description no memory is taken.
    """
    head = Head.read(buffer)
    head.check(expect, ref)
    view = memoryview(buffer).cast("B")
    if verify:
        head.check_payload(view)
    table, meta = head.description(view)
    body = _as_bytes(view)
    tensors: dict[str, Tensor] = {}
    at = head.body_at
    for name, dtype, shape in table:
        nbytes = prod(shape) * dtype.itemsize
        if nbytes > len(view) - at:
            raise BlockCorrupt(f"block {head.key}: tensor {name!r} of shape {shape} reaches past the end")
        tensors[name] = body[at : at + nbytes].view(dtype).view(shape) if nbytes else torch.empty(shape, dtype=dtype)
        at += _padded(nbytes)
    if at != len(view):
        raise BlockCorrupt(f"block {head.key}: {len(view) - at} bytes belong to no tensor")
    return tensors, meta


def rekeyed(blob: Buffer, key: BlockKey) -> bytearray:
    """The same payload under another key, byte for byte what :func:`pack` would have made of it there.

    Raises BlockCorrupt for what is no blob; its payload is not checked.
    """
    head, view = Head.read(blob), memoryview(blob).cast("B")
    header = _fill(msgpack.packb(list(_identity(key))))
    made = bytearray(ALIGN + len(header))
    made[ALIGN:] = header
    made += view[head.payload_at :]
    description, payload = head.body_at - head.payload_at, len(view) - head.payload_at
    fields = (MAGIC, VERSION, len(header), description, head.entries, payload, head.payload_sum)
    _PREAMBLE.pack_into(made, 0, *fields, 0)
    with memoryview(made) as whole:
        struct.pack_into("<Q", made, _SUM_AT, _head_sum(whole, ALIGN + len(header) + description))
    return made


def check(key: BlockKey, blob: Buffer) -> None:
    """Raises BlockCorrupt unless this is a whole, undamaged blob of this key: asked before a tier admits one."""
    head = Head.read(blob)
    head.check(key, None)
    head.check_payload(memoryview(blob).cast("B"))


def ref_of(blob: Buffer) -> BlockRef:
    """What a manifest says about this blob. Raises BlockCorrupt for what is none."""
    head = Head.read(blob)
    return head.ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The checked front of a blob: whose it is, and where its parts begin."""

    key: BlockKey
    entries: int
    size_bytes: int
    payload_at: int
    body_at: int
    payload_sum: int

    @property
    def ref(self) -> BlockRef:
        return BlockRef(
            kind=self.key.kind,
            epoch=self.key.epoch,
            size_bytes=self.size_bytes,
            checksum=f"{self.payload_sum:016x}",
            entries=self.entries,
        )

    @classmethod
    def read(cls, buffer: Buffer) -> Head:
        """The front of a blob, after its own checksum. Raises BlockCorrupt."""
        view = memoryview(buffer).cast("B")
        if len(view) < ALIGN:
            raise BlockCorrupt(f"a block has at least {ALIGN} bytes, this has {len(view)}: it is truncated")
        magic, version, header, description, entries, payload, payload_sum, head_sum = _PREAMBLE.unpack_from(view)
        if magic != MAGIC:
            raise BlockCorrupt("these bytes are no block: wrong magic")
        if version != VERSION:
            raise BlockCorrupt(
                f"block of format version {version}, this program reads {VERSION}: index the video again"
            )
        if header % ALIGN or description % ALIGN or header > _MAX_HEADER or description > _MAX_DESCRIPTION:
            raise BlockCorrupt(f"block with impossible lengths: header {header}, description {description}")
        if ALIGN + header + payload != len(view) or description > payload:
            raise BlockCorrupt(
                f"block of {ALIGN + header + payload} bytes, but {len(view)} are here: truncated or torn"
            )
        body_at = ALIGN + header + description
        if _head_sum(view, body_at) != head_sum:
            raise BlockCorrupt("the head of the block does not match its checksum")
        try:
            key = _key(_plain(view[ALIGN : ALIGN + header]))
        except (ValueError, TypeError, RecursionError, X2LError) as error:
            raise BlockCorrupt(f"the header of the block names no key: {error}") from error
        return cls(
            key=key,
            entries=entries,
            size_bytes=len(view),
            payload_at=ALIGN + header,
            body_at=body_at,
            payload_sum=payload_sum,
        )

    def check(self, expect: BlockKey | None, ref: BlockRef | None) -> None:
        """Raises BlockStale unless this is the block asked for, as the manifest knows it."""
        if expect is not None and self.key != expect:
            raise BlockStale(f"block {expect} was asked for, but the blob says it is {self.key}")
        if ref is not None and self.ref != replace(ref, packed=None):  # wherever it lies
            raise BlockStale(f"block {self.key} is not the one the manifest names: {self.ref} instead of {ref}")

    def check_payload(self, view: memoryview) -> None:
        """Raises BlockCorrupt unless the payload of this blob matches its checksum."""
        if xxhash.xxh3_64_intdigest(view[self.payload_at :]) != self.payload_sum:
            raise BlockCorrupt(f"block {self.key}: the payload does not match its checksum")

    def description(self, view: memoryview) -> tuple[list[tuple[str, torch.dtype, tuple[int, ...]]], dict[str, Any]]:
        """Name, dtype and shape of every tensor, and the metadata. Raises BlockCorrupt."""
        try:
            table, meta = _plain(view[self.payload_at : self.body_at])
            tensors = [(_text(name), _DTYPES[_text(dtype)], _shape(shape)) for name, dtype, shape in table]
            if len({name for name, _, _ in tensors}) < len(tensors) or not isinstance(meta, dict):
                raise ValueError("a name stands there twice, or the metadata is no map")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BlockCorrupt(f"block {self.key}: the description makes no sense: {error!r}") from error
        return tensors, meta


def _identity(key: BlockKey) -> tuple[str | int, ...]:
    return (key.tenant, key.video, key.recipe, key.epoch, key.kind, key.chunk, key.stripe)


def _key(fields: Any) -> BlockKey:
    tenant, video, recipe, epoch, kind, chunk, stripe = fields
    return BlockKey(
        tenant=_text(tenant),
        video=_text(video),
        recipe=_text(recipe),
        epoch=_count(epoch),
        kind=_text(kind),
        chunk=_count(chunk),
        stripe=_count(stripe),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MAX_DIMS:
        raise TypeError(f"{value!r} is no shape")
    shape = tuple(_count(size) for size in value)
    if prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        raise ValueError(f"nothing has the shape {shape}")
    return shape


def _plain(part: memoryview) -> Any:
    """What msgpack holds, followed by zeros only. The limits keep a few hostile bytes from claiming much memory."""
    unpacker = msgpack.Unpacker(
        max_buffer_size=_MAX_DESCRIPTION, max_array_len=_MAX_ITEMS, max_map_len=_MAX_ITEMS, max_ext_len=0, raw=False
    )
    unpacker.feed(part)
    try:
        value = unpacker.unpack()
    except (msgpack.exceptions.UnpackException, msgpack.exceptions.StackError) as error:
        raise ValueError(f"not msgpack: {error!r}") from error
    if any(part[unpacker.tell() :]):
        raise ValueError("bytes after the end")
    return value


def _head_sum(view: memoryview, body_at: int) -> int:
    head = xxhash.xxh3_64(view[:_SUM_AT])
    head.update(view[ALIGN:body_at])
    return head.intdigest()


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def _fill(part: bytes) -> bytes:
    return part.ljust(_padded(len(part)), b"\0")


class _Alias:
    """Presents a read-only buffer to numpy as a writable one, so that torch takes it without a warning and a copy.

    torch has no read-only tensors. The array made of this keeps it, and thereby the buffer, alive.
    """

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = np.frombuffer(buffer, dtype=np.uint8)
        interface = self.buffer.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _as_bytes(view: memoryview) -> Tensor:
    tensor = torch.from_numpy(np.asarray(_Alias(view)))
    # Wider elements want aligned addresses; a blob at an odd place inside a larger buffer costs one copy.
    return tensor.clone() if tensor.data_ptr() % 8 else tensor
