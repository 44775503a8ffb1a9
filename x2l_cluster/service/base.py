"""The seam: everything an HTTP face, a command line or a test can ask of a service, wherever the work is done.

Implementations: :class:`~x2l_cluster.service.local.LocalService` in one process. The tenant comes first in every call;
what belongs to another tenant is unknown, not forbidden, and is answered as fast. Any call may raise StoreUnavailable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

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
from x2l_cluster.service.requests import Ask, EstimateRequest, IndexRequest, SearchRequest
from x2l_cluster.types import SourceRef


class Service(Protocol):
    """Indexes videos and answers questions about them, for many tenants. Safe for many concurrent calls."""

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def keep(self, tenant: str, pieces: AsyncIterator[bytes], *, name: str | None = None) -> SourceRef:
        """Keeps an upload, a piece at a time. An error of ``pieces`` is raised here, and nothing is left then.

        Raises EmptyVideo, SourceTooLarge, StoreUnavailable.
        """
        ...

    async def submit(self, tenant: str, request: IndexRequest) -> Job:
        """Takes on indexing work; durable when this returns. The same idempotency key is the same job.

        Content that is indexed under the recipe already is a job that is ready at once, or very soon; so is a file with
        nothing new that is appended. When it raises, a kept source that nothing else names is gone again.

        Raises InvalidInput, InvalidRecipe, PathRefused, SourceRefused, SourceMissing, IdempotencyConflict,
        QuotaExceeded; of what is appended also UnknownVideo and ModelMismatch.
        """
        ...

    async def job(self, tenant: str, job: str, *, wait_s: float = 0.0) -> Job:
        """How a job stands; with ``wait_s``, as soon as it is final, or after that time. Raises UnknownJob."""
        ...

    async def jobs(self, tenant: str) -> Sequence[Job]:
        """Newest first."""
        ...

    def job_events(self, tenant: str, job: str, *, after: int = 0) -> AsyncIterator[JobEvent]:
        """What has happened since event ``after``, and what happens from now on, each once; ends with a final state.

        The first ``anext`` raises UnknownJob.
        """
        ...

    async def cancel(self, tenant: str, job: str) -> Job:
        """Stops a job at its next chunk boundary; sealed chunks stay. A final job stays as it is. Raises UnknownJob."""
        ...

    async def retry(self, tenant: str, job: str) -> Job:
        """Queues a failed or cancelled job again; it goes on behind what is sealed. Raises UnknownJob, JobConflict."""
        ...

    # --- videos -----------------------------------------------------------------------------------------------------

    async def videos(self, tenant: str) -> Sequence[Video]:
        """By id."""
        ...

    async def video(self, tenant: str, video: str) -> Video:
        """Raises UnknownVideo."""
        ...

    async def chunks(self, tenant: str, video: str) -> Sequence[Chunk]:
        """Raises UnknownVideo."""
        ...

    async def frame(self, tenant: str, video: str, time_s: float, *, format: str = "jpeg") -> tuple[bytes, float]:
        """The frame on screen at a moment of the kept source, as ``jpeg`` or ``png``, and its true time.

        Raises UnknownVideo, SourceMissing, VideoError, InvalidInput.
        """
        ...

    async def delete(self, tenant: str, video: str) -> Deleted:
        """Deletes a video from every store; jobs that work on it publish nothing more. Raises UnknownVideo."""
        ...

    async def estimate(self, tenant: str, request: EstimateRequest) -> Estimate:
        """Raises InvalidRecipe."""
        ...

    # --- questions --------------------------------------------------------------------------------------------------

    def answers(self, tenant: str, ask: Ask) -> AsyncIterator[AnswerEvent]:
        """Events of an answer; see :class:`~x2l_cluster.messages.AnswerCreated`. Closing the iterator stops the work.

        The first ``anext`` raises UnknownSession, QuotaExceeded, Overloaded; whatever concerns one video, an unknown id
        included, fails only its part.
        """
        ...

    async def search(self, tenant: str, request: SearchRequest) -> Found:
        """Ranks moments by the scorer alone, without loading the videos' KVs. Raises UnknownVideo for a named one."""
        ...

    async def open_session(self, tenant: str, videos: Sequence[str]) -> Session:
        """Raises UnknownVideo, InvalidInput, QuotaExceeded."""
        ...

    async def session(self, tenant: str, session: str) -> Session:
        """Raises UnknownSession."""
        ...

    async def close_session(self, tenant: str, session: str) -> None:
        """Raises UnknownSession."""
        ...

    # --- the service itself -----------------------------------------------------------------------------------------

    async def models(self) -> Sequence[ModelCard]: ...

    async def ready(self) -> Readiness:
        """Never raises: what is amiss is said."""
        ...
