"""The whole service in one process: for a laptop, for tests, and as the plain model of what a cluster does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from x2l_cluster import metrics
from x2l_cluster.engine import AnswerLoop, Limits, Stores, VideoEngine, find_calibration
from x2l_cluster.errors import InvalidInput, SourceMissing, UnknownVideo, X2LError
from x2l_cluster.messages import (
    AnswerEvent,
    Chunk,
    Deleted,
    Estimate,
    Found,
    Job,
    JobEvent,
    ModelCard,
    Moment,
    Readiness,
    Session,
    Video,
)
from x2l_cluster.models import load_model
from x2l_cluster.service import pieces as uploads
from x2l_cluster.service.addresses import Gate
from x2l_cluster.service.asking import Asking
from x2l_cluster.service.estimate import Estimator
from x2l_cluster.service.fetch import Fetcher, check_url
from x2l_cluster.service.loop_parts import LoopParts
from x2l_cluster.service.requests import Ask, EstimateRequest, IndexRequest, SearchRequest
from x2l_cluster.service.runner import JobRunner
from x2l_cluster.service.views import chunk_of, newest, video_of
from x2l_cluster.service.work import IndexWork
from x2l_cluster.state.follow import ended, follow
from x2l_cluster.state.open import State
from x2l_cluster.types import Manifest, SourceRef, check_name, recipe_fields
from x2l_cluster.video.evidence import FORMATS, encode_image

T = TypeVar("T")
_STOP_S: Final = 30.0
"""How long a deletion waits for a job that works on the video to stop at its next chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """How a service in one process is run.

    Attributes:
        roots: folders that jobs may read files from.
        indexers: threads that index; the device prefills one video at a time, so more of them only fetch ahead.
        lease_s: a job whose worker was not heard of for so long is given to another.
        most_jobs: of one tenant that have not ended.
        max_source_bytes: of one upload or fetched video.
        fetch_within_s: what one fetch may take.
        fetch_allow: hosts and networks that are fetched from though they are not public.
        limits: of the answering loop.
        drain_s: what answers are given to end when the service closes.
    """

    roots: tuple[Path, ...] = ()
    indexers: int = 1
    lease_s: float = 30.0
    most_jobs: int | None = None
    max_source_bytes: int = 16 << 30
    fetch_within_s: float = 3600.0
    fetch_allow: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    drain_s: float = 10.0


