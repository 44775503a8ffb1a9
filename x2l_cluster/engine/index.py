"""Indexing: a file becomes sealed chunks. Killed half-way, the next run goes on at the first unsealed one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from x2l_cluster.engine.assemble import Prefix
from x2l_cluster.engine.behind import WriteBehind
from x2l_cluster.engine.grow import chunks_kept
from x2l_cluster.engine.pack import Packer
from x2l_cluster.engine.prefill import Prefilled, Prefiller
from x2l_cluster.engine.read import Reader
from x2l_cluster.engine.seal import Sealer, Unsealed
from x2l_cluster.engine.sealed import Sealed
from x2l_cluster.engine.turns import Turns
from x2l_cluster.errors import Cancelled, InvalidInput, KVError, UnknownVideo, VideoError, X2LError
from x2l_cluster.kv.memory import MemoryKV
from x2l_cluster.kv.store import KVStore, Priority
from x2l_cluster.kv.stripes import STRIPE_BYTES
from x2l_cluster.models import VideoLM
from x2l_cluster.select import ChunkScorer
from x2l_cluster.state.base import StateStore
from x2l_cluster.state.memory import MemoryState
from x2l_cluster.types import ChunkRow, IndexStatus, Kind, Manifest, Recipe, SourceRef, VideoInfo
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
    """Prefills videos into stores, chunk by chunk, each sealed after the one before it.

    Attributes:
        scorers: whose score indexes are kept beside the blocks.
        deadline_s: a decoder without progress for so long is killed.
        stripe_bytes: what a stored blob takes at most.
        turns: of the device, with those who answer on it.
    """

    lm: VideoLM
    kv: KVStore
    state: StateStore
    scorers: Sequence[ChunkScorer]
    deadline_s: float
    stripe_bytes: int = STRIPE_BYTES
    turns: Turns = field(default_factory=Turns)

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
        """Indexes a local file, or goes on with it. ``watch`` sees every chunk as it is prefilled; ``progress`` is told
        of every chunk as it is sealed, from the thread that seals.

        With ``repair``, sealed chunks whose blobs are gone or damaged (or lack a score index) are made again; those the
        prefill memory needs always are.

        Raises VideoError when the file is at fault (nothing of a new index is left then, unless trying again may help),
        KVError when a store is, StaleEpoch when somebody else has taken over, Cancelled once ``cancel`` is set: no
        further chunk is prefilled or sealed (sealed chunks stay; the next run goes on behind them).
        """

        def begin(info: VideoInfo) -> Manifest:
            return self.state.begin(tenant, video, recipe, info, source)

        known = self._find(tenant, video, recipe)
        return self._run(path, recipe, known, begin, repair=repair, progress=progress, cancel=cancel, watch=watch)

    def grow(
        self,
        path: Path,
        *,
        known: Manifest,
        source: SourceRef,
        begun: Callable[[Manifest], None] = lambda _: None,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Manifest:
        """Goes on with an index whose recording has grown to ``source``, a local file at ``path``. All chunks stay that
        are the same in both; the last one, which was not full, is made again with the frames that came.

        A file that ends before the index does changes nothing. ``begun`` is told when the new source has become that of
        the video.

        Raises NotAContinuation when the file does not begin with what was indexed, StaleEpoch when the index has
        changed meanwhile, and as :meth:`run`. When the new part turns out to be at fault, what is sealed before it is
        finished.
        """

        def go_on() -> None:
            if cancel is not None and cancel.is_set():
                raise Cancelled(
                    f"appending to video {known.video} was cancelled, nothing of it has changed; append again"
                )

        kept = chunks_kept(known, path, deadline_s=self.deadline_s, go_on=go_on)
        if kept is None:
            return known

        def begin(info: VideoInfo) -> Manifest:
            place = (known.tenant, known.video, known.recipe.digest)
            grown = self.state.grow(*place, revision=known.revision, kept=kept, info=info, source=source)
            begun(grown)
            return grown

        settled = replace(known, tail=len(known.chunks) - kept)
        try:
            return self._run(path, known.recipe, settled, begin, progress=progress, cancel=cancel)
        except VideoError as error:
            if not error.retryable:
                self._settle(known, source, str(error))
            raise

    def _run(
        self,
        path: Path,
        recipe: Recipe,
        known: Manifest | None,
        begin: Callable[[VideoInfo], Manifest],
        *,
        repair: bool = False,
        progress: Callable[[Progress], None],
        cancel: threading.Event | None,
        watch: Callable[[Prefilled], None] = lambda _: None,
    ) -> Manifest:
        with self.turns.long():
            prefix = Prefix.of(self.lm, self.lm.prompt("?").prefix)
        prefiller = Prefiller(self.lm, recipe, prefix, self.turns)
        kinds = self._kinds() if repair else frozenset(Kind.of(level) for level in prefiller.remembers)
        manifest: Manifest | None = None
        with Reader(self.kv, priority=Priority.WRITE) as reader:
            start = Sealed(reader, known).sound(kinds) if known else 0
            try:
                with open_video(
                    path, recipe.sampling, start=start * recipe.chunk_frames, deadline_s=self.deadline_s
                ) as stream:
                    chunks = chunked(stream, chunk_frames=recipe.chunk_frames, group_frames=self.lm.spec.group_frames)
                    first = list(islice(chunks, 1))  # the file must yield one, if it is to, before anything is visible
                    manifest = begin(stream.info)
                    self._sweep(manifest)
                    told = _Told(manifest, -(-len(stream) // recipe.chunk_frames), progress, cancel)
                    sealed = Sealed(reader, manifest)
                    for row, blocks in sealed.blocks(manifest.chunks[:start], prefiller.remembers):
                        prefiller.resume(row.index, row.position_end, blocks)
                        told.resumed(row)
                    self._prefill(prefiller, chain(first, chunks), sealed, kinds, told, watch)
                    self._pack(manifest, reader)
                    place = (manifest.tenant, manifest.video, recipe.digest)
                    return self.state.finish(*place, manifest.epoch, stream.info)
            except VideoError as error:
                if manifest is not None and not (known and known.chunks) and not error.retryable:
                    self._withdraw(manifest)
                raise

    def _prefill(
        self,
        prefiller: Prefiller,
        chunks: Iterable[FrameChunk],
        sealed: Sealed,
        kinds: frozenset[str],
        told: _Told,
        watch: Callable[[Prefilled], None],
    ) -> None:
        """Chunk after chunk; each is stored and sealed while the next one is prefilled."""
        sealer = Sealer(
            kv=self.kv,
            state=self.state,
            manifest=told.manifest,
            scorers=self.scorers,
            stripe_bytes=self.stripe_bytes,
        )

        def seal(chunk: Unsealed) -> None:
            told.may_go_on(chunk.row.index)
            told.sealed(sealer.seal(chunk))

        with WriteBehind(seal) as behind:
            for chunk in chunks:
                told.may_go_on(chunk.index)
                old = sealed.row(chunk.index, kinds)
                if old is None and (kept := sealed.first_of_tail(chunk, kinds)):
                    old = sealer.keep(kept)
                if old is not None:
                    behind.drain()  # chunks are told of in order
                    for row, blocks in sealed.blocks([old], prefiller.remembers):
                        prefiller.resume(row.index, row.position_end, blocks)
                        told.resumed(row)
                    continue
                done = prefiller.one(chunk)
                watch(done)
                behind.put(Unsealed.of(done))
                del done  # its raw KVs would stay until the next chunk is prefilled

    def _pack(self, manifest: Manifest, reader: Reader) -> None:
        """An index is as good in pieces, only slower to read: if a store will not have it packed, it stays so."""
        packer = Packer(kv=self.kv, state=self.state, reader=reader, segment_bytes=self.stripe_bytes)
        with contextlib.suppress(KVError):
            packer.pack(self.state.manifest(manifest.tenant, manifest.video, manifest.recipe.digest))

    def stored_bytes(self, done: Prefilled, recipe: Recipe) -> dict[str, int]:
        """What :meth:`run` would store of a chunk, by kind."""
        info = VideoInfo(duration_s=done.span.end_s, width=0, height=0, fps=0.0)
        with MemoryKV() as kv, MemoryState() as state:
            manifest = state.begin("none", "none", recipe, info)
            row = Sealer(kv=kv, state=state, manifest=manifest, scorers=self.scorers).seal(Unsealed.of(done))
        return {kind: ref.size_bytes for kind, ref in row.blocks.items()}

    # --- what is there already --------------------------------------------------------------------------------------

    def _find(self, tenant: str, video: str, recipe: Recipe) -> Manifest | None:
        try:
            return self.state.manifest(tenant, video, recipe.digest)
        except UnknownVideo:
            return None

    def _kinds(self) -> frozenset[str]:
        return frozenset({Kind.L, Kind.H, *(scorer.kind for scorer in self.scorers if scorer.kind)})

    def _sweep(self, manifest: Manifest) -> None:
        """Deletes what earlier runs stored under this recipe and no row names."""
        named, recipe = manifest.named, manifest.recipe.digest
        held = self.kv.keys(manifest.tenant, manifest.video)
        self.kv.delete([key for key in held if key.recipe == recipe and key not in named])

    def _settle(self, known: Manifest, source: SourceRef, why: str) -> None:
        """Finishes an index that cannot go on, unless it is somebody else's by now."""
        with contextlib.suppress(X2LError):
            current = self.state.manifest(known.tenant, known.video, known.recipe.digest)
            if current.source == source and current.status is not IndexStatus.READY:
                place = (current.tenant, current.video, current.recipe.digest, current.epoch)
                self.state.finish(*place, replace(current.info, partial=why))

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


@dataclass(frozen=True, slots=True)
class _Told:
    """What the caller of a run is told, and may tell."""

    manifest: Manifest
    total: int
    progress: Callable[[Progress], None]
    cancel: threading.Event | None

    def sealed(self, row: ChunkRow, *, resumed: bool = False) -> None:
        chunks = max(self.total, row.index + 1)
        video = self.manifest.video
        self.progress(Progress(video=video, chunk=row.index, chunks=chunks, end_s=row.span.end_s, resumed=resumed))

    def resumed(self, row: ChunkRow) -> None:
        self.sealed(row, resumed=True)

    def may_go_on(self, chunk: int) -> None:
        """Raises Cancelled once that was asked for."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(
                f"indexing of video {self.manifest.video} was cancelled before chunk {chunk}; index it again to go on"
            )
