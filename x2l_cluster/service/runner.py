"""Doing jobs: lease, fetch, index, and say how it went. One runner a thread; any number over one queue."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from x2l_cluster import metrics
from x2l_cluster.engine import Progress, VideoEngine
from x2l_cluster.errors import (
    Cancelled,
    KVError,
    LeaseLost,
    QuotaExceeded,
    StaleEpoch,
    StateError,
    UnknownVideo,
    VideoError,
    X2LError,
)
from x2l_cluster.messages import Problem
from x2l_cluster.service.fetch import Fetcher
from x2l_cluster.service.quota import Allowance
from x2l_cluster.service.work import IndexWork, allowed
from x2l_cluster.state.jobs import JobQueue, Lease
from x2l_cluster.state.tenants import TenantStore
from x2l_cluster.types import IndexStatus, SourceRef, recipe_fields

LOG: Final = logging.getLogger(__name__)
_WAIT_S: Final = 1.0
"""How long one look for work lasts, and so how long a stopped runner without work stays."""


class JobRunner:
    """Works on indexing jobs. A bad video fails its job, never the runner; a lost lease publishes nothing.

    Args:
        roots: folders that jobs may read files from.
        tenants: whose quotas of stored bytes are kept to; without, nobody has one.
        ttl_s: for how long a lease holds without a heartbeat; three are sent in that time.
        grace_s: how long questions that began over an index that was replaced may go on reading it.
    """

    def __init__(
        self,
        engine: VideoEngine,
        queue: JobQueue,
        *,
        name: str,
        fetcher: Fetcher | None = None,
        roots: Sequence[Path] = (),
        tenants: TenantStore | None = None,
        ttl_s: float = 30.0,
        grace_s: float = 5.0,
    ) -> None:
        self._engine, self._queue, self._name = engine, queue, name
        self._fetcher = fetcher or Fetcher()
        self._roots = tuple(roots)
        self._allowance = None if tenants is None else Allowance(engine.stores.state, tenants)
        self._ttl_s, self._grace_s = ttl_s, grace_s
        self._stopping = threading.Event()
        self.chunk_s: float | None = None
        """Seconds a chunk takes of late; None before the first."""
        self.busy = False
        """Whether it works on a job now."""

    def run(self) -> None:
        """Works until :meth:`stop`. What is being worked on then goes back into line at its next chunk."""
        while not self._stopping.is_set():
            try:
                self.one(wait_s=_WAIT_S)
            except X2LError as error:
                LOG.warning("%s cannot get at its jobs: %s", self._name, error)
                self._stopping.wait(_WAIT_S)
            except Exception:
                LOG.exception("%s stumbled and goes on", self._name)
                self._stopping.wait(1.0)

    def stop(self) -> None:
        self._stopping.set()

    def one(self, wait_s: float = 0.0) -> bool:
        """Does the next job; False when there was none. Raises what the queue raises."""
        lease = self._queue.lease(self._name, ttl_s=self._ttl_s, wait_s=wait_s)
        if lease is None:
            return False
        begun, self.busy = time.perf_counter(), True
        try:
            with suppress(LeaseLost):  # somebody else has it now, and says how it ends
                outcome = _Attempt(self, lease).run()
                metrics.JOBS_ENDED.labels(outcome).inc()
                metrics.JOB_S.observe(time.perf_counter() - begun)
        finally:
            self.busy = False
        return True


class _Attempt:
    """One lease of one job."""

    def __init__(self, runner: JobRunner, lease: Lease) -> None:
        self._runner, self._lease = runner, lease
        self._engine, self._queue = runner._engine, runner._queue
        self._work = IndexWork.from_dict(lease.work)
        self._cancel = threading.Event()
        self._lost = threading.Event()
        self._covered_s: float | None = None
        self._index = ("", "")
        """The video that is indexed, and the digest of the recipe."""
        self._last = time.perf_counter()

    def run(self) -> str:
        """Ends the job one way or the other and says which. Raises LeaseLost."""
        source: SourceRef | None = None
        try:
            with self._heartbeats():
                source = self._source()
                self._do(source)
            self._queue.finish(self._lease)
        except LeaseLost:
            raise
        except Cancelled:
            return self._stopped()
        except UnknownVideo as error:  # deleted under our hands; the job was told to stop, but cannot any more
            return self._stopped() if self._cancel.is_set() else self._failed(error)
        except X2LError as error:
            outcome = self._failed(error)
            if isinstance(error, VideoError) and not error.retryable and source is not None:
                self._forget(source)
            return outcome
        except Exception as error:
            LOG.exception("job %s failed", self._lease.job.id)
            return self._failed(X2LError(f"indexing failed ({type(error).__name__}: {error}); see the worker's log"))
        return "done"

    def _do(self, source: SourceRef) -> None:
        tenant, work = self._lease.tenant, self._work
        if work.append:
            assert work.video is not None
            self._index = (work.video, self._engine.manifest(work.video, tenant=tenant).recipe.digest)
            self._engine.append_source(work.video, source, tenant=tenant, progress=self._progress, cancel=self._cancel)
            self._forget(source)  # unless it has become that of the video: there may have been nothing new in it
            return
        video = self._engine.video_id(tenant, source.id, work.video)
        self._tell(chunks_done=0, covered_s=0.0, video=video)
        self._index = (video, self._engine.lm.recipe(**recipe_fields(work.recipe)).digest)
        if not self._is_ready(*self._index):
            self._may_grow()
        made = self._engine.index_source(
            source,
            video=video,
            tenant=tenant,
            repair=work.repair,
            progress=self._progress,
            cancel=self._cancel,
            **recipe_fields(work.recipe),
        )
        if work.replaces:
            self._engine.replaced(made)
            self._runner._stopping.wait(self._runner._grace_s)
            self._engine.stores.sweep(tenant, video)

    def _source(self) -> SourceRef:
        tenant, sources, work = self._lease.tenant, self._engine.stores.sources, self._work
        if work.source is not None:
            return work.source
        if work.path is not None:
            return sources.put(tenant, allowed(work.path, self._runner._roots))
        assert work.url is not None
        return self._runner._fetcher.fetch(work.url, tenant, sources, stopped=self._has_to_stop)

    def _progress(self, done: Progress) -> None:
        now = time.perf_counter()
        if not done.resumed:
            took = now - self._last
            self._runner.chunk_s = took if self._runner.chunk_s is None else 0.8 * self._runner.chunk_s + 0.2 * took
            metrics.CHUNKS_SEALED.inc()
            metrics.VIDEO_S.inc(max(0.0, done.end_s - (self._covered_s or 0.0)))
        self._last, self._covered_s = now, done.end_s
        self._tell(chunks_done=done.chunk + 1, covered_s=done.end_s, chunks=done.chunks)
        if not done.resumed:
            self._may_grow(done.chunks)

    def _may_grow(self, chunks: int | None = None) -> None:
        """Raises QuotaExceeded."""
        if self._runner._allowance is None or self._work.repair:  # which brings back what is counted already
            return
        self._runner._allowance.check(self._lease.tenant, *self._index, chunks=chunks, replaces=self._work.replaces)

    def _is_ready(self, video: str, recipe: str) -> bool:
        try:
            known = self._engine.stores.state.manifest(self._lease.tenant, video, recipe)
        except UnknownVideo:
            return False
        return known.status is IndexStatus.READY

    def _tell(self, *, chunks_done: int, covered_s: float, chunks: int | None = None, video: str | None = None) -> None:
        """Raises LeaseLost: then nobody must go on."""
        try:
            job = self._queue.progress(
                self._lease, chunks_done=chunks_done, covered_s=covered_s, chunks=chunks, video=video
            )
        except KVError as error:  # the state is out of reach for now; the heartbeat finds out whether for too long
            LOG.warning("progress of job %s could not be told: %s", self._lease.job.id, error)
            return
        if job.cancelling or self._has_to_stop():
            self._cancel.set()
        if self._lost.is_set():
            raise LeaseLost(f"the lease of job {self._lease.job.id} ran out")

    def _has_to_stop(self) -> bool:
        return self._cancel.is_set() or self._runner._stopping.is_set()

    @contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Renews the lease, and learns at once of a cancellation."""
        ended, news = threading.Event(), threading.Event()
        beating = threading.Thread(target=self._beat, args=(ended, news), name="x2l-heartbeat", daemon=True)
        with self._queue.watching(self._lease.tenant, self._lease.job.id, news.set):
            beating.start()
            try:
                yield
            finally:
                ended.set()
                news.set()
                beating.join()

    def _beat(self, ended: threading.Event, news: threading.Event) -> None:
        pause_s = self._runner._ttl_s / 3
        due_s = time.monotonic() + pause_s
        while not ended.is_set():
            heard = news.wait(max(0.0, due_s - time.monotonic()))
            news.clear()
            if ended.is_set():
                return
            try:
                if heard:
                    job = self._queue.job(self._lease.tenant, self._lease.job.id)
                else:
                    due_s = time.monotonic() + pause_s
                    job = self._queue.heartbeat(self._lease)
                if job.cancelling or self._has_to_stop():
                    self._cancel.set()
            except LeaseLost:
                self._lost.set()
                self._cancel.set()
                return
            except X2LError as error:
                LOG.warning("no heartbeat for job %s: %s", self._lease.job.id, error)

    def _stopped(self) -> str:
        if self._lost.is_set():
            raise LeaseLost(f"the lease of job {self._lease.job.id} ran out")
        try:
            self._queue.stop(self._lease)
        except LeaseLost:
            raise
        except StateError:  # nobody asked the job to stop: the runner has to
            self._queue.release(self._lease)
            return "released"
        return "cancelled"

    def _failed(self, error: X2LError) -> str:
        problem = Problem.of(error)
        if type(error) in (StaleEpoch, X2LError):  # another job about the same video; or a bug, which may not come back
            problem = replace(problem, retryable=True)
        if isinstance(error, QuotaExceeded):  # trying again by itself makes no room
            problem = replace(problem, retryable=False)
        self._queue.fail(self._lease, problem)
        return problem.code

    def _forget(self, source: SourceRef) -> None:
        """A file that no index was made from is not kept."""
        tenant, stores = self._lease.tenant, self._engine.stores
        with suppress(X2LError):
            if not stores.source_in_use(tenant, source.id):
                stores.sources.delete(tenant, source)
