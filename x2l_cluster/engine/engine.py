"""The façade: index a video, ask it questions. Everything else in this room stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from x2l_cluster.engine.answer import Answerer
from x2l_cluster.engine.calibrated import find_calibration
from x2l_cluster.engine.decode import Generation
from x2l_cluster.engine.indexing import IndexingEngine
from x2l_cluster.engine.read import Reader
from x2l_cluster.engine.search import Hit
from x2l_cluster.engine.upkeep import source_of
from x2l_cluster.engine.work import Asked
from x2l_cluster.errors import InvalidInput, KVMissing, X2LError
from x2l_cluster.kv.stripes import STRIPE_BYTES
from x2l_cluster.models import VideoLM, load_model
from x2l_cluster.select import Calibration
from x2l_cluster.state.base import VideoRecord
from x2l_cluster.stores import Stores
from x2l_cluster.types import (
    LOCAL_TENANT,
    Answer,
    Detail,
    Manifest,
    ReloadPlan,
    VideoInfo,
)
from x2l_cluster.video import frame_at
from x2l_cluster.video.reader import Pixels

CACHE_BYTES = 2 << 30
DECODE_DEADLINE_S = 30.0


class VideoEngine(IndexingEngine):
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
        self.calibration = calibration
        self._reader = Reader(stores.kv, lambda m: stores.state.manifest(m.tenant, m.video, m.recipe.digest))
        self.answerer = Answerer(lm, self._reader, calibration, cache_bytes=cache_bytes)
        super().__init__(
            lm,
            stores,
            calibration=calibration,
            decode_deadline_s=decode_deadline_s,
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
        self.changed(tenant, video)
        try:
            return self.stores.delete_video(tenant, video)
        finally:
            self.changed(tenant, video)  # what a question that ran beside it may have put back

    def changed(self, tenant: str, video: str) -> None:
        self.answerer.forget(tenant, video)

    def close(self) -> None:
        self._reader.close()
        super().close()
