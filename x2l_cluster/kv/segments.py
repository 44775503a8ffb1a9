"""Small blobs of one kind, packed: a segment is a blob of blobs, each with its own header and checksum.

Segments are never changed. Where in which one a blob lies, the manifest says (``BlockRef.packed``). Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from x2l_cluster.errors import BlockCorrupt
from x2l_cluster.kv.blob import Head, pack
from x2l_cluster.kv.store import Buffer
from x2l_cluster.kv.stripes import STRIPE_BYTES
from x2l_cluster.types import BlockKey, BlockRef

_AROUND = 4096
"""What a segment takes beside its blobs, at most."""


def groups(blobs: Iterable[tuple[int, int]], target_bytes: int = STRIPE_BYTES) -> Iterator[list[int]]:
    """Which blobs become a segment together: (name, bytes) of each in, names out, in order.

    A segment takes at most ``target_bytes`` and holds at least two: of a blob too large for company nothing is said.
    """
    together: list[int] = []
    room = target_bytes - _AROUND
    for name, nbytes in blobs:
        if nbytes > (target_bytes - _AROUND) // 2:
            continue
        if nbytes > room:
            if len(together) > 1:
                yield together
            together, room = [], target_bytes - _AROUND
        together.append(name)
        room -= nbytes
    if len(together) > 1:
        yield together


def pack_segment(blobs: Sequence[Buffer], key: BlockKey) -> tuple[bytearray, list[int]]:
    """A segment of blobs under its key, and at which offset each of them lies."""
    body = torch.frombuffer(bytearray().join(blobs), dtype=torch.uint8)
    segment = pack({"blobs": body}, {"form": "segment"}, key)
    at = Head.read(segment).body_at
    offsets = []
    for blob in blobs:
        offsets.append(at)
        at += memoryview(blob).nbytes
    return segment, offsets


def cut_out(segment: Buffer, key: BlockKey, ref: BlockRef) -> memoryview:
    """The blob that a manifest says lies in this segment; of its payload nothing is checked, it has its own checksum.

    Raises BlockCorrupt when this is another segment than ``key``, truncated, or too short to hold the blob.
    """
    assert ref.packed is not None, ref
    Head.read(segment).check(key, None)
    start, stop = ref.packed.offset, ref.packed.offset + ref.size_bytes
    view = memoryview(segment).cast("B")
    if stop > len(view):
        raise BlockCorrupt(f"segment {key} of {len(view)} bytes cannot hold {ref}: index the video again")
    return view[start:stop]
