"""The whole service in one process: for a laptop, for tests, and as the plain model of what a cluster does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, Self, TypeVar

from x2l_cluster.engine import AnswerLoop, Limits, Stores, VideoEngine, find_calibration
from x2l_cluster.errors import InvalidInput, UnknownSession, UnknownVideo, X2LError
from x2l_cluster.messages import (
    AnswerEvent,
    Chunk,
    Deleted,
    Estimate,
    Found,
    Job,
    JobEvent,
    ModelCard,
    Readiness,
    Session,
    Video,
)
from x2l_cluster.metrics import LIVE
from x2l_cluster.models import load_model
from x2l_cluster.service import pieces as uploads
from x2l_cluster.service.addresses import Gate
from x2l_cluster.service.asking import Asking
from x2l_cluster.service.catalogue import Catalogue
from x2l_cluster.service.estimate import Estimator
from x2l_cluster.service.fetch import Fetcher
from x2l_cluster.service.heal import heal
from x2l_cluster.service.intake import Intake
from x2l_cluster.service.loop_parts import LoopParts
from x2l_cluster.service.parts import PartAnswerer
from x2l_cluster.service.requests import Ask, EstimateRequest, IndexRequest, SearchRequest
from x2l_cluster.service.runner import JobRunner
from x2l_cluster.state.follow import ended, follow
from x2l_cluster.state.open import State
from x2l_cluster.types import SourceRef, check_name

P = ParamSpec("P")
T = TypeVar("T")
_UPLOADS: Final = 64
"""At a time: each holds a thread that mostly waits for its next piece."""
_SLOW: Final = 8
"""Frames, searches, estimates and deletions at a time; what is quick never waits for them."""
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
        grace_s: how long questions that began over an index that was replaced may go on reading it.
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
    grace_s: float = 5.0
    drain_s: float = 10.0


class LocalService:
    """A :class:`~x2l_cluster.service.base.Service` over one engine. Its threads start at once; close it when done.

    Args:
        engine: answers and indexes; closed with the service.
        state: keeps jobs and sessions; closed with the service.
        model: the name of the model, as users know it.
        parts: who answers; by default an answering loop of this process.
    """

    def __init__(
        self,
        engine: VideoEngine,
        state: State,
        *,
        model: str = "reference",
        options: LocalOptions | None = None,
        parts: PartAnswerer | None = None,
    ) -> None:
        options = options or LocalOptions()
        self.engine, self.state = engine, state
        self._model, self._options = model, options
        self._queue, self._sessions = state.jobs, state.sessions
        LIVE.add(state.jobs)
        self._catalogue = Catalogue(engine)
        self._estimator = Estimator(engine)
        self._intake = Intake(engine, state.jobs, roots=options.roots, most_jobs=options.most_jobs)
        self.loop: AnswerLoop | None = None
        if parts is None:
            self.loop = AnswerLoop(engine.answerer, options.limits)
            parts = LoopParts(engine, self.loop, missing=self._intake.repair)
        self._asking = Asking(parts, state.sessions)
        fetcher = Fetcher(
            Gate(options.fetch_allow), max_bytes=options.max_source_bytes, within_s=options.fetch_within_s
        )
        self._uploads = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="x2l-upload")
        self._slow = ThreadPoolExecutor(_SLOW, thread_name_prefix="x2l-slow")
        self._runners = [
            JobRunner(
                engine,
                state.jobs,
                name=f"indexer-{number}",
                fetcher=fetcher,
                roots=options.roots,
                tenants=state.tenants,
                ttl_s=options.lease_s,
                grace_s=options.grace_s,
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
        options: LocalOptions | None = None,
    ) -> Self:
        """Loads a model and opens its stores; jobs and sessions are kept beside them.

        Raises ModelNotAvailable, UnsupportedModel, InvalidInput, StoreUnavailable.
        """
        lm = load_model(model, device=device, dtype=dtype)
        engine = VideoEngine(lm, Stores.open(store, fine=fine_store), calibration=find_calibration(model, lm))
        return cls.over(engine, store=store, model=model, options=options)

    @classmethod
    def over(
        cls,
        engine: VideoEngine,
        *,
        store: str,
        model: str,
        options: LocalOptions | None = None,
        parts: PartAnswerer | None = None,
    ) -> Self:
        """Over an engine whose stores were opened by this URL."""
        with ExitStack() as opened:
            opened.callback(engine.close)
            state = State.open(store, manifests=engine.stores.state)
            opened.pop_all()
            return cls(engine, state, model=model, options=options, parts=parts)

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def keep(self, tenant: str, pieces: AsyncIterator[bytes], *, name: str | None = None) -> SourceRef:
        check_name("tenant", tenant)
        return await uploads.keep(
            self.engine.stores.sources,
            tenant,
            pieces,
            name=name,
            max_bytes=self._options.max_source_bytes,
            threads=self._uploads,
        )

    async def submit(self, tenant: str, request: IndexRequest) -> Job:
        return await asyncio.to_thread(self._intake.submit, tenant, request)

    async def job(self, tenant: str, job: str, *, wait_s: float = 0.0) -> Job:
        return await ended(self._queue, tenant, job, wait_s=wait_s)

    async def jobs(self, tenant: str) -> Sequence[Job]:
        return await asyncio.to_thread(self._queue.jobs, tenant)

    def job_events(self, tenant: str, job: str, *, after: int = 0) -> AsyncGenerator[JobEvent]:
        return follow(self._queue, tenant, job, after=after)

    async def cancel(self, tenant: str, job: str) -> Job:
        return await asyncio.to_thread(self._queue.cancel, tenant, job)

    async def retry(self, tenant: str, job: str) -> Job:
        return await asyncio.to_thread(self._intake.retry, tenant, job)

    # --- videos -----------------------------------------------------------------------------------------------------

    async def videos(self, tenant: str) -> Sequence[Video]:
        return await asyncio.to_thread(self._catalogue.videos, tenant)

    async def video(self, tenant: str, video: str) -> Video:
        return await asyncio.to_thread(self._catalogue.video, tenant, video)

    async def chunks(self, tenant: str, video: str) -> Sequence[Chunk]:
        return await asyncio.to_thread(self._catalogue.chunks, tenant, video)

    async def frame(self, tenant: str, video: str, time_s: float, *, format: str = "jpeg") -> tuple[bytes, float]:
        return await self._slowly(self._catalogue.frame, tenant, video, time_s, format)

    async def delete(self, tenant: str, video: str) -> Deleted:
        """Stops the jobs about the video first: one that goes on would bring it back."""
        jobs = [job.id for job in await self.jobs(tenant) if job.video == video and not job.state.final]
        for job in jobs:
            await self.cancel(tenant, job)
        for job in jobs:
            await self.job(tenant, job, wait_s=_STOP_S)
        try:
            freed = await self._slowly(self._catalogue.delete, tenant, video)
        except UnknownVideo:
            if not jobs:
                raise
            freed = 0  # nothing was sealed yet
        return Deleted(video=video, freed_bytes=freed)

    async def _slowly(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._slow, partial(work, *args, **kwargs))

    async def estimate(self, tenant: str, request: EstimateRequest) -> Estimate:
        paces = [runner.chunk_s for runner in self._runners if runner.chunk_s is not None]
        return await self._slowly(self._estimator, request, min(paces, default=None))

    # --- questions --------------------------------------------------------------------------------------------------

    def answers(self, tenant: str, ask: Ask) -> AsyncGenerator[AnswerEvent]:
        return self._asking.answers(tenant, ask)

    async def search(self, tenant: str, request: SearchRequest) -> Found:
        return await self._slowly(self._catalogue.search, tenant, request)

    async def open_session(self, tenant: str, videos: Sequence[str]) -> Session:
        for video in videos:
            await self.video(tenant, video)
        return await asyncio.to_thread(self._sessions.open, tenant, videos)

    async def session(self, tenant: str, session: str) -> Session:
        try:
            return await asyncio.to_thread(self._sessions.session, tenant, session)
        except InvalidInput:
            raise UnknownSession(f"no session {session!r} is here") from None

    async def close_session(self, tenant: str, session: str) -> None:
        await self.session(tenant, session)
        await asyncio.to_thread(self._sessions.forget, tenant, session)

    # --- the service itself -----------------------------------------------------------------------------------------

    async def models(self) -> Sequence[ModelCard]:
        spec = self.engine.lm.spec
        return [ModelCard(id=self._model, weights=spec.weights, max_position=spec.max_position)]

    async def ready(self) -> Readiness:
        amiss = []
        answering = self.loop is None or self.loop.healthy
        if not answering:
            amiss.append("answering broke down and was given up; restart the service")
        for what, look in (("state", self.engine.videos), ("jobs", self._queue.counts)):
            try:
                await asyncio.to_thread(look)
            except X2LError as error:
                amiss.append(f"{what}: {error}")
        indexing = any(thread.is_alive() for thread in self._threads)
        if self._threads and not indexing:
            amiss.append("no indexer is alive; restart the service")
        return Readiness(model_loaded=True, answering=answering, indexing=indexing, degraded=tuple(amiss))

    def heal(self) -> int:
        """Queues what makes again fine detail that was in a memory which is gone; see :func:`heal`."""
        return heal(self.engine.lm, self.engine.stores, self.state, self._intake)

    def close(self) -> None:
        """Lets answers end for a while; jobs go back into line at their next chunk. May be called twice."""
        for runner in self._runners:
            runner.stop()
        if self.loop is not None:
            self.loop.close(self._options.drain_s)
        for thread in self._threads:
            thread.join(_STOP_S)
        self._slow.shutdown(cancel_futures=True)
        self._uploads.shutdown(wait=False, cancel_futures=True)  # each ends with the request it belongs to
        self.state.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
