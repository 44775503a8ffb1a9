"""Packing: once a video is indexed, its many small blobs become few segments.

First the segments are stored, then one step of the state says where every blob lies now, then the old blobs go. Whoever
dies in between leaves an index that reads as before, and blobs that no row names, which the next run sweeps. A question
that still holds the older manifest finds an old blob gone and looks again (:mod:`~x2l_cluster.engine.read`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from x2l_cluster.engine.read import Reader
from x2l_cluster.engine.seal import publish, stored
from x2l_cluster.kv.codec import Buffer, unpack
from x2l_cluster.kv.segments import groups, pack_segment
from x2l_cluster.kv.store import KVStore
from x2l_cluster.kv.stripes import STRIPE_BYTES
from x2l_cluster.state.base import StateStore
from x2l_cluster.types import BlockKey, BlockRef, Kind, Manifest, Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Packer:
    """Packs what one indexing run, or runs before it, left in pieces: score indexes, and H blocks that are small.

    L stays as it is: it is fetched chunk by chunk, and goes chunk by chunk.

    Attributes:
        segment_bytes: what a segment takes at most.
    """

    kv: KVStore
    state: StateStore
    reader: Reader
    segment_bytes: int = STRIPE_BYTES

    def pack(self, manifest: Manifest) -> Manifest:
        """The manifest after packing. What lies in a segment already stays there, unless that is not even half full: of
        a video that grows again and again, each run would leave a small one.

        Raises KVError when a store is at fault (the index reads as before), StaleEpoch and UnknownVideo as sealing.
        """
        moved: dict[int, dict[str, BlockRef]] = defaultdict(dict)
        with stored(self.kv) as put:
            for kind in sorted({kind for row in manifest.chunks for kind in row.blocks} - {Kind.L}):
                for chunks in groups(_loose(manifest, kind, self.segment_bytes // 2), self.segment_bytes):
                    segments = {_segment_of(manifest.chunks[chunk].blocks[kind]) for chunk in chunks}
                    if len(segments) == 1 and None not in segments:
                        continue  # it would be that very segment once more
                    for chunk, ref in self._segment(manifest, kind, chunks, put):
                        moved[chunk][kind] = ref
        if not moved:
            return manifest
        rows = [manifest.chunks[chunk] for chunk in sorted(moved)]
        rows = [replace(row, blocks={**row.blocks, **moved[row.index]}) for row in rows]
        place = (manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch)
        packed = publish(self.kv, put, lambda: self.state.revise(*place, rows))
        self.kv.delete(manifest.named - packed.named)
        return packed

    def _segment(
        self, manifest: Manifest, kind: str, chunks: list[int], put: list[BlockKey]
    ) -> Iterator[tuple[int, BlockRef]]:
        """Stores one segment, and yields where in it every chunk's blob lies."""
        rows = [manifest.chunks[chunk] for chunk in chunks]
        with self.reader.batch(manifest, [(row, kind) for row in rows], in_time=False) as batch:
            blobs = [batch.use(row, kind, _verified) for row in rows]
        front = Packed(epoch=manifest.epoch, chunk=chunks[0], offset=0)
        (key,) = manifest.keys(replace(rows[0].blocks[kind], packed=front), chunks[0])
        segment, offsets = pack_segment(blobs, key)
        put.append(key)
        self.kv.put(key, segment)
        for row, offset in zip(rows, offsets, strict=True):
            yield row.index, replace(row.blocks[kind], packed=replace(front, offset=offset))


def _loose(manifest: Manifest, kind: str, half_bytes: int) -> Iterator[tuple[int, int]]:
    """Chunk and bytes of every blob that is in no segment of ``half_bytes`` and no part of a block that was cut."""
    refs = [(row.index, row.blocks[kind]) for row in manifest.chunks if kind in row.blocks]
    held: Counter[tuple[int, int] | None] = Counter()
    for _, ref in refs:
        held[_segment_of(ref)] += ref.size_bytes
    for chunk, ref in refs:
        segment = _segment_of(ref)
        if ref.stripes == 1 and (segment is None or held[segment] < half_bytes):
            yield chunk, ref.size_bytes


def _segment_of(ref: BlockRef) -> tuple[int, int] | None:
    return (ref.packed.epoch, ref.packed.chunk) if ref.packed else None


def _verified(blobs: Iterator[Buffer], key: BlockKey, ref: BlockRef) -> Buffer:
    blob = next(blobs)
    unpack(blob, key, ref)
    return blob
