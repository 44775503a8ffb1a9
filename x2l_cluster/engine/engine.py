"""The façade: index a video, ask it questions. Everything else in this room stands behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from x2l_cluster.engine.answer import Answerer
from x2l_cluster.engine.calibrated import find_calibration
from x2l_cluster.engine.decode import Generation
from x2l_cluster.engine.grow import check_can_grow
from x2l_cluster.engine.index import Indexer, Progress
from x2l_cluster.engine.prefill import Prefilled
from x2l_cluster.engine.read import Reader
from x2l_cluster.engine.search import Hit
from x2l_cluster.engine.upkeep import check_model, counted_repair, source_of
from x2l_cluster.engine.work import Asked
from x2l_cluster.errors import InvalidInput, KVMissing, UnknownVideo, X2LError
from x2l_cluster.kv.stripes import STRIPE_BYTES
from x2l_cluster.models import VideoLM, load_model
from x2l_cluster.select import Calibration, get_scorer
from x2l_cluster.state.base import VideoRecord
from x2l_cluster.stores import Stores
from x2l_cluster.types import (
    LOCAL_TENANT,
    Answer,
    Detail,
    IndexStatus,
    Manifest,
    Recipe,
    ReloadPlan,
    SourceRef,
    VideoInfo,
    check_name,
)
from x2l_cluster.video import frame_at
from x2l_cluster.video.reader import Pixels

CACHE_BYTES = 2 << 30
DECODE_DEADLINE_S = 30.0


class VideoEngine:
    """Video-X²L on one device. Safe for several threads.

    Args:
        lm: the model.
        stores: blocks, state and sources; the engine closes them.
        calibration: which heads score; None: scoring falls back to ``coarse``.
        cache_bytes: what assembled pages kept hot may take.
        decode_deadline_s: a video decoder without progress for so long is killed.
        stripe_bytes: what a stored blob takes at most.
    """

    def __init__(
        self,
        lm: VideoLM,
        stores: Stores,
        *,
        calibration: Calibration | None = None,
        cache_bytes: int = CACHE_BYTES,
        decode_deadline_s: float = DECODE_DEADLINE_S,
        stripe_bytes: int = STRIPE_BYTES,
    ) -> None:
        self.lm = lm
        self.stores = stores
        self.calibration = calibration
        stored = ["embedding", *(["calibrated"] if calibration else [])]
        self._indexing = threading.Lock()
        self._reader = Reader(stores.kv, lambda m: stores.state.manifest(m.tenant, m.video, m.recipe.digest))
        self.answerer = Answerer(lm, self._reader, calibration, cache_bytes=cache_bytes)
        self._indexer = Indexer(
            lm=lm,
            kv=stores.kv,
            state=stores.state,
            scorers=[get_scorer(name, lm.spec, calibration) for name in stored],
            deadline_s=decode_deadline_s,
            stripe_bytes=stripe_bytes,
            turns=self.answerer.turns,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str = "reference",
        *,
        store: str = "disk:~/.x2l",
        fine_store: str | None = None,
        state: str | None = None,
        sources: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a model by bundled name, folder or hub name, and opens its stores.

        Args:
            store: ``disk:PATH`` or ``memory:``; this and where what goes instead as in :meth:`Stores.open`.

        Raises ModelNotAvailable, UnsupportedModel, InvalidInput, StoreUnavailable.
        """
        lm = load_model(model, device=device, dtype=dtype)
        options.setdefault("calibration", find_calibration(model, lm))
        return cls(lm, Stores.open(store, fine=fine_store, state=state, sources=sources), **options)

    # --- index ------------------------------------------------------------------------------------------------------

    def index(
        self,
        path: str | Path,
        *,
        video: str | None = None,
        tenant: str = LOCAL_TENANT,
        repair: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        watch: Callable[[Prefilled], None] = lambda _: None,
        **recipe: Any,
    ) -> Manifest:
        """Indexes a video file. The same content under the same recipe is no new work; half-done work is gone on with.

        Args:
            video: an id of your choice; by default it comes from the content.
            repair: make again what is gone or damaged of an index that is there, score indexes included.
            watch: sees every chunk as it is prefilled, raw KVs included.
            recipe: fields of :class:`~x2l_cluster.types.Recipe` to change.

        Raises VideoError when the file is at fault, KVError when a store is, Cancelled after ``cancel`` was set.
        """
        made = self.lm.recipe(**recipe)
        if video is not None:
            check_name("video id", video)
        with self._indexing:  # one device prefills one video at a time; the next caller finds the work done
            source = self.stores.sources.put(tenant, path)
            try:
                return self._index(
                    source,
                    made,
                    tenant=tenant,
                    video=video,
                    repair=repair,
                    progress=progress,
                    cancel=cancel,
                    watch=watch,
                )
            finally:
                self._let_go(tenant, source)

    def index_source(
        self,
        source: SourceRef,
        *,
        video: str | None = None,
        tenant: str = LOCAL_TENANT,
        repair: bool = False,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        **recipe: Any,
    ) -> Manifest:
        """As :meth:`index`, of a source that is kept already and stays kept. Raises SourceMissing too."""
        made = self.lm.recipe(**recipe)
        with self._indexing, counted_repair() if repair else nullcontext():
            return self._index(
                source, made, tenant=tenant, video=video, repair=repair, progress=progress, cancel=cancel
            )

    def append(
        self,
        video: str,
        path: str | Path,
        *,
        tenant: str = LOCAL_TENANT,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Manifest:
        """Goes on with a video whose recording has grown: ``path`` begins with all that was indexed, and has more.

        What was indexed stays and can be asked about meanwhile; the video keeps its id, and the longer file becomes its
        source. The outcome is that of indexing the longer file at once. A file with nothing new changes nothing;
        half-done work is gone on with. Of several recipes, that of the newest index is meant.

        Raises UnknownVideo, ModelMismatch (another model indexed it), NotAContinuation when the file begins with
        anything else, InvalidInput when its recipe cannot grow, and as :meth:`index`.
        """
        self._growing(video, tenant)
        source = self.stores.sources.put(tenant, path)
        try:
            return self.append_source(video, source, tenant=tenant, progress=progress, cancel=cancel)
        finally:
            self._let_go(tenant, source)

    def append_source(
        self,
        video: str,
        source: SourceRef,
        *,
        tenant: str = LOCAL_TENANT,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Manifest:
        """As :meth:`append`, of a source that is kept already and stays kept. Raises SourceMissing too."""
        with self._indexing:
            known = self._growing(video, tenant)
            if known.source is None or known.source.id == source.id:  # begun before, or nothing new
                return self._index(
                    source,
                    known.recipe,
                    tenant=tenant,
                    video=video,
                    repair=False,
                    progress=progress,
                    cancel=cancel,
                )
            shorter = known.source
            with self.stores.sources.open_local(tenant, source) as local:
                grown = self._indexer.grow(
                    local,
                    known=known,
                    source=source,
                    begun=lambda _: self._let_go(tenant, shorter),
                    progress=progress,
                    cancel=cancel,
                )
            self.answerer.forget(tenant, video)
            if grown.source is not None and grown.source.id == source.id:
                self.stores.state.bind(tenant, source.id, video)
            return grown

    def _growing(self, video: str, tenant: str) -> Manifest:
        known = self.manifest(video, tenant=tenant)
        check_model(known, self.lm.spec)
        check_can_grow(known)
        return known

    def _let_go(self, tenant: str, source: SourceRef) -> None:
        """Deletes a kept source that no index names."""
        if not self.stores.source_in_use(tenant, source.id):
            self.stores.sources.delete(tenant, source)

    def refresh(
        self,
        video: str | Manifest,
        *,
        tenant: str = LOCAL_TENANT,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> Manifest:
        """Makes again, from the kept source, what the stores have lost of a video, and fine detail it decayed from.

        Raises UnknownVideo, ModelMismatch (another model indexed it), SourceMissing, and as :meth:`index`.
        """
        known = self.manifest(video, tenant=tenant) if isinstance(video, str) else video
        check_model(known, self.lm.spec)
        with self._indexing, counted_repair():
            return self._index(
                source_of(known),
                known.recipe,
                tenant=known.tenant,
                video=known.video,
                repair=True,
                progress=progress,
                cancel=cancel,
            )

    def reindex(
        self,
        video: str,
        *,
        tenant: str = LOCAL_TENANT,
        progress: Callable[[Progress], None] = lambda _: None,
        cancel: threading.Event | None = None,
        **recipe: Any,
    ) -> Manifest:
        """Indexes a video again, from its kept source, as this model does it now. The old index serves until the new
        one is ready; then it goes.

        Args:
            recipe: fields to change. Which frames are looked at stays as it was; all else is the model's choice.

        Raises UnknownVideo, SourceMissing, and as :meth:`index`; the old index is left as it was.
        """
        old = self.stores.state.manifest(tenant, video)
        made = self.index_source(
            source_of(old),
            video=video,
            tenant=tenant,
            progress=progress,
            cancel=cancel,
            **{"sampling": old.recipe.sampling} | recipe,
        )
        self.replaced(made)
        self.stores.sweep(tenant, video)
        return made

    def replaced(self, by: Manifest) -> None:
        """Lets go of all other indexes of a video; their blobs are left to :meth:`Stores.sweep`."""
        try:
            self.stores.supersede(by)
        finally:
            self.answerer.forget(by.tenant, by.video)

    def decay(self, video: str, *, tenant: str = LOCAL_TENANT) -> Manifest:
        """Lets go of the fine detail of a video: it is answered from its coarse gist until it is refreshed.

        Raises UnknownVideo, ManifestConflict while it is being indexed, StoreUnavailable (then call it again).
        """
        try:
            return self.stores.decay(self.manifest(video, tenant=tenant))
        finally:
            self.answerer.forget(tenant, video)

    def _index(
        self,
        source: SourceRef,
        recipe: Recipe,
        *,
        tenant: str,
        video: str | None,
        repair: bool,
        progress: Callable[[Progress], None],
        cancel: threading.Event | None,
        watch: Callable[[Prefilled], None] = lambda _: None,
    ) -> Manifest:
        name = self.video_id(tenant, source.id, video)
        known = self._find(tenant, name, recipe.digest)
        source = _longest(source, known)
        if known is None or known.status is not IndexStatus.READY or repair:
            with self.stores.sources.open_local(tenant, source) as local:
                known = self._indexer.run(
                    local,
                    tenant=tenant,
                    video=name,
                    recipe=recipe,
                    source=source,
                    repair=repair,
                    progress=progress,
                    cancel=cancel,
                    watch=watch,
                )
                self.answerer.forget(tenant, name)
        self.stores.state.bind(tenant, source.id, name)
        return known

    def stored_bytes(self, done: Prefilled, recipe: Recipe) -> dict[str, int]:
        """What would be stored of a prefilled chunk, by kind."""
        return self._indexer.stored_bytes(done, recipe)

    def video_id(self, tenant: str, content: str, wished: str | None = None) -> str:
        """The id an index of that content has or will have; what a recording has grown from is that recording.

        Raises InvalidInput when the wished one is taken.
        """
        return self.stores.video_id(tenant, content, wished)

    def _find(self, tenant: str, video: str, recipe: str | None = None) -> Manifest | None:
        try:
            return self.stores.state.manifest(tenant, video, recipe)
        except UnknownVideo:
            return None

    # --- ask --------------------------------------------------------------------------------------------------------

    def ask(self, video: str | Manifest, question: str, **options: Any) -> Answer:
        """Answers one question about one video; options as in :meth:`ask_many`."""
        return self.ask_many([(video, question)], **options)[0]

    def ask_many(
        self,
        asked: Sequence[tuple[str | Manifest, str]],
        *,
        tenant: str = LOCAL_TENANT,
        detail: str | Detail = "auto",
        scorer: str = "calibrated",
        history: Sequence[tuple[str, str]] = (),
        generation: Generation | None = None,
        on_missing: str = "degrade",
        chunks: Sequence[int] = (),
        refresh: bool = False,
    ) -> list[Answer]:
        """Answers questions about any videos in one batch.

        Args:
            detail: ``auto``, ``coarse``, ``fine``, ``k=N`` or ``budget=BYTES``, or a :class:`Detail`.
            scorer: ``calibrated``, ``coarse``, ``attention_mean``, ``embedding``, ``random``, ``uniform_stride``,
                ``recent`` or ``oracle`` (with ``chunks``).
            history: earlier (question, answer) turns.
            on_missing: ``degrade`` answers a missing fine block with its coarse one and says so; ``fail`` raises.
            refresh: when not even its coarse blocks are there, a video is made again from its kept source before it is
                answered about, which takes as long as indexing it did.

        Raises UnknownVideo, ModelMismatch, InvalidQuestion, PromptTooLong, KVMissing, StoreUnavailable, and with
        ``fail`` BlockMissing or BlockCorrupt.
        """

        def answer(videos: Sequence[str | Manifest]) -> list[Answer]:
            handed = [
                self.asked(
                    video,
                    question,
                    tenant=tenant,
                    detail=detail,
                    scorer=scorer,
                    history=history,
                    on_missing=on_missing,
                    chunks=chunks,
                )
                for video, (_, question) in zip(videos, asked, strict=True)
            ]
            return self.answerer.answer(handed, generation or Generation())

        videos = [video for video, _ in asked]
        try:
            return answer(videos)
        except KVMissing:
            if not refresh:
                raise
        return answer([self._whole(video, tenant) for video in videos])

    def _whole(self, video: str | Manifest, tenant: str) -> Manifest:
        """A video's manifest, after what it must have to be asked about was made again if it was gone."""
        manifest = self.manifest(video, tenant=tenant) if isinstance(video, str) else video
        try:
            self.answerer.check_coarse(manifest)
        except KVMissing:
            return self.refresh(manifest)
        return manifest

    def explain(self, video: str | Manifest, question: str, **options: Any) -> ReloadPlan:
        """Scores and plan of a question, without answering it; options as in :meth:`plans`."""
        return self.plans([(video, question)], **options)[0]

    def plans(
        self,
        asked: Sequence[tuple[str | Manifest, str]],
        *,
        tenant: str = LOCAL_TENANT,
        detail: str | Detail = "auto",
        scorer: str = "calibrated",
    ) -> list[ReloadPlan]:
        """Scores and plans of many questions. Raises as :meth:`ask_many`."""
        return self.answerer.plans(
            [self.asked(video, question, tenant=tenant, detail=detail, scorer=scorer) for video, question in asked]
        )

    def asked(
        self,
        video: str | Manifest,
        question: str,
        *,
        tenant: str = LOCAL_TENANT,
        detail: str | Detail = "auto",
        scorer: str = "calibrated",
        history: Sequence[tuple[str, str]] = (),
        on_missing: str = "degrade",
        chunks: Sequence[int] = (),
    ) -> Asked:
        """A question as it is handed to the answerer, its manifest read; options as in :meth:`ask_many`.

        Raises UnknownVideo and InvalidInput.
        """
        if on_missing not in ("degrade", "fail"):
            raise InvalidInput(f"on_missing is degrade or fail, got {on_missing!r}")
        return Asked(
            manifest=self.manifest(video, tenant=tenant) if isinstance(video, str) else video,
            question=question,
            detail=Detail.parse(detail) if isinstance(detail, str) else detail,
            scorer=scorer,
            history=tuple(history),
            fail_on_missing=on_missing == "fail",
            chunks=tuple(chunks),
        )

    def asked_alone(self, question: str, *, tenant: str = LOCAL_TENANT) -> Asked:
        """A question to the language model without any video, as it is handed to the answerer."""
        info = VideoInfo(duration_s=0.0, width=0, height=0, fps=0.0)
        nothing = Manifest(tenant=tenant, video="none", recipe=self.lm.recipe(), epoch=0, info=info)
        return Asked(manifest=nothing, question=question, alone=True)

    # --- what is there ----------------------------------------------------------------------------------------------

    def manifest(self, video: str, *, tenant: str = LOCAL_TENANT) -> Manifest:
        """The newest index of a video, of this model if there is one. Raises UnknownVideo."""
        return self.stores.manifest(tenant, video, self.lm.spec.weights)

    def search(
        self, question: str, videos: Sequence[str | Manifest], *, tenant: str = LOCAL_TENANT, limit: int = 10
    ) -> tuple[list[Hit], dict[str, X2LError]]:
        """The moments of some videos that fit best, best first, by the score index alone: no KVs are loaded.

        Also tells which videos could not be searched, and why. Raises UnknownVideo and InvalidInput.
        """
        manifests = [self.manifest(video, tenant=tenant) if isinstance(video, str) else video for video in videos]
        return self.answerer.search(question, manifests, limit=limit)

    def videos(self, *, tenant: str = LOCAL_TENANT) -> list[VideoRecord]:
        return self.stores.state.videos(tenant)

    def frame(self, video: str | Manifest, time_s: float, *, tenant: str = LOCAL_TENANT) -> tuple[Pixels, float]:
        """The frame on screen at a moment (height, width, 3) and its true time, from the kept source.

        Raises UnknownVideo, SourceMissing, VideoError.
        """
        manifest = self.manifest(video, tenant=tenant) if isinstance(video, str) else video
        with self.stores.sources.open_local(manifest.tenant, source_of(manifest)) as local:
            return frame_at(local, time_s)

    def delete(self, video: str, *, tenant: str = LOCAL_TENANT) -> int:
        """Deletes a video from every store and returns the bytes of KV freed; see :meth:`Stores.delete_video`."""
        self.answerer.forget(tenant, video)
        try:
            return self.stores.delete_video(tenant, video)
        finally:
            self.answerer.forget(tenant, video)  # what a question that ran beside it may have put back

    def close(self) -> None:
        self._reader.close()
        self.stores.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _longest(source: SourceRef, known: Manifest | None) -> SourceRef:
    """What an index of a source is made from: if its recording has grown since, that is the longer one.

    Raises InvalidInput when the index is of less than this source.
    """
    if known is None or known.source is None or known.source.id == source.id:
        return source
    if known.source.size_bytes < source.size_bytes:
        raise InvalidInput(
            f"under this recipe, video {known.video} was indexed from {known.source.size_bytes} bytes, before it grew; "
            f"go on with it: `x2l append {known.video} FILE`"
        )
    return known.source
