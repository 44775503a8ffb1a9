"""Indexing: a file becomes sealed chunks. Killed half-way, the next run goes on at the first unsealed one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from x2l_cluster.engine.assemble import Prefix
from x2l_cluster.engine.prefill import Prefilled, Prefiller
from x2l_cluster.errors import (
    BlockCorrupt,
    BlockMissing,
    Cancelled,
    InvalidInput,
    UnknownVideo,
    VideoError,
    X2LError,
)
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.kv.codec import Buffer, decode, encode, pack, ref_of, unpack
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

    def __post_init__(self) -> None:
        for kind in (Kind.H, Kind.INDEX):
            if self.state.durable and not self.kv.route(kind).durable:
                raise InvalidInput(
                    f"manifests survive a restart here but {kind!r} blocks would not: they would name what is gone; "
                    "keep coarse blocks and score indexes in a durable store"
                )

    def run(
        self,
        path: Path,
        *,
        tenant: str,
        video: str,
        recipe: Recipe,
        source: SourceRef | None = None,
        repair: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        watch: Callable[[Prefilled], None] = lambda _: None,
    ) -> Manifest:
        """Indexes a local file, or goes on with it. ``watch`` sees every chunk as it is prefilled.

        With ``repair``, sealed chunks whose blobs are gone or damaged (or lack a score index) are made again; those the
        prefill memory needs always are.

        Raises VideoError when the file is at fault (nothing of a new index is left then, unless trying again may help),
        KVError when a store is, StaleEpoch when somebody else has taken over, Cancelled at the next chunk boundary
        after ``cancel`` is set (sealed chunks stay; the next run goes on behind them).
        """
        prefiller = Prefiller(self.lm, recipe, Prefix.of(self.lm, self.lm.prompt("?").prefix))
        kinds = self._kinds() if repair else frozenset(Kind.of(level) for level in prefiller.remembers)
        before = self._rows(tenant, video, recipe)
        start = next((row.index for row in before if not self._whole(tenant, video, recipe, row, kinds)), len(before))
        manifest: Manifest | None = None
        try:
            with open_video(
                path, recipe.sampling, start=start * recipe.chunk_frames, deadline_s=self.deadline_s
            ) as stream:
                chunks = chunked(stream, chunk_frames=recipe.chunk_frames, group_frames=self.lm.spec.group_frames)
                first = list(islice(chunks, 1))  # the file must yield a chunk before anything is visible
                manifest = self.state.begin(tenant, video, recipe, stream.info, source)
                self._sweep(manifest)
                total = -(-len(stream) // recipe.chunk_frames)
                for row in manifest.chunks[:start]:
                    prefiller.resume(row.index, row.position_end, self._stored(manifest, row, prefiller.remembers))
                    progress(_progress(video, row, total, resumed=True))
                for chunk in _until(cancel, video, chain(first, chunks)):
                    old = self._old(manifest, chunk, kinds)
                    if old is not None:
                        prefiller.resume(old.index, old.position_end, self._stored(manifest, old, prefiller.remembers))
                        progress(_progress(video, old, total, resumed=True))
                        continue
                    done = prefiller.one(chunk)
                    watch(done)
                    progress(_progress(video, self._seal(manifest, done), total))
                return self.state.finish(tenant, video, recipe.digest, manifest.epoch, stream.info)
        except VideoError as error:
            if manifest is not None and not before and not error.retryable:
                self._withdraw(manifest)
            raise

    # --- what is there already --------------------------------------------------------------------------------------

    def _rows(self, tenant: str, video: str, recipe: Recipe) -> tuple[ChunkRow, ...]:
        try:
            return self.state.manifest(tenant, video, recipe.digest).chunks
        except UnknownVideo:
            return ()

    def _kinds(self) -> frozenset[str]:
        return frozenset({Kind.L, Kind.H, *(scorer.kind for scorer in self.scorers if scorer.kind)})

    def _whole(self, tenant: str, video: str, recipe: Recipe, row: ChunkRow, kinds: frozenset[str]) -> bool:
        """Whether the blobs of these kinds are there and sound. Raises StoreUnavailable."""
        for kind in kinds:
            ref = row.blocks.get(kind)
            if ref is None:
                return False
            key = _key(tenant, video, recipe, ref.epoch, kind, row.index)
            try:
                unpack(self.kv.get(key), key, ref)
            except (BlockMissing, BlockCorrupt):
                return False
        return True

    def _old(self, manifest: Manifest, chunk: FrameChunk, kinds: frozenset[str]) -> ChunkRow | None:
        """The row of a chunk that is sealed and sound."""
        if chunk.index >= len(manifest.chunks):
            return None
        row = manifest.chunks[chunk.index]
        return row if self._whole(manifest.tenant, manifest.video, manifest.recipe, row, kinds) else None

    def _stored(self, manifest: Manifest, row: ChunkRow, levels: frozenset[Level]) -> dict[Level, KVBlock]:
        blocks = {}
        for level in levels:
            ref = row.blocks[Kind.of(level)]
            key = manifest.key(ref, row.index)
            blocks[level] = decode(self.kv.get(key), key, ref).to(self.lm.device)
        return blocks

    def _sweep(self, manifest: Manifest) -> None:
        """Deletes what earlier runs stored under this recipe and no row names."""
        named = {manifest.key(ref, row.index) for row in manifest.chunks for ref in row.blocks.values()}
        mine = [key for key in self.kv.keys(manifest.tenant, manifest.video) if key.recipe == manifest.recipe.digest]
        self.kv.delete([key for key in mine if key not in named])

    def _withdraw(self, manifest: Manifest) -> None:
        """Takes a new index back whose file turned out to be at fault, unless it is somebody else's by now."""
        try:
            current = self.state.manifest(manifest.tenant, manifest.video, manifest.recipe.digest)
        except UnknownVideo:
            return
        others = [r for r in self.state.videos(manifest.tenant) if r.video == manifest.video]
        if current.epoch == manifest.epoch and len(others) == 1:
            self.state.delete(manifest.tenant, manifest.video)
            self.kv.delete_video(manifest.tenant, manifest.video)

    # --- what is new ------------------------------------------------------------------------------------------------

    def _seal(self, manifest: Manifest, done: Prefilled) -> ChunkRow:
        """Store, then publish: a manifest names only what is fully stored. Nothing is left of a chunk not published."""
        refs: dict[str, BlockRef] = {}
        put: list[BlockKey] = []
        try:
            for kind, make in self._blobs(done):
                key = _key(manifest.tenant, manifest.video, manifest.recipe, manifest.epoch, kind, done.index)
                blob = make(key)
                put.append(key)
                self.kv.put(key, blob)
                refs[kind] = ref_of(blob)
            row = ChunkRow(
                index=done.index,
                span=done.span,
                frames=done.frames,
                position_start=done.position_start,
                position_end=done.position_end,
                raw_entries=done.tokens,
                blocks=refs,
            )
            publish = self.state.seal if done.index >= len(manifest.chunks) else self.state.update
            publish(manifest.tenant, manifest.video, manifest.recipe.digest, manifest.epoch, row)
        except BaseException:
            with contextlib.suppress(X2LError):
                self.kv.delete(put)
            raise
        if done.index < len(manifest.chunks):
            old = manifest.chunks[done.index]
            self.kv.delete([manifest.key(ref, old.index) for ref in old.blocks.values()])
        return row

    def _blobs(self, done: Prefilled) -> Iterator[tuple[str, Callable[[BlockKey], Buffer]]]:
        """What is kept of a chunk: kind, and how its blob is made once its key is known."""
        for level, block in done.blocks.items():
            stored = block.to("cpu")
            yield Kind.of(level), lambda key, stored=stored: encode(stored, key)  # type: ignore[misc]
        for scorer in self.scorers:
            if scorer.kind is not None:
                features = scorer.index(done.blocks[Level.L], done.visual)
                yield scorer.kind, lambda key, features=features: pack(*features, key)  # type: ignore[misc]


def _key(tenant: str, video: str, recipe: Recipe, epoch: int, kind: str, chunk: int) -> BlockKey:
    return BlockKey(tenant=tenant, video=video, recipe=recipe.digest, epoch=epoch, kind=kind, chunk=chunk)


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
