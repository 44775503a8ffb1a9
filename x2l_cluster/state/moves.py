"""What each move makes of a job: the rules of the queue, as pure functions.

::

    ─ a submit ─▶ QUEUED ────────────── b lease ─────────────▶ RUNNING ── c finish ─▶ READY
                  ▲ ▲  └─ f cancel ─▶ CANCELLED ◀── g stop ────┘  │ └─ h fail, too often begun ─▶ FAILED
                  │ └── d release, lost lease; e fail for now ────┘                                 │
                  └──────────────────── i retry (CANCELLED, FAILED) ────────────────────────────────┘

Heartbeat and progress leave a job RUNNING, and so does its cancelling, which only asks: the worker stops (g) at the
next chunk boundary. Once asked, d and e are g as well. After e a job waits first. It fails (h) for good, or when it was
begun too often without a new chunk; what was tried in vain because a store did not do its work does not count.

A job waits either *in line* (a worker takes it when it is its turn) or *until* a moment, ``wake_s``; of a running job
that is when the lease runs out, of an ended one when it is forgotten. :func:`wake` does what that moment asks for.

A move that changes nothing returns the very ticket it was given. Whoever makes a move of a worker's shows the number of
its lease; if that is not the latest, or the job does not run any more, the move is refused with LeaseLost, whatever it
was. Ending a job again with the same lease changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from x2l_cluster.errors import JobAbandoned, JobConflict, LeaseLost, StoreFull, StoreUnavailable, error_class
from x2l_cluster.messages import Job, JobState, Problem
from x2l_cluster.state.ledger import Group

_MOST_DETAIL: Final = 4096
"""Characters of a problem that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How patient a queue is.

    Attributes:
        most_strikes: a job that was begun so often in a row without sealing a chunk has failed.
        backoff_s: how long the second try waits after a retryable problem; the next one twice as long, and so on.
        outage_cap_s: how long a try waits at most for a store that does not do its work: nobody tells when it does.
        keep_s, keep: how long, and how many of each tenant, ended jobs can be asked for.
        history: events kept of a job.
    """

    most_strikes: int = 5
    backoff_s: float = 1.0
    backoff_cap_s: float = 300.0
    outage_cap_s: float = 30.0
    keep_s: float = 7 * 86400.0
    keep: int = 1000
    history: int = 4096

    def backoff(self, strikes: int) -> float:
        return float(min(self.backoff_s * 2 ** min(max(strikes, 1) - 1, 64), self.backoff_cap_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A job with all the queue knows of it.

    Attributes:
        work: what is to be done, plain data.
        order: grows with every submission.
        events: number of the last event.
        lease: number of the latest lease; grows with every lease of any job.
        strikes: how often begun since the last sealed chunk, in a way that the job may be to blame for.
        outages: how often in a row it was a store that did not do its work.
    """

    tenant: str
    job: Job
    work: Mapping[str, Any]
    priority: int
    order: int
    events: int = 0
    lease: int = 0
    worker: str | None = None
    ttl_s: float = 0.0
    wake_s: float | None = None
    strikes: int = 0
    outages: int = 0

    @property
    def in_line(self) -> bool:
        return self.job.state is JobState.QUEUED and self.wake_s is None


# --- from outside ---------------------------------------------------------------------------------------------------


def submit(
    *, tenant: str, id: str, work: Mapping[str, Any], priority: int, order: int, video: str | None, now_s: float
) -> Ticket:
    job = Job(id=id, state=JobState.QUEUED, video=video, created_s=now_s, updated_s=now_s)
    return Ticket(tenant=tenant, job=job, work=work, priority=priority, order=order, events=1)


def cancel(old: Ticket, policy: Policy, now_s: float) -> Ticket:
    match old.job.state:
        case JobState.QUEUED:
            return _end(old, policy, now_s, JobState.CANCELLED)
        case JobState.RUNNING if not old.job.cancelling:
            return _moved(old, now_s, cancelling=True)
    return old


def retry(old: Ticket, now_s: float) -> Ticket:
    if old.job.state not in (JobState.FAILED, JobState.CANCELLED):
        raise JobConflict(f"job {old.job.id} is {old.job.state}: only a failed or cancelled one can be tried again")
    return replace(_moved(old, now_s, state=JobState.QUEUED, problem=None), wake_s=None, strikes=0, outages=0)


# --- of workers -----------------------------------------------------------------------------------------------------


def lease(old: Ticket, now_s: float, *, number: int, worker: str, ttl_s: float) -> Ticket:
    if not old.in_line:
        raise JobConflict(f"job {old.job.id} is {old.job.state}, or waits: nobody can take it now")
    moved = _moved(old, now_s, state=JobState.RUNNING, attempts=old.job.attempts + 1)
    return replace(moved, lease=number, worker=worker, ttl_s=ttl_s, wake_s=now_s + ttl_s, strikes=old.strikes + 1)


def heartbeat(old: Ticket, number: int, now_s: float) -> Ticket:
    _check_lease(old, number)
    return replace(old, wake_s=now_s + old.ttl_s)


def progress(
    old: Ticket, number: int, now_s: float, *, chunks_done: int, covered_s: float, chunks: int | None, video: str | None
) -> Ticket:
    """Also renews. What is less than was said before is not believed; another video is refused."""
    _check_lease(old, number)
    job = old.job
    if video is not None and job.video not in (None, video):
        raise JobConflict(f"job {job.id} is about video {job.video}, not {video}")
    new = replace(
        job,
        chunks_done=max(job.chunks_done, chunks_done),
        covered_s=max(job.covered_s, covered_s),
        chunks=job.chunks if chunks is None else chunks,
        video=job.video or video,
    )
    moved = old if new == job else _moved(replace(old, job=new), now_s)
    moved = replace(moved, wake_s=now_s + old.ttl_s)
    return replace(moved, strikes=0, outages=0) if new.chunks_done > job.chunks_done else moved


