"""The one :class:`~x2l_cluster.state.jobs.JobQueue`, over any :class:`~x2l_cluster.state.ledger.Ledger`.

A move reads the job, applies its rule, and swaps the new ticket in for the one it read; if somebody was faster it
starts over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from hashlib import blake2b
from threading import Event as Signal
from typing import Any, Final, Self
from uuid import uuid4

import msgpack

from x2l_cluster.errors import (
    IdempotencyConflict,
    InvalidInput,
    JobConflict,
    LeaseLost,
    StoreUnavailable,
    UnknownJob,
    X2LError,
)
from x2l_cluster.messages import Job, JobEvent, JobState, Problem
from x2l_cluster.metrics import JOBS, Reading
from x2l_cluster.state import moves
from x2l_cluster.state.jobs import Lease
from x2l_cluster.state.ledger import Ledger
from x2l_cluster.state.moves import Policy, Ticket
from x2l_cluster.state.tickets import Tickets, name_of
from x2l_cluster.types import check_name

_ATTEMPTS: Final = 100
_DUE: Final = 16
"""Due jobs a lease looks after before it takes one."""
_LOOK_S: Final = 0.5
"""How often a waiting worker looks whether something has become due; nobody tells it of that."""
_MAX_WORK: Final = 64 << 10


class Jobs:
    """Jobs in a ledger. ``clock`` gives seconds since 1970; machines that share a ledger must roughly agree on them."""

    def __init__(self, ledger: Ledger, *, policy: Policy | None = None, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._policy = ledger, policy or Policy()
        self._tickets = Tickets(ledger, history=self._policy.history)
        self._clock = clock
        self._closed = Signal()

    @property
    def durable(self) -> bool:
        return self._ledger.durable

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
        plain = _plain(work)
        if video is not None:
            check_name("video", video)
        # The id is made of the key, so that finding out about a repetition and queueing are one step.
        id = f"job-{uuid4().hex[:24] if key is None else _digest(f'{tenant}/{key}')}"
        name, new = name_of(tenant, id), None
        for _ in range(_ATTEMPTS):
            if old := self._tickets.find(name):
                if (old.ticket.work, old.ticket.priority) != (plain, priority):
                    raise IdempotencyConflict(
                        f"the idempotency key of job {id} was used for another request: take a new one"
                    )
                return old.ticket.job
            new = new or moves.submit(
                tenant=tenant,
                id=id,
                work=plain,
                priority=priority,
                order=self._ledger.count("order"),
                video=video,
                now_s=self._clock(),
            )
            if self._tickets.swap(name, None, new, most_active=most_active):
                with suppress(X2LError):  # the job is accepted; there will be others
                    self._forget_oldest(tenant)
                return new.job
        raise _contended(id)

    def cancel(self, tenant: str, job: str) -> Job:
        return self._change(tenant, job, lambda old: moves.cancel(old, self._policy, self._clock()))

    def retry(self, tenant: str, job: str, *, most_active: int | None = None) -> Job:
        return self._change(tenant, job, lambda old: moves.retry(old, self._clock()), most_active=most_active)

    def job(self, tenant: str, job: str) -> Job:
        return self._tickets.read(name_of(tenant, job)).ticket.job

    def jobs(self, tenant: str, *, limit: int = 1000) -> list[Job]:
        names = self._ledger.names("all", check_name("tenant", tenant), limit=limit, newest=True)
        return [held.ticket.job for _, held in self._tickets.usable(names)]

    def events(self, tenant: str, job: str, *, after: int = 0) -> list[JobEvent]:
        name = name_of(tenant, job)
        return self._tickets.events(name, after) if self._tickets.read(name).ticket.events > after else []

    def watching(self, tenant: str, job: str, notify: Callable[[], None]) -> AbstractContextManager[None]:
        return self._ledger.watching(name_of(tenant, job), notify)

    def counts(self) -> Mapping[JobState, int]:
        (states,) = self._ledger.groups("state")
        return {state: states[state].size if state in states else 0 for state in JobState}

    def gauges(self) -> Iterable[Reading]:
        return [(JOBS, (state.value,), float(count)) for state, count in self.counts().items()]

    # --- of workers -------------------------------------------------------------------------------------------------

    def lease(self, worker: str, *, ttl_s: float, wait_s: float = 0.0) -> Lease | None:
        end_s = time.monotonic() + wait_s
        wake = Signal()
        with ExitStack() as watching:
            if wait_s > 0:
                watching.enter_context(self._ledger.watching("line", wake.set))
            while not self._closed.is_set():
                try:
                    if lease := self._take(worker, ttl_s):
                        return lease
                except StoreUnavailable:
                    if not self._closed.is_set():
                        raise
                    break
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    break
                wake.wait(min(left_s, _LOOK_S))
                wake.clear()
        return None

    def heartbeat(self, lease: Lease) -> Job:
        return self._held(lease, lambda old: moves.heartbeat(old, lease.number, self._clock()))

    def progress(
        self, lease: Lease, *, chunks_done: int, covered_s: float, chunks: int | None = None, video: str | None = None
    ) -> Job:
        if video is not None:
            check_name("video", video)

        def step(old: Ticket) -> Ticket:
            return moves.progress(
                old,
                lease.number,
                self._clock(),
                chunks_done=chunks_done,
                covered_s=covered_s,
                chunks=chunks,
                video=video,
            )

        return self._held(lease, step)

    def finish(self, lease: Lease) -> Job:
        return self._held(lease, lambda old: moves.finish(old, lease.number, self._policy, self._clock()))

    def fail(self, lease: Lease, problem: Problem) -> Job:
        return self._held(lease, lambda old: moves.fail(old, lease.number, self._policy, self._clock(), problem))

    def stop(self, lease: Lease) -> Job:
        return self._held(lease, lambda old: moves.stop(old, lease.number, self._policy, self._clock()))

    def release(self, lease: Lease) -> Job:
        return self._held(lease, lambda old: moves.release(old, lease.number, self._policy, self._clock()))

    # --- housekeeping -----------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        done = 0
        while woken := self._wake(1000):
            done += woken
        return done

    def close(self) -> None:
        self._closed.set()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- machinery --------------------------------------------------------------------------------------------------

    def _take(self, worker: str, ttl_s: float) -> Lease | None:
        self._wake(_DUE)
        for _ in range(_ATTEMPTS):
            (line,) = self._ledger.groups("line")
            if not line:
                break
            tenant = moves.next_tenant(line, *self._ledger.groups("running", "begun"))
            for name, old in self._tickets.usable(self._ledger.names("line", tenant, limit=1)):
                if old.ticket.in_line:
                    number, now_s = self._ledger.count("lease"), self._clock()
                    new = moves.lease(old.ticket, now_s, number=number, worker=worker, ttl_s=ttl_s)
                    if self._tickets.swap(name, old, new):
                        return Lease(
                            tenant=new.tenant, job=new.job, work=new.work, number=number, expires_s=now_s + ttl_s
                        )
        return None

    def _wake(self, most: int) -> int:
        """Does what is due for so many jobs at most; returns for how many."""
        now_s, woken = self._clock(), 0
        for name, old in self._tickets.usable(self._ledger.names("timer", "all", upto=now_s, limit=most)):
            new = moves.wake(old.ticket, self._policy, now_s)
            woken += new is not old.ticket and self._tickets.swap(name, old, new)
        return woken

    def _forget_oldest(self, tenant: str) -> None:
        (ended,) = self._ledger.groups("ended")
        over = ended[tenant].size - self._policy.keep if tenant in ended else 0
        names = self._ledger.names("ended", tenant, limit=min(over, _DUE)) if over > 0 else []
        for name, old in self._tickets.usable(names):
            if old.ticket.job.state.final:  # not retried since
                self._tickets.swap(name, old, None)

    def _change(
        self, tenant: str, job: str, step: Callable[[Ticket], Ticket], *, most_active: int | None = None
    ) -> Job:
        name = name_of(tenant, job)
        for _ in range(_ATTEMPTS):
            old = self._tickets.read(name)
            new = step(old.ticket)
            if new is old.ticket or self._tickets.swap(name, old, new, most_active=most_active):
                return new.job
        raise _contended(job)

    def _held(self, lease: Lease, step: Callable[[Ticket], Ticket]) -> Job:
        try:
            return self._change(lease.tenant, lease.job.id, step)
        except UnknownJob as error:
            raise LeaseLost(f"job {lease.job.id} is forgotten: drop this work") from error


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _plain(work: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        packed = msgpack.packb(work)
        plain: Mapping[str, Any] = msgpack.unpackb(packed)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"this work is not plain data: {error}") from error
    if len(packed) > _MAX_WORK:
        raise InvalidInput(f"this work takes {len(packed)} bytes; at most {_MAX_WORK} are kept")
    return plain


def _contended(job: str) -> JobConflict:
    return JobConflict(f"job {job} changes faster than it can be written to: are two workers fighting?")
