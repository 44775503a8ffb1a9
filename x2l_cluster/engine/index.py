"""Indexing: a file becomes sealed chunks. Killed half-way, the next run goes on at the first unsealed one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from x2l_cluster.engine.assemble import Prefix
from x2l_cluster.engine.prefill import Prefilled, Prefiller
from x2l_cluster.errors import Cancelled, UnknownVideo, VideoError
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.kv.codec import Buffer, decode, encode, pack, ref_of
from x2l_cluster.kv.store import KVStore
from x2l_cluster.models import VideoLM
from x2l_cluster.select import ChunkScorer
from x2l_cluster.state.base import StateStore
from x2l_cluster.types import BlockKey, BlockRef, ChunkRow, Kind, Level, Manifest, Recipe, SourceRef
from x2l_cluster.video import FrameChunk, chunked, open_video


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One more chunk is sealed, or was found sealed by an earlier run (``resumed``)."""

    video: str
    chunk: int
    chunks: int
    """How many the video is expected to have."""
    end_s: float
    resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """Prefills videos into stores, one chunk at a time, each sealed before the next.

    Attributes:
        scorers: whose score indexes are kept beside the blocks.
        deadline_s: a decoder without progress for so long is killed.
    """

    lm: VideoLM
    kv: KVStore
    state: StateStore
    scorers: Sequence[ChunkScorer]
    deadline_s: float

    def run(
        self,
        path: Path,
        *,
        tenant: str,
        video: str,
        recipe: Recipe,
        source: SourceRef | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        watch: Callable[[Prefilled], None] = lambda _: None,
    ) -> Manifest:
        """Indexes a local file, or goes on with it. ``watch`` sees every chunk as it is prefilled.

        Raises VideoError when the file is at fault (nothing of a new index is left then), KVError when a store is,
        StaleEpoch when somebody else has taken over, Cancelled at the next chunk boundary after ``cancel`` is set
        (sealed chunks stay; the next run goes on behind them).
        """
        prefix = Prefix.of(self.lm, self.lm.prompt("?").prefix)
        prefiller = Prefiller(self.lm, recipe, prefix)
        sealed = self._sealed(tenant, video, recipe)
        start = sealed * recipe.chunk_frames
        try:
            with open_video(path, recipe.sampling, start=start, deadline_s=self.deadline_s) as stream:
                chunks = chunked(stream, chunk_frames=recipe.chunk_frames, group_frames=self.lm.spec.group_frames)
                first = list(islice(chunks, 1))  # the file must yield a chunk before anything is visible
                manifest = self.state.begin(tenant, video, recipe, stream.info, source)
                total = -(-len(stream) // recipe.chunk_frames)
                for row in manifest.chunks:
                    prefiller.resume(row.index, row.position_end, self._stored(manifest, row, prefiller.remembers))
                    progress(_progress(video, row, total, resumed=True))
                for done in prefiller.run(_until(cancel, video, chain(first, chunks))):
                    watch(done)
                    progress(_progress(video, self._seal(manifest, done), total))
                return self.state.finish(tenant, video, recipe.digest, manifest.epoch, stream.info)
        except VideoError:
            if not sealed and self._only_index(tenant, video, recipe):
                self.state.delete(tenant, video)
                self.kv.delete_video(tenant, video)
            raise

    def _sealed(self, tenant: str, video: str, recipe: Recipe) -> int:
        try:
            return len(self.state.manifest(tenant, video, recipe.digest).chunks)
        except UnknownVideo:
            return 0

    def _only_index(self, tenant: str, video: str, recipe: Recipe) -> bool:
        """Whether no index of the video under another recipe would be lost with it."""
        records = self.state.videos(tenant)
        return all(record.video != video or record.recipe.digest == recipe.digest for record in records)

    def _stored(self, manifest: Manifest, row: ChunkRow, levels: frozenset[Level]) -> dict[Level, KVBlock]:
        blocks = {}
        for level in levels:
            ref = row.blocks[Kind.of(level)]
            key = manifest.key(ref, row.index)
            blocks[level] = decode(self.kv.get(key), key, ref).to(self.lm.device)
        return blocks

    def _seal(self, manifest: Manifest, done: Prefilled) -> ChunkRow:
        """Store, then publish: a manifest names only what is fully stored."""
        refs: dict[str, BlockRef] = {}

        def keep(kind: str, make: Callable[[BlockKey], Buffer]) -> None:
            key = BlockKey(
                tenant=manifest.tenant,
                video=manifest.video,
                recipe=manifest.recipe.digest,
                epoch=manifest.epoch,
                kind=kind,
                chunk=done.index,
            )
            blob = make(key)
            self.kv.put(key, blob)
            refs[kind] = ref_of(blob)

        for level, block in done.blocks.items():
            stored = block.to("cpu")
            keep(Kind.of(level), lambda key, stored=stored: encode(stored, key))  # type: ignore[misc]
        for scorer in self.scorers:
            features = scorer.index(done.blocks[Level.L], done.visual)
            if scorer.kind is not None:
                keep(scorer.kind, lambda key, features=features: pack(*features, key))  # type: ignore[misc]
        row = ChunkRow(
            index=done.index,
            span=done.span,
            frames=done.frames,
            position_start=done.position_start,
            position_end=done.position_end,
            raw_entries=done.raw.entries,
            blocks=refs,
        )
        self.state.seal(manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch, row)
        return row


def _progress(video: str, row: ChunkRow, total: int, *, resumed: bool = False) -> Progress:
    return Progress(
        video=video, chunk=row.index, chunks=max(total, row.index + 1), end_s=row.span.end_s, resumed=resumed
    )


def _until(cancel: threading.Event | None, video: str, chunks: Iterable[FrameChunk]) -> Iterator[FrameChunk]:
    """Raises Cancelled before the next chunk once ``cancel`` is set."""
    for chunk in chunks:
        if cancel is not None and cancel.is_set():
            raise Cancelled(
                f"indexing of video {video} was cancelled before chunk {chunk.index}; index it again to go on"
            )
        yield chunk