def finish(old: Ticket, number: int, policy: Policy, now_s: float) -> Ticket:
    if _ended_by(old, number, JobState.READY):
        return old
    _check_lease(old, number)
    return _end(old, policy, now_s, JobState.READY, problem=None)


def stop(old: Ticket, number: int, policy: Policy, now_s: float) -> Ticket:
    if _ended_by(old, number, JobState.CANCELLED):
        return old
    _check_lease(old, number)
    if not old.job.cancelling:
        raise JobConflict(f"nobody asked job {old.job.id} to stop: release it instead")
    return _end(old, policy, now_s, JobState.CANCELLED)


def fail(old: Ticket, number: int, policy: Policy, now_s: float, problem: Problem) -> Ticket:
    if _ended_by(old, number, JobState.FAILED):
        return old
    _check_lease(old, number)
    # Names of files and words of other programs: whatever is in them, the job can fail with them.
    detail = problem.detail[:_MOST_DETAIL].encode(errors="replace").decode()
    problem = replace(problem, detail=detail)
    pause_s = policy.backoff(old.strikes)
    if issubclass(error_class(problem.code), StoreUnavailable | StoreFull):  # for as long as that takes
        old = replace(old, strikes=max(old.strikes - 1, 0), outages=old.outages + 1)
        pause_s = min(policy.backoff(old.outages), policy.outage_cap_s)
    elif not problem.retryable or (old.strikes >= policy.most_strikes and not old.job.cancelling):
        return _end(old, policy, now_s, JobState.FAILED, problem=problem)
    if old.job.cancelling:
        return _end(old, policy, now_s, JobState.CANCELLED, problem=problem)
    pause_s = max(pause_s, problem.retry_after_s or 0.0)
    return replace(_moved(old, now_s, state=JobState.QUEUED, problem=problem), worker=None, wake_s=now_s + pause_s)


def release(old: Ticket, number: int, policy: Policy, now_s: float) -> Ticket:
    """The attempt does not count: the worker had to go, the job is not to blame."""
    _check_lease(old, number)
    if old.job.cancelling:
        return _end(old, policy, now_s, JobState.CANCELLED)
    moved = _moved(old, now_s, state=JobState.QUEUED, attempts=old.job.attempts - 1)
    return replace(moved, worker=None, wake_s=None, strikes=max(old.strikes - 1, 0))


# --- of time --------------------------------------------------------------------------------------------------------


def wake(old: Ticket, policy: Policy, now_s: float) -> Ticket | None:
    """What is due at ``wake_s``; None: the job is forgotten."""
    if old.wake_s is None or old.wake_s > now_s:
        return old
    if old.job.state.final:
        return None
    if old.job.state is JobState.QUEUED:
        return replace(old, wake_s=None)
    if old.job.cancelling:
        return _end(old, policy, now_s, JobState.CANCELLED)
    if old.strikes >= policy.most_strikes:
        gone = JobAbandoned(
            f"job {old.job.id} was begun {old.strikes} times without a new chunk, last by {old.worker}, which was "
            "heard of no more: look at the workers' logs, then retry it"
        )
        return _end(old, policy, now_s, JobState.FAILED, problem=Problem.of(gone))
    return replace(_moved(old, now_s, state=JobState.QUEUED), worker=None, wake_s=None)


# --- where a job stands ---------------------------------------------------------------------------------------------


def marks(ticket: Ticket) -> Iterator[tuple[tuple[str, str], float]]:
    """The groups of the ledger a job stands in."""
    tenant, state = ticket.tenant, ticket.job.state
    yield ("all", tenant), ticket.order
    yield ("state", state), ticket.order
    yield ("ended", tenant) if state.final else ("active", tenant), ticket.order
    if ticket.in_line:
        yield ("line", tenant), ticket.order - ticket.priority * float(1 << 40)
    if ticket.wake_s is not None:
        yield ("timer", "all"), ticket.wake_s
    if state is JobState.RUNNING:
        yield ("running", tenant), ticket.lease
    if ticket.lease:
        yield ("begun", tenant), ticket.lease


def next_tenant(line: Mapping[str, Group], running: Mapping[str, Group], begun: Mapping[str, Group]) -> str:
    """Whose turn it is, of those in line: who has the fewest jobs running, then whose last one began longest ago."""

    def turn(tenant: str) -> tuple[int, float, str]:
        now, last = running.get(tenant), begun.get(tenant)
        return (now.size if now else 0, last.last if last else 0.0, tenant)

    return min(line, key=turn)


def event_name(old: Ticket | None, new: Ticket) -> str:
    changed = old is None or old.job.state is not new.job.state
    return f"job.{new.job.state}" if changed else "job.progress"


# --- machinery ------------------------------------------------------------------------------------------------------


def _moved(old: Ticket, now_s: float, **changes: Any) -> Ticket:
    """A change that those who look at the job see: it is an event, with the next number."""
    return replace(old, job=replace(old.job, updated_s=now_s, **changes), events=old.events + 1)


def _end(old: Ticket, policy: Policy, now_s: float, state: JobState, **changes: Any) -> Ticket:
    moved = _moved(old, now_s, state=state, cancelling=False, **changes)
    return replace(moved, worker=None, wake_s=now_s + policy.keep_s)


def _ended_by(old: Ticket, number: int, state: JobState) -> bool:
    return old.job.state is state and old.lease == number


def _check_lease(old: Ticket, number: int) -> None:
    if old.job.state is not JobState.RUNNING or old.lease != number:
        raise LeaseLost(f"job {old.job.id} is {old.job.state} and not leased under number {number}: drop this work")
