"""The seam to the queue: durable work, done by whoever holds its lease.

A worker goes ``lease → progress, heartbeat, … → finish | fail | stop | release``. A lease has a **number** above all
earlier ones and runs out if it is not renewed; then the job is in line again, and whatever its old holder still says of
it is refused with LeaseLost. Everything may happen more than once and is done once.

The states and moves of a job are drawn in :mod:`~x2l_cluster.state.moves`; the one implementation,
:mod:`~x2l_cluster.state.queue`, lives over any :class:`~x2l_cluster.state.ledger.Ledger`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Self

from x2l_cluster.messages import Job, JobEvent, JobState, Problem
from x2l_cluster.metrics import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on a job until ``expires_s``, or later if renewed. ``job`` is as it was when leased."""

    tenant: str
    job: Job
    work: Mapping[str, Any]
    number: int
    expires_s: float


class JobQueue(Protocol):
    """Keeps jobs. Every move is atomic, and on its way to whoever watches when it returns.

    The tenant is part of every key: another tenant's job is unknown, not forbidden. Safe to use from several threads,
    and by several processes where the place is shared. Any method may raise StoreUnavailable, StoreFull or
    RecordCorrupt.
    """

    @property
    def durable(self) -> bool:
        """Whether a job that was submitted outlives a restart of the machine."""
        ...

    # --- from outside -----------------------------------------------------------------------------------------------

    def submit(
        self,
        tenant: str,
        work: Mapping[str, Any],
        *,
        key: str | None = None,
        priority: int = 0,
        video: str | None = None,
        most_active: int | None = None,
    ) -> Job:
        """Queues work (plain data, as JSON has it). The same idempotency key with the same work is the same job.

        Raises:
            IdempotencyConflict: the key was used for other work.
            QuotaExceeded: the tenant has ``most_active`` jobs that have not ended.
            InvalidInput: the work is not plain data, or too large.
        """
        ...

    def cancel(self, tenant: str, job: str) -> Job:
        """A queued job at once; a running one when its worker looks next. An ended one stays. Raises UnknownJob."""
        ...

    def retry(self, tenant: str, job: str, *, most_active: int | None = None) -> Job:
        """Queues a failed or cancelled job again, at its old place. Raises UnknownJob, JobConflict, QuotaExceeded."""
        ...

    def job(self, tenant: str, job: str) -> Job:
        """Raises UnknownJob."""
        ...

    def jobs(self, tenant: str, *, limit: int = 1000) -> list[Job]:
        """Newest first."""
        ...

    def events(self, tenant: str, job: str, *, after: int = 0) -> list[JobEvent]:
        """What has happened since event ``after``. Numbers have no gaps, but of a long history the oldest part is
        dropped; the newest event is always there. Raises UnknownJob."""
        ...

    def watching(self, tenant: str, job: str, notify: Callable[[], None]) -> AbstractContextManager[None]:
        """While entered, ``notify`` is called after every change of the job, from any thread; it must not block.

        Enter, then look, then wait; and look once in a while all the same, since a call can be lost with a connection.
        """
        ...

    def counts(self) -> Mapping[JobState, int]:
        """Jobs of all tenants by state: how deep the queue is."""
        ...

    def gauges(self) -> Iterable[Reading]:
        """The same as metrics: whoever answers for the queue adds it to :data:`x2l_cluster.metrics.LIVE`, once."""
        ...

    # --- of workers -------------------------------------------------------------------------------------------------

    def lease(self, worker: str, *, ttl_s: float, wait_s: float = 0.0) -> Lease | None:
        """The next job, for ``ttl_s`` unless renewed; None when ``wait_s`` (or this queue's life) ended without one.

        Tenants take turns: whoever has the fewest jobs running goes first, then whose last one began longest ago. Of
        one tenant, higher priorities go first, then older jobs.
        """
        ...

    def heartbeat(self, lease: Lease) -> Job:
        """Renews. If the job is ``cancelling`` now, the worker stops at the next chunk boundary. Raises LeaseLost."""
        ...

    def progress(
        self, lease: Lease, *, chunks_done: int, covered_s: float, chunks: int | None = None, video: str | None = None
    ) -> Job:
        """As :meth:`heartbeat`, and says how far the job is. Never takes back what was said.

        Raises LeaseLost, and JobConflict when the job is about another video.
        """
        ...

    def finish(self, lease: Lease) -> Job:
        """The work is done. Raises LeaseLost."""
        ...

    def fail(self, lease: Lease, problem: Problem) -> Job:
        """It did not work out. What is retryable is queued again after a while, unless that was tried too often.

        Raises LeaseLost.
        """
        ...

    def stop(self, lease: Lease) -> Job:
        """The worker stopped because the job is ``cancelling``. Raises LeaseLost, JobConflict if nobody asked."""
        ...

    def release(self, lease: Lease) -> Job:
        """The worker has to go: the job is in line again, and this attempt does not count. Raises LeaseLost."""
        ...

    # --- housekeeping -----------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Does all that is due: leases that ran out, waits that are over, ended jobs to forget. Returns how many.

        Every :meth:`lease` does a little of it, so this is needed only where nobody leases.
        """
        ...

    def close(self) -> None:
        """Lets go of connections and files; who waits in :meth:`lease` returns. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
