"""What an index has already: which of its chunks are sound, and their blocks for the prefill memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import replace

from x2l_cluster.engine.read import Reader
from x2l_cluster.errors import BlockCorrupt, BlockMissing
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.kv.codec import check, decode_block
from x2l_cluster.types import ChunkRow, Kind, Level, Manifest
from x2l_cluster.video.chunks import FrameChunk, frame_prints


class Sealed:
    """The settled chunks of a manifest, read back. Raises StoreUnavailable."""

    def __init__(self, reader: Reader, manifest: Manifest) -> None:
        self._reader, self._manifest = reader, manifest

    def sound(self, kinds: Set[str]) -> int:
        """How many chunks, from the first on, have all their blobs of these kinds, undamaged."""
        rows = self._manifest.settled
        with self._reader.batch(self._manifest, _each(rows, kinds), in_time=False) as batch:
            for row in rows:
                for kind in sorted(kinds):
                    try:
                        batch.use(row, kind, check)
                    except (BlockMissing, BlockCorrupt):
                        return row.index
        return len(rows)

    def row(self, index: int, kinds: Set[str]) -> ChunkRow | None:
        """The row of a chunk, if it is settled and has all that, undamaged."""
        if index >= len(self._manifest.settled):
            return None
        return self._whole(self._manifest.chunks[index], kinds)

    def first_of_tail(self, chunk: FrameChunk, kinds: Set[str]) -> ChunkRow | None:
        """The row of the first chunk that is not settled, with its span as it is now, if it has the very frames of
        ``chunk``, and all that. Those behind it attended to what is made again."""
        manifest = self._manifest
        if not manifest.tail or chunk.index != len(manifest.settled):
            return None
        row, n = manifest.chunks[chunk.index], chunk.sampled
        if row.prints != frame_prints(chunk.frames[:n], chunk.times_s[:n]) or not self._whole(row, kinds):
            return None
        return replace(row, span=chunk.span)

    def _whole(self, row: ChunkRow, kinds: Set[str]) -> ChunkRow | None:
        """The row, if it has all blobs of these kinds, undamaged."""
        with self._reader.batch(self._manifest, _each([row], kinds), in_time=False) as batch:
            try:
                for kind in sorted(kinds):
                    batch.use(row, kind, check)
            except (BlockMissing, BlockCorrupt):
                return None
        return row

    def blocks(self, rows: Sequence[ChunkRow], levels: Set[Level]) -> Iterator[tuple[ChunkRow, dict[Level, KVBlock]]]:
        """These levels of these chunks, in order, on the CPU. Raises BlockMissing and BlockCorrupt."""
        with self._reader.batch(
            self._manifest, _each(rows, {Kind.of(level) for level in levels}), in_time=False
        ) as batch:
            for row in rows:
                yield row, {level: batch.use(row, Kind.of(level), decode_block) for level in sorted(levels)}


def _each(rows: Sequence[ChunkRow], kinds: Set[str]) -> Iterator[tuple[ChunkRow, str]]:
    return ((row, kind) for row in rows for kind in sorted(kinds))