class LocalService:
    """A :class:`~x2l_cluster.service.base.Service` over one engine. Its threads start at once; close it when done.

    Args:
        engine: answers and indexes; closed with the service.
        state: where jobs and sessions are kept; closed with the service.
        model: the name of the model, as users know it.
    """

    def __init__(
        self,
        engine: VideoEngine,
        state: State,
        *,
        model: str = "reference",
        options: LocalOptions = LocalOptions(),
        owned: ExitStack | None = None,
    ) -> None:
        self.engine, self.state, self.queue = engine, state, state.jobs
        self._model, self._options = model, options
        self._owned = owned or ExitStack()
        self._estimator = Estimator(engine)
        fetcher = Fetcher(
            Gate(options.fetch_allow), max_bytes=options.max_source_bytes, within_s=options.fetch_within_s
        )
        self.loop = AnswerLoop(engine.answerer, options.limits)
        self._asking = Asking(LoopParts(engine, self.loop, missing=self._repair), state.sessions)
        self._runners = [
            JobRunner(
                engine,
                state.jobs,
                name=f"indexer-{number}",
                fetcher=fetcher,
                roots=options.roots,
                ttl_s=options.lease_s,
            )
            for number in range(options.indexers)
        ]
        self._threads = [
            threading.Thread(target=runner.run, name=f"x2l-indexer-{number}", daemon=True)
            for number, runner in enumerate(self._runners)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(
        cls,
        model: str = "reference",
        *,
        store: str = "disk:~/.x2l",
        fine_store: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        options: LocalOptions = LocalOptions(),
    ) -> Self:
        """Loads a model and opens its stores; jobs and sessions are kept beside them.

        Raises ModelNotAvailable, UnsupportedModel, InvalidInput, StoreUnavailable.
        """
        lm = load_model(model, device=device, dtype=dtype)
        stores = Stores.open(store, fine=fine_store)
        engine = VideoEngine(lm, stores, calibration=find_calibration(model, lm))
        return cls.over(engine, store=store, model=model, options=options)

    @classmethod
    def over(cls, engine: VideoEngine, *, store: str, model: str, options: LocalOptions = LocalOptions()) -> Self:
        """Over an engine whose stores were opened by this URL."""
        with ExitStack() as stack:
            stack.callback(engine.close)
            state = stack.enter_context(State.open(store, manifests=engine.stores.state))
            return cls(engine, state, model=model, options=options, owned=stack.pop_all())

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def keep(self, tenant: str, pieces: AsyncIterator[bytes], *, name: str | None = None) -> SourceRef:
        check_name("tenant", tenant)
        return await uploads.keep(
            self.engine.stores.sources, tenant, pieces, name=name, max_bytes=self._options.max_source_bytes
        )

    async def submit(self, tenant: str, request: IndexRequest) -> Job:
        return await asyncio.to_thread(self._submit, tenant, request)

    def _submit(self, tenant: str, request: IndexRequest) -> Job:
        try:
            self.engine.lm.recipe(**recipe_fields(request.recipe))
            if request.url is not None:
                check_url(request.url)
            work = IndexWork.of(request, self._options.roots)
            video = request.video
            if request.source is not None:
                if not self.engine.stores.sources.exists(tenant, request.source):
                    raise SourceMissing(f"source {request.source.id} is not kept; upload the video again")
                video = self.engine.video_id(tenant, request.source.id, request.video)
            return self.queue.submit(
                tenant,
                work.to_dict(),
                key=request.idempotency_key,
                priority=request.priority,
                video=video,
                most_active=self._options.most_jobs,
            )
        except X2LError:
            if request.source is not None:
                self._forget(tenant, request.source)
            raise

    def _forget(self, tenant: str, source: SourceRef) -> None:
        """A kept source that nothing can name any more. Jobs do not tell what they were given, so any might."""
        with suppress(X2LError):
            waiting = any(not job.state.final for job in self.queue.jobs(tenant))
            if not waiting and not self.engine.stores.source_in_use(tenant, source.id):
                self.engine.stores.sources.delete(tenant, source)

    async def job(self, tenant: str, job: str, *, wait_s: float = 0.0) -> Job:
        return await ended(self.queue, tenant, job, wait_s=wait_s)

    async def jobs(self, tenant: str) -> Sequence[Job]:
        return await asyncio.to_thread(self.queue.jobs, tenant)

    def job_events(self, tenant: str, job: str, *, after: int = 0) -> AsyncGenerator[JobEvent]:
        return follow(self.queue, tenant, job, after=after)

    async def cancel(self, tenant: str, job: str) -> Job:
        return await asyncio.to_thread(self.queue.cancel, tenant, job)

    async def retry(self, tenant: str, job: str) -> Job:
        return await asyncio.to_thread(self.queue.retry, tenant, job, most_active=self._options.most_jobs)

    # --- videos -----------------------------------------------------------------------------------------------------

    async def videos(self, tenant: str) -> Sequence[Video]:
        records = await asyncio.to_thread(self.engine.videos, tenant=tenant)
        return [video_of(record) for record in newest(records, self.engine.lm.spec.weights)]

    async def video(self, tenant: str, video: str) -> Video:
        return video_of(await self._manifest(tenant, video))

    async def chunks(self, tenant: str, video: str) -> Sequence[Chunk]:
        return [chunk_of(row) for row in (await self._manifest(tenant, video)).chunks]

    async def _manifest(self, tenant: str, video: str) -> Manifest:
        return await asyncio.to_thread(_known, partial(self.engine.manifest, video, tenant=tenant), video)

    async def frame(self, tenant: str, video: str, time_s: float, *, format: str = "jpeg") -> tuple[bytes, float]:
        if format not in FORMATS:
            raise InvalidInput(f"image format {format!r} is not one of {', '.join(FORMATS)}")
        manifest = await self._manifest(tenant, video)

        def shown() -> tuple[bytes, float]:
            frame, shown_s = self.engine.frame(manifest, time_s)
            return encode_image(frame, format), shown_s

        return await asyncio.to_thread(shown)

    async def delete(self, tenant: str, video: str) -> Deleted:
        """Stops the jobs about the video first: one that goes on would bring it back."""
        jobs = await asyncio.to_thread(self.queue.jobs, tenant)
        stopped = [job.id for job in jobs if job.video == video and not job.state.final]
        for job in stopped:
            await self.cancel(tenant, job)
        for job in stopped:
            await self.job(tenant, job, wait_s=_STOP_S)
        try:
            freed = await asyncio.to_thread(_known, partial(self.engine.delete, video, tenant=tenant), video)
        except UnknownVideo:
            if not stopped:
                raise
            freed = 0  # nothing was sealed yet
        return Deleted(video=video, freed_bytes=freed)

    async def estimate(self, tenant: str, request: EstimateRequest) -> Estimate:
        paces = [runner.chunk_s for runner in self._runners if runner.chunk_s is not None]
        return await asyncio.to_thread(self._estimator, request, min(paces, default=None))

    def _repair(self, manifest: Manifest) -> None:
        """Queues what makes again an index whose coarse KVs are gone. Once an epoch, however many ask."""
        if manifest.source is None:
            return
        recipe = manifest.recipe.to_dict()
        work = IndexWork(source=manifest.source, video=manifest.video, recipe=recipe, repair=True)
        key = f"repair/{manifest.video}/{manifest.recipe.digest}/{manifest.epoch}"
        with suppress(X2LError):
            self.queue.submit(manifest.tenant, work.to_dict(), key=key, video=manifest.video)
            metrics.REPAIRS.labels("queued").inc()

    # --- questions --------------------------------------------------------------------------------------------------

    def answers(self, tenant: str, ask: Ask) -> AsyncGenerator[AnswerEvent]:
        return self._asking.answers(tenant, ask)

    async def search(self, tenant: str, request: SearchRequest) -> Found:
        return await asyncio.to_thread(self._search, tenant, request)

    def _search(self, tenant: str, request: SearchRequest) -> Found:
        wanted = request.videos or [
            record.video for record in newest(self.engine.videos(tenant=tenant), self.engine.lm.spec.weights)
        ]
        manifests = []
        for video in wanted:
            try:
                manifests.append(_known(partial(self.engine.manifest, video, tenant=tenant), video))
            except UnknownVideo:
                if request.videos:
                    raise
        hits, skipped = self.engine.search(request.question, manifests, limit=request.limit)
        return Found(
            moments=tuple(Moment(video=hit.video, chunk=hit.chunk, span=hit.span, score=hit.score) for hit in hits),
            searched=len(manifests) - len(skipped),
            skipped={video: type(error).code for video, error in skipped.items()},
        )

    async def open_session(self, tenant: str, videos: Sequence[str]) -> Session:
        for video in videos:
            await self._manifest(tenant, video)
        return await asyncio.to_thread(self.state.sessions.open, tenant, videos)

    async def session(self, tenant: str, session: str) -> Session:
        return await asyncio.to_thread(self.state.sessions.session, tenant, session)

    async def close_session(self, tenant: str, session: str) -> None:
        await asyncio.to_thread(self.state.sessions.forget, tenant, session)

    # --- the service itself -----------------------------------------------------------------------------------------

    async def models(self) -> Sequence[ModelCard]:
        spec = self.engine.lm.spec
        return [ModelCard(id=self._model, weights=spec.weights, max_position=spec.max_position)]

    async def ready(self) -> Readiness:
        amiss = []
        if not self.loop.healthy:
            amiss.append("answering broke down and was given up; restart the service")
        for what, look in (("state", self.engine.videos), ("jobs", self.queue.counts)):
            try:
                await asyncio.to_thread(look)
            except X2LError as error:
                amiss.append(f"{what}: {error}")
        indexing = any(thread.is_alive() for thread in self._threads)
        if self._threads and not indexing:
            amiss.append("no indexer is alive; restart the service")
        return Readiness(model_loaded=True, answering=self.loop.healthy, indexing=indexing, degraded=tuple(amiss))

    def close(self) -> None:
        """Lets answers end for a while; jobs go back into line at their next chunk. May be called twice."""
        for runner in self._runners:
            runner.stop()
        self.loop.close(self._options.drain_s)
        for thread in self._threads:
            thread.join(_STOP_S)
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _known(find: Callable[[], T], video: str) -> T:
    """An id that can be none is that of no video."""
    try:
        return find()
    except InvalidInput:
        raise UnknownVideo(f"no video {video!r} is here") from None
