"""A service whose work is done elsewhere: takes jobs on, looks up, passes questions on. Loads no model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, Self, TypeVar

from x2l_cluster.errors import InvalidInput, Overloaded, UnknownSession, UnknownVideo, X2LError
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
from x2l_cluster.service import pieces as uploads
from x2l_cluster.service.asking import Asking
from x2l_cluster.service.catalogue import Catalogue
from x2l_cluster.service.estimate import estimated, sample_size
from x2l_cluster.service.heal import heal
from x2l_cluster.service.intake import Intake
from x2l_cluster.service.parts import PartAnswerer
from x2l_cluster.service.requests import Ask, EstimateRequest, IndexRequest, SearchRequest
from x2l_cluster.service.workers import Workers
from x2l_cluster.state.follow import ended, follow
from x2l_cluster.state.open import State
from x2l_cluster.stores import Stores
from x2l_cluster.types import LOCAL_TENANT, SourceRef, check_name, recipe_fields

P = ParamSpec("P")
T = TypeVar("T")
_UPLOADS: Final = 64
"""At a time: each holds a thread that mostly waits for its next piece."""
_SLOW: Final = 8
"""Frames and deletions at a time; what is quick never waits for them."""
STOP_S: Final = 30.0
"""How long a deletion waits for a job that works on the video to stop at its next chunk."""
_LOOK_S: Final = 2.0
"""A store that does not answer a look within that is amiss; Kubernetes waits a second longer for the whole probe."""
_FACTS_S: Final = 0.5
"""What a look-up waits, once, for whoever has the model to say which one it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions:
    """What a service takes on.

    Attributes:
        roots: folders that jobs may read files from.
        most_jobs: of one tenant that have not ended.
        max_source_bytes: of one upload or fetched video.
    """

    roots: tuple[Path, ...] = ()
    most_jobs: int | None = None
    max_source_bytes: int = 16 << 30


