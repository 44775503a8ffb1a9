"""Store, then publish: how a prefilled chunk becomes one that a manifest names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from x2l_cluster.engine.prefill import Prefilled
from x2l_cluster.errors import X2LError
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.kv.codec import Buffer, encode_stripe, pack, ref_of, ref_of_all
from x2l_cluster.kv.store import KVStore
from x2l_cluster.kv.stripes import STRIPE_BYTES, split
from x2l_cluster.select import ChunkScorer
from x2l_cluster.state.base import StateStore
from x2l_cluster.types import BlockKey, BlockRef, ChunkRow, Kind, Level, Manifest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unsealed:
    """What has to be kept of a prefilled chunk: its row, still without blobs, and what they are made of."""

    row: ChunkRow
    blocks: Mapping[Level, KVBlock]
    visual: torch.Tensor | None

    @classmethod
    def of(cls, done: Prefilled) -> Unsealed:
        row = ChunkRow(
            index=done.index,
            span=done.span,
            frames=done.frames,
            position_start=done.position_start,
            position_end=done.position_end,
            raw_entries=done.tokens,
            blocks={},
        )
        return cls(row=row, blocks=done.blocks, visual=done.visual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealer:
    """Seals chunks of one indexing run.

    Attributes:
        manifest: as it was when the run began.
        scorers: whose score indexes are kept beside the blocks.
        stripe_bytes: what a stored blob of a block takes at most.
    """

    kv: KVStore
    state: StateStore
    manifest: Manifest
    scorers: Sequence[ChunkScorer]
    stripe_bytes: int = STRIPE_BYTES

    def seal(self, chunk: Unsealed) -> ChunkRow:
        """A manifest names only what is fully stored. Nothing is left of a chunk that was not published.

        Raises KVError when a store is at fault, StaleEpoch, UnknownVideo or ManifestConflict when the state refuses.
        """
        parts: dict[str, list[BlockRef]] = {}
        put: list[BlockKey] = []
        try:
            for key, blob in self._blobs(chunk):
                put.append(key)
                self.kv.put(key, blob)
                parts.setdefault(key.kind, []).append(ref_of(blob))
            return self._publish(replace(chunk.row, blocks={kind: ref_of_all(refs) for kind, refs in parts.items()}))
        except BaseException:
            with contextlib.suppress(X2LError):
                self.kv.delete(put)
            raise

    def _publish(self, row: ChunkRow) -> ChunkRow:
        manifest = self.manifest
        place = (manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch)
        if row.index >= len(manifest.chunks):
            self.state.seal(*place, row)
            return row
        sealed = self.state.revise(*place, [row])
        old = manifest.chunks[row.index]
        gone = {key for ref in old.blocks.values() for key in manifest.keys(ref, row.index)}
        self.kv.delete(gone - sealed.named)  # a segment stays while others lie in it
        return row

    def _blobs(self, chunk: Unsealed) -> Iterator[tuple[BlockKey, Buffer]]:
        """What is kept of a chunk, one blob at a time: a block is never whole twice."""
        for level, block in chunk.blocks.items():
            for stripe in split(block, self.stripe_bytes):
                key = self._key(Kind.of(level), chunk.row.index, stripe.index)
                yield key, encode_stripe(stripe, key)
        for scorer in self.scorers:
            if scorer.kind is not None:
                key = self._key(scorer.kind, chunk.row.index)
                yield key, pack(*scorer.index(chunk.blocks[Level.L], chunk.visual), key)

    def _key(self, kind: str, chunk: int, stripe: int = 0) -> BlockKey:
        manifest = self.manifest
        return BlockKey(
            tenant=manifest.tenant,
            video=manifest.video,
            recipe=manifest.recipe.digest,
            epoch=manifest.epoch,
            kind=kind,
            chunk=chunk,
            stripe=stripe,
        )
