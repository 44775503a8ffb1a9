"""Store, then publish: how a prefilled chunk becomes one that a manifest names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch

from x2l_cluster.engine.prefill import Prefilled
from x2l_cluster.errors import StateError, UnknownVideo, X2LError
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
            prints=done.prints,
        )
        return cls(row=row, blocks=done.blocks, visual=done.visual)


@contextmanager
def stored(kv: KVStore) -> Iterator[list[BlockKey]]:
    """Yields a list for the keys of what is put; if not all of it could be, what is there of them is deleted again."""
    put: list[BlockKey] = []
    try:
        yield put
    except BaseException:
        _take_back(kv, put)
        raise


def publish(kv: KVStore, put: Sequence[BlockKey], step: Callable[[], Manifest]) -> Manifest:
    """The step of the state that names what was put; if it is refused, all of that is deleted again.

    A state that did not answer may have done what it was told: then blobs stay, and if no row names them, the next run
    sweeps them.
    """
    try:
        return step()
    except (StateError, UnknownVideo):
        _take_back(kv, put)
        raise


def _take_back(kv: KVStore, put: Sequence[BlockKey]) -> None:
    with suppress(X2LError):
        kv.delete(put)


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
        """A manifest names only what is fully stored. Of a chunk that was not published, nothing is left, or what the
        next run sweeps.

        Raises KVError when a store is at fault, StaleEpoch, UnknownVideo or ManifestConflict when the state refuses.
        """
        parts: dict[str, list[BlockRef]] = {}
        with stored(self.kv) as put:
            for key, blob in self._blobs(chunk):
                put.append(key)
                self.kv.put(key, blob)
                parts.setdefault(key.kind, []).append(ref_of(blob))
        row = replace(chunk.row, blocks={kind: ref_of_all(refs) for kind, refs in parts.items()})
        manifest = self.manifest
        place = (manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch)
        if row.index < len(manifest.settled):
            now = publish(self.kv, put, lambda: self.state.revise(*place, [row]))
        else:
            now = publish(self.kv, put, lambda: self.state.seal(*place, row))
        if row.index < len(manifest.chunks):
            self._let_go(manifest.chunks[row.index], now)
        return row

    def keep(self, row: ChunkRow) -> ChunkRow:
        """Seals a chunk of the tail as it is, but for its span. Raises as :meth:`seal`."""
        manifest = self.manifest
        self.state.seal(manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch, row)
        return row

    def _let_go(self, old: ChunkRow, now: Manifest) -> None:
        """Deletes what was stored of a chunk that has been made again, but for segments that others lie in too."""
        gone = {key for ref in old.blocks.values() for key in self.manifest.keys(ref, old.index)}
        packed = [(ref, other.index) for other in now.chunks for ref in other.blocks.values() if ref.packed]
        self.kv.delete(gone.difference(*(now.keys(ref, chunk) for ref, chunk in packed)))

    def _blobs(self, chunk: Unsealed) -> Iterator[tuple[BlockKey, Buffer]]:
        """What is kept of a chunk, one blob at a time."""
        for level, block in chunk.blocks.items():
            for stripe in split(block.to("cpu"), self.stripe_bytes):
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