class FrontService:
    """A :class:`~x2l_cluster.service.base.Service` in front of workers, wherever they are.

    Args:
        stores: blocks, manifests and sources; closed with the service.
        state: keeps jobs and sessions; closed with the service.
        model: the name of the model, as users know it.
        parts: who answers.
        workers: who has the model.
    """

    def __init__(
        self,
        stores: Stores,
        state: State,
        *,
        model: str,
        parts: PartAnswerer,
        workers: Workers,
        options: FrontOptions = FrontOptions(),
    ) -> None:
        self.stores, self.state = stores, state
        self._model, self._options, self._workers = model, options, workers
        self._queue, self._sessions = state.jobs, state.sessions
        self._catalogue = Catalogue(stores)
        self._intake = Intake(
            stores, state.jobs, model=lambda: workers.known, roots=options.roots, most_jobs=options.most_jobs
        )
        self._asking = Asking(parts, state.sessions)
        self._uploads = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="x2l-upload")
        self._slow = ThreadPoolExecutor(_SLOW, thread_name_prefix="x2l-slow")
        self._looks = ThreadPoolExecutor(3, thread_name_prefix="x2l-look")

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def keep(self, tenant: str, pieces: AsyncIterator[bytes], *, name: str | None = None) -> SourceRef:
        check_name("tenant", tenant)
        return await uploads.keep(
            self.stores.sources,
            tenant,
            pieces,
            name=name,
            max_bytes=self._options.max_source_bytes,
            threads=self._uploads,
        )

    async def submit(self, tenant: str, request: IndexRequest) -> Job:
        await self._weights()
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
        return await asyncio.to_thread(self._catalogue.videos, tenant, await self._weights())

    async def video(self, tenant: str, video: str) -> Video:
        return await asyncio.to_thread(self._catalogue.video, tenant, video, await self._weights())

    async def chunks(self, tenant: str, video: str) -> Sequence[Chunk]:
        return await asyncio.to_thread(self._catalogue.chunks, tenant, video, await self._weights())

    async def frame(self, tenant: str, video: str, time_s: float, *, format: str = "jpeg") -> tuple[bytes, float]:
        return await self._slowly(self._catalogue.frame, tenant, video, await self._weights(), time_s, format)

    async def delete(self, tenant: str, video: str) -> Deleted:
        """Stops the jobs about the video first: one that goes on would bring it back."""
        jobs = [job.id for job in await self.jobs(tenant) if job.video == video and not job.state.final]
        for job in jobs:
            await self.cancel(tenant, job)
        for job in jobs:
            await self.job(tenant, job, wait_s=STOP_S)
        await self._workers.forget(tenant, video)
        try:
            freed = await self._slowly(self._catalogue.delete, tenant, video)
        except UnknownVideo:
            if not jobs:
                raise
            freed = 0  # nothing was sealed yet
        finally:
            await self._workers.forget(tenant, video)  # what a question that ran beside it may have put back
        return Deleted(video=video, freed_bytes=freed)

    async def estimate(self, tenant: str, request: EstimateRequest) -> Estimate:
        model = await self._workers.facts()
        recipe = model.recipe(**recipe_fields(request.recipe))
        sample = await self._workers.sample(recipe, *sample_size(recipe, request.width, request.height))
        chunk_s = (await self._workers.pulse()).chunk_s
        return estimated(request, recipe, model=model, sample=sample, kv=self.stores.kv, chunk_s=chunk_s)

    async def _weights(self) -> str | None:
        """Of the model, once somebody has said which it is."""
        known = self._workers.known
        if known is None:
            with suppress(TimeoutError, Overloaded):
                known = await asyncio.wait_for(self._workers.facts(), _FACTS_S)
        return known.spec.weights if known else None

    async def _slowly(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._slow, partial(work, *args, **kwargs))

    # --- questions --------------------------------------------------------------------------------------------------

    def answers(self, tenant: str, ask: Ask) -> AsyncGenerator[AnswerEvent]:
        return self._asking.answers(tenant, ask)

    async def search(self, tenant: str, request: SearchRequest) -> Found:
        return await self._workers.search(tenant, request)

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
        spec = (await self._workers.facts()).spec
        return [ModelCard(id=self._model, weights=spec.weights, max_position=spec.max_position)]

    async def ready(self) -> Readiness:
        """Questions are answered without fine blocks, but not without manifests."""
        pulse, state, jobs, kv = await asyncio.gather(
            self._workers.pulse(),
            self._amiss("state", self.stores.state.find, LOCAL_TENANT, "nothing"),
            self._amiss("jobs", self._queue.counts),
            self._amiss("kv", lambda: list(self.stores.kv.keys(LOCAL_TENANT, "nothing"))),
        )
        return Readiness(
            model_loaded=pulse.loaded,
            answering=pulse.answering and state is None,
            indexing=pulse.indexing and state is None and jobs is None,
            degraded=(*pulse.amiss, *(told for told in (state, jobs, kv) if told is not None)),
        )

    async def _amiss(self, what: str, look: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> str | None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.run_in_executor(self._looks, partial(look, *args, **kwargs)), _LOOK_S)
        except TimeoutError:
            return f"{what}: does not answer"
        except X2LError as error:
            return f"{what}: {error}"
        return None

    def heal(self) -> int:
        """Queues what makes again fine detail that was in a memory which is gone; see :func:`heal`. Raises Overloaded
        while the model is not known."""
        model = self._workers.known
        if model is None:
            raise Overloaded("nobody has loaded the model yet")
        return heal(model.spec.weights, self.stores, self.state)

    def close(self) -> None:
        """What is accepted is durable already. May be called twice."""
        self._looks.shutdown(wait=False, cancel_futures=True)
        self._slow.shutdown(cancel_futures=True)
        self._uploads.shutdown(wait=False, cancel_futures=True)  # each ends with the request it belongs to
        self.state.close()
        self.stores.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
