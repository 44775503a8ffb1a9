"""A service that answers at once and indexes when told to, for tests of what talks to a service.

Honest about the seam (tenants, ids, errors, events, closing) and nothing else: its answers repeat the question.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from x2l_cluster.errors import (
    EmptyVideo,
    IdempotencyConflict,
    InvalidInput,
    JobConflict,
    PathRefused,
    SourceMissing,
    SourceRefused,
    UnknownJob,
    UnknownSession,
    UnknownVideo,
    X2LError,
)
from x2l_cluster.messages import (
    AnswerCompleted,
    AnswerCreated,
    AnswerDelta,
    AnswerEvent,
    AnswerEvidence,
    AnswerFailed,
    AnswerPlan,
    Chunk,
    Deleted,
    Estimate,
    Found,
    Job,
    JobEvent,
    JobState,
    ModelCard,
    Moment,
    Part,
    Problem,
    Readiness,
    Session,
    Turn,
    Video,
)
from x2l_cluster.service.requests import Ask, EstimateRequest, IndexRequest, SearchRequest
from x2l_cluster.types import (
    Answer,
    Evidence,
    IndexStatus,
    Level,
    PlannedChunk,
    ReloadPlan,
    SourceRef,
    Span,
    Tier,
    Usage,
    check_name,
)

CHUNK_S = 10.0
READY = Readiness(model_loaded=True, answering=True, indexing=True)


class MemoryService:
    """Everything in dictionaries of one event loop. Jobs stand still until :meth:`advance`."""

    def __init__(self) -> None:
        self.sources: dict[tuple[str, str], SourceRef] = {}
        self.all_jobs: dict[str, dict[str, Job]] = defaultdict(dict)
        self.events: dict[str, list[JobEvent]] = defaultdict(list)
        self.all_videos: dict[str, dict[str, Video]] = defaultdict(dict)
        self.sessions: dict[tuple[str, str], Session] = {}
        self.keys: dict[tuple[str, str], tuple[IndexRequest, str]] = {}
        self.asked: list[Ask] = []
        self.failing: Callable[[], Exception | None] = lambda: None
        """What the next calls fail with."""
        self.readiness = READY
        self.held = asyncio.Event()
        self.held.set()
        """While it is not set, answers stand still before their last word."""
        self.reading = asyncio.Event()
        self.reading.set()
        """While it is not set, uploads are not read."""
        self.stopped: list[str] = []
        """Answers and event streams that were closed before their end."""
        self.numbers = itertools.count(1)
        self._changed = asyncio.Condition()

    # --- what tests do ----------------------------------------------------------------------------------------------

    async def advance(self, tenant: str, job: str, **changes: object) -> Job:
        """A worker has done something."""
        now = replace(self.all_jobs[tenant][job], **changes)  # type: ignore[arg-type]
        self.all_jobs[tenant][job] = now
        name = "job.progress" if "chunks_done" in changes and not now.state.final else f"job.{now.state}"
        self.events[job].append(JobEvent(number=len(self.events[job]) + 1, name=name, job=now))
        if now.state is JobState.READY and now.video:
            self.add(tenant, now.video)
        async with self._changed:
            self._changed.notify_all()
        return now

    def add(self, tenant: str, video: str, chunks: int = 3) -> Video:
        """A video that is indexed."""
        self.all_videos[tenant][video] = Video(
            id=video,
            status=IndexStatus.READY,
            name=f"{video}.mp4",
            duration_s=CHUNK_S * chunks,
            width=64,
            height=48,
            covered=Span(start_s=0, end_s=CHUNK_S * chunks),
            chunks=chunks,
            recipe="0123456789abcdef",
            revision=1,
            source_bytes=1000,
            stored_bytes=1000 * chunks,
        )
        return self.all_videos[tenant][video]

    def _may_fail(self) -> None:
        error = self.failing()
        if error is not None:
            raise error

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def keep(self, tenant: str, pieces: AsyncIterator[bytes], *, name: str | None = None) -> SourceRef:
        digest, size = hashlib.sha256(), 0
        async for piece in pieces:
            await self.reading.wait()
            digest.update(piece)
            size += len(piece)
        if not size:
            raise EmptyVideo("the upload is empty (0 bytes); upload it again")
        ref = SourceRef(id=digest.hexdigest(), name=name or "upload", size_bytes=size)
        self.sources[tenant, ref.id] = ref
        return ref

    async def submit(self, tenant: str, request: IndexRequest) -> Job:
        try:
            self._may_fail()
            return await self._submit(tenant, request)
        except X2LError:
            if request.source:
                self.sources.pop((tenant, request.source.id), None)
            raise

    async def _submit(self, tenant: str, request: IndexRequest) -> Job:
        if request.path is not None and not request.path.startswith("/videos/"):
            raise PathRefused("only files below /videos are read")
        if request.url is not None and "://10." in request.url:
            raise SourceRefused("that address is private")
        if request.idempotency_key is not None:
            before, job = self.keys.get((tenant, request.idempotency_key), (request, None))
            if before != request:
                raise IdempotencyConflict(f"idempotency key {request.idempotency_key} was used for another video")
            if job is not None:
                return self.all_jobs[tenant][job]
        if request.reindex is not None:
            await self.video(tenant, request.reindex)
        number = next(self.numbers)
        video = request.video or request.reindex or (request.source and f"v-{request.source.id[:16]}")
        job = f"j-{number}"
        self.all_jobs[tenant][job] = Job(
            id=job, state=JobState.QUEUED, video=video, created_s=float(number), updated_s=float(number)
        )
        if request.idempotency_key is not None:
            self.keys[tenant, request.idempotency_key] = (request, job)
        return await self.advance(tenant, job)

    async def job(self, tenant: str, job: str, *, wait_s: float = 0.0) -> Job:
        self._may_fail()
        found = self._job(tenant, job)
        if wait_s:
            async with self._changed:
                waiting = self._changed.wait_for(lambda: self._job(tenant, job).state.final)
                try:
                    await asyncio.wait_for(waiting, wait_s)
                except TimeoutError:
                    pass
                except asyncio.CancelledError:
                    self.stopped.append(job)
                    raise
        return self.all_jobs[tenant].get(job, found)

    def _job(self, tenant: str, job: str) -> Job:
        try:
            return self.all_jobs[tenant][job]
        except KeyError:
            raise UnknownJob(f"there is no job {job}") from None

    async def jobs(self, tenant: str) -> Sequence[Job]:
        self._may_fail()
        return list(self.all_jobs[tenant].values())[::-1]

    async def job_events(self, tenant: str, job: str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        self._job(tenant, job)
        told = after

        def news() -> bool:
            return len(self.events[job]) > told or self._job(tenant, job).state.final

        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(news)
                for event in self.events[job][told:]:
                    told = event.number
                    yield event
                if self._job(tenant, job).state.final and told >= len(self.events[job]):
                    return
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped.append(job)
            raise

    async def cancel(self, tenant: str, job: str) -> Job:
        found = self._job(tenant, job)
        return found if found.state.final else await self.advance(tenant, job, state=JobState.CANCELLED)

    async def retry(self, tenant: str, job: str) -> Job:
        if self._job(tenant, job).state not in (JobState.FAILED, JobState.CANCELLED):
            raise JobConflict(f"job {job} has neither failed nor been cancelled")
        return await self.advance(tenant, job, state=JobState.QUEUED)

    # --- videos -----------------------------------------------------------------------------------------------------

    async def videos(self, tenant: str) -> Sequence[Video]:
        self._may_fail()
        return sorted(self.all_videos[tenant].values(), key=lambda video: video.id)

    async def video(self, tenant: str, video: str) -> Video:
        check_name("video id", video)
        try:
            return self.all_videos[tenant][video]
        except KeyError:
            raise UnknownVideo(f"no video {video} is indexed") from None

    async def chunks(self, tenant: str, video: str) -> Sequence[Chunk]:
        known = await self.video(tenant, video)
        return [
            Chunk(
                index=i,
                span=Span(start_s=i * CHUNK_S, end_s=(i + 1) * CHUNK_S),
                frames=16,
                fine_bytes=1000,
                coarse_bytes=100,
                score_bytes=10,
                full_entries=500,
            )
            for i in range(known.chunks)
        ]

    async def frame(self, tenant: str, video: str, time_s: float, *, format: str = "jpeg") -> tuple[bytes, float]:
        known = await self.video(tenant, video)
        if known.source_bytes is None:
            raise SourceMissing(f"the source of {video} is not kept")
        return b"\xff\xd8 picture of " + tenant.encode(), min(time_s, known.duration_s)

    async def delete(self, tenant: str, video: str) -> Deleted:
        await self.video(tenant, video)
        del self.all_videos[tenant][video]
        return Deleted(video=video, freed_bytes=3330)

    async def estimate(self, tenant: str, request: EstimateRequest) -> Estimate:
        chunks = int(request.duration_s / 16) + 1
        return Estimate(
            duration_s=request.duration_s,
            frames=16 * chunks,
            chunks=chunks,
            tokens=100 * chunks,
            fine_bytes=1000 * chunks,
            coarse_bytes=100 * chunks,
            score_bytes=10 * chunks,
            full_bytes=2000 * chunks,
            tiers={"disk": 1110 * chunks},
            device_bytes=100 * chunks,
            index_s=None,
        )

    # --- questions --------------------------------------------------------------------------------------------------

    async def answers(self, tenant: str, ask: Ask) -> AsyncIterator[AnswerEvent]:
        self._may_fail()
        session = await self.session(tenant, ask.session) if ask.session else None
        self.asked.append(ask)
        videos = ask.videos or (session.videos if session else ())
        number = f"a-{next(self.numbers)}"
        parts = [Part(id=f"p{i}", video=video) for i, video in enumerate(videos)]
        if ask.synthesis:
            parts.append(Part(id="all", video=None))
        said: dict[str, str] = {}
        try:
            yield AnswerCreated(id=number, parts=tuple(parts))
            for part in parts:
                async for event in self._part(tenant, ask, part):
                    if isinstance(event, AnswerCompleted) and part.video:
                        said[part.video] = event.text
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped.append(number)
            raise
        if session:
            turns = (*session.turns, Turn(question=ask.question, answers=said))
            self.sessions[tenant, session.id] = replace(session, turns=turns)

    async def _part(self, tenant: str, ask: Ask, part: Part) -> AsyncIterator[AnswerEvent]:
        words = ["You", " asked:", f" {ask.question}"]
        if part.video is None:
            for word in words:
                yield AnswerDelta(part=part.id, text=word)
            yield AnswerCompleted(part=part.id, text="".join(words))
            return
        try:
            video = await self.video(tenant, part.video)
        except X2LError as error:
            yield AnswerFailed(part=part.id, problem=Problem.of(error))
            return
        span = Span(start_s=0, end_s=CHUNK_S)
        chunk = PlannedChunk(chunk=0, span=span, level=Level.L, score=1.5, reason="score", size_bytes=1000)
        plan = ReloadPlan(chunks=(chunk,), scorer=ask.scorer, detail=ask.detail)
        evidence = (Evidence(chunk=0, span=span, level=Level.L, score=1.5, tier=Tier.DISK, size_bytes=1000),)
        yield AnswerPlan(part=part.id, plan=plan, covered=video.covered)
        for word in words[:-1]:
            yield AnswerDelta(part=part.id, text=word)
        await self.held.wait()
        yield AnswerDelta(part=part.id, text=words[-1])
        yield AnswerEvidence(part=part.id, evidence=evidence)
        usage = Usage(
            prompt_tokens=7, answer_tokens=3, kv_entries=50, full_entries=500, reload_bytes=1000, full_bytes=9000
        )
        text = "".join(words)
        answer = Answer(
            text=text, video=part.video, plan=plan, evidence=evidence, usage=usage, timings={"decode_s": 0.1}
        )
        yield AnswerCompleted(part=part.id, text=text, answer=answer)

    async def search(self, tenant: str, request: SearchRequest) -> Found:
        videos = request.videos or tuple(sorted(self.all_videos[tenant]))
        for video in videos:
            await self.video(tenant, video)
        span = Span(start_s=0, end_s=CHUNK_S)
        moments = tuple(Moment(video=video, chunk=0, span=span, score=0.5) for video in videos)
        return Found(moments=moments[: request.limit], searched=len(videos))

    async def open_session(self, tenant: str, videos: Sequence[str]) -> Session:
        for video in videos:
            await self.video(tenant, video)
        if not videos:
            raise InvalidInput("a session is about at least one video")
        session = Session(id=f"s-{next(self.numbers)}", videos=tuple(videos), expires_s=4e9)
        self.sessions[tenant, session.id] = session
        return session

    async def session(self, tenant: str, session: str) -> Session:
        try:
            return self.sessions[tenant, session]
        except KeyError:
            raise UnknownSession(f"there is no session {session}") from None

    async def close_session(self, tenant: str, session: str) -> None:
        await self.session(tenant, session)
        del self.sessions[tenant, session]

    # --- the service itself -----------------------------------------------------------------------------------------

    async def models(self) -> Sequence[ModelCard]:
        return [ModelCard(id="tiny", weights="tiny0", max_position=4096)]

    async def ready(self) -> Readiness:
        return self.readiness
