"""Jobs in one process: cancelled, resumed, deleted, overtaken, retried, restarted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from tests.engines import SMALL, engine, mosaic
from tests.gates import WAIT_S, Watched, watched
from tests.services import END_S, all_of, ends, indexed, local_service, pieces, run
from x2l_cluster.engine import VideoEngine
from x2l_cluster.errors import QuotaExceeded, StoreUnavailable, UnknownVideo
from x2l_cluster.messages import AnswerCompleted, AnswerPlan, JobState
from x2l_cluster.service import Ask, IndexRequest, SearchRequest
from x2l_cluster.service.local import LocalOptions, LocalService
from x2l_cluster.service.runner import JobRunner
from x2l_cluster.service.work import IndexWork
from x2l_cluster.state.ledger_sqlite import SqliteLedger
from x2l_cluster.state.moves import Policy
from x2l_cluster.state.queue import Jobs
from x2l_cluster.types import IndexStatus, Kind, Manifest

QUESTION = "What code is shown with the red star?"


class Held(Watched):
    """A model that stops before the prefill of a chunk until it is let go on."""

    def hold(self, chunk: int) -> None:
        self.at, self.reached, self.go = chunk, threading.Event(), threading.Event()
        self.chunks = 0

    def embed_chunk(self, *args, **kwargs):
        if getattr(self, "at", None) == self.chunks_seen():
            self.reached.set()
            assert self.go.wait(WAIT_S)
        return super().embed_chunk(*args, **kwargs)

    def chunks_seen(self) -> int:
        self.chunks = getattr(self, "chunks", 0) + 1
        return self.chunks - 1


def held() -> Held:
    base = watched(0)
    base.__class__ = Held
    return base  # type: ignore[return-value]


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 20)


@pytest.fixture(scope="module")
def whole(film) -> Manifest:
    """The index of an undisturbed run."""
    with engine(lm=watched(0)) as x2l:
        yield x2l.index(film, **SMALL)


@pytest.fixture
def lm() -> Held:
    return held()


@pytest.fixture
def service(lm) -> Iterator[LocalService]:
    with local_service(lm=lm) as made:
        yield made
        if hasattr(lm, "go"):
            lm.go.set()


def same_payloads(one: Manifest, other: Manifest) -> bool:
    def sums(manifest: Manifest) -> list[dict[str, str]]:
        return [{kind: ref.checksum for kind, ref in row.blocks.items()} for row in manifest.chunks]

    return sums(one) == sums(other)


async def started(service: LocalService, film: Path, chunk: int, **request) -> str:
    """A job that stands before the prefill of a chunk, all chunks before it sealed."""
    lm = service.engine.lm
    lm.hold(chunk)
    source = await service.keep("me", pieces(film.read_bytes()), name="film.mp4")
    job = await service.submit("me", IndexRequest(source=source, recipe=SMALL, **request))
    assert await asyncio.to_thread(lm.reached.wait, WAIT_S)
    async for event in service.job_events("me", job.id):
        if event.job.chunks_done >= chunk or chunk == 0:
            break
    return job.id


def test_a_cancelled_job_stops_at_the_next_chunk_and_goes_on_when_retried(service, film, whole):
    async def body() -> None:
        job = await started(service, film, 2)
        assert (await service.cancel("me", job)).cancelling
        service.engine.lm.go.set()
        stopped = await service.job("me", job, wait_s=END_S)
        assert stopped.state is JobState.CANCELLED
        assert stopped.chunks_done in (2, 3)  # the one being prefilled may still be sealed, none after it
        assert (await service.video("me", stopped.video)).status is IndexStatus.INDEXING
        prefilled = service.engine.lm.chunks
        await service.retry("me", job)
        ended = await service.job("me", job, wait_s=END_S)
        assert ended.state is JobState.READY
        assert (
            service.engine.lm.chunks - prefilled == len(whole.chunks) - stopped.chunks_done
        )  # nothing sealed is made again
        assert same_payloads(service.engine.manifest(stopped.video, tenant="me"), whole)

    run(body())


def test_the_sealed_part_of_an_unfinished_video_can_be_asked_and_says_how_far_it_reaches(service, film, whole):
    async def body() -> None:
        job = (await service.job("me", await started(service, film, 2))).video
        video = await service.video("me", job)
        assert (video.status, video.chunks) == (IndexStatus.INDEXING, 2)
        events = await all_of(service.answers("me", Ask(question=QUESTION, videos=(video.id,), max_tokens=4)))
        plan = next(event for event in events if isinstance(event, AnswerPlan))
        (end,) = ends(events).values()
        assert isinstance(end, AnswerCompleted)
        assert (
            plan.covered
            == end.answer.covered
            == video.covered
            == (whole.chunks[0].span.__class__)(start_s=0.0, end_s=whole.chunks[1].span.end_s)
        )
        found = await service.search("me", SearchRequest(question=QUESTION))
        assert {moment.chunk for moment in found.moments} == {0, 1}
        service.engine.lm.go.set()

    run(body())


def test_deleting_a_video_that_is_being_indexed_ends_its_job_and_leaves_nothing(service, film):
    async def body() -> None:
        job = await started(service, film, 2)
        video = (await service.job("me", job)).video
        deleting = asyncio.create_task(service.delete("me", video))
        while not (await service.job("me", job)).cancelling:
            await asyncio.sleep(0)
        service.engine.lm.go.set()
        assert (await deleting).freed_bytes > 0
        assert (await service.job("me", job)).state is JobState.CANCELLED
        assert await service.videos("me") == []
        assert list(service.engine.stores.kv.keys("me", video)) == []
        with pytest.raises(UnknownVideo):
            await service.delete("me", video)

    run(body())


def test_deleting_what_has_nothing_sealed_yet_stops_it_too(service, film):
    async def body() -> None:
        job = await started(service, film, 0)
        video = (await service.job("me", job)).video
        deleting = asyncio.create_task(service.delete("me", video))
        while not (await service.job("me", job)).cancelling:
            await asyncio.sleep(0)
        service.engine.lm.go.set()
        await deleting
        assert await service.videos("me") == []

    run(body())


def test_a_closed_service_gives_its_job_back_and_the_next_one_goes_on(film, whole, tmp_path):
    store = f"disk:{tmp_path}"

    async def first() -> str:
        with local_service(store, lm=held()) as service:
            job = await started(service, film, 2)
            closing = asyncio.create_task(asyncio.to_thread(service.close))
            while not service._indexers.runners[0]._stopping.is_set():
                await asyncio.sleep(0)
            service.engine.lm.go.set()
            await closing
        return job

    async def second(job: str) -> None:
        with local_service(store, lm=watched(0)) as service:
            ended = await service.job("me", job, wait_s=END_S)
            assert (ended.state, ended.attempts) == (JobState.READY, 1)
            assert same_payloads(service.engine.manifest(ended.video, tenant="me"), whole)

    run(second(run(first())))


def test_sessions_outlive_a_restart(film, tmp_path):
    store = f"disk:{tmp_path}"

    async def first() -> str:
        with local_service(store, lm=watched(0)) as service:
            await indexed(service, "me", film, video="v")
            return (await service.open_session("me", ["v"])).id

    async def second(id: str) -> None:
        with local_service(store, lm=watched(0)) as service:
            assert (await service.session("me", id)).videos == ("v",)

    run(second(run(first())))


def test_a_service_opens_with_a_bundled_model_and_a_store():
    async def body() -> None:
        with LocalService.open(store="memory:", options=LocalOptions(indexers=2, drain_s=0.0)) as service:
            ready = await service.ready()
            assert (ready.answering, ready.indexing, ready.degraded) == (True, True, ())
            assert [card.id for card in await service.models()] == ["reference"]

    run(body())


def test_more_jobs_than_a_tenant_may_have_are_refused(lm, film):
    async def body() -> None:
        with local_service(lm=lm, most_jobs=1) as service:
            await started(service, film, 0)
            with pytest.raises(QuotaExceeded):
                await service.submit("me", IndexRequest(url="https://host.example/x.mp4"))
            await service.submit("other", IndexRequest(url="https://127.0.0.1/x.mp4"))
            lm.go.set()

    run(body())


def test_an_index_whose_coarse_kvs_are_gone_is_made_again_by_itself(film):
    async def body() -> None:
        with local_service(lm=watched(0)) as service:
            await indexed(service, "me", film, video="v")
            manifest = service.engine.manifest("v", tenant="me")
            service.engine.answerer.forget("me", "v")
            service.engine.stores.kv.delete(
                [key for row in manifest.chunks for key in manifest.keys(row.blocks[Kind.H], row.index)]
            )
            ask = Ask(question=QUESTION, videos=("v",), max_tokens=4)
            (end,) = ends(await all_of(service.answers("me", ask))).values()
            assert (end.problem.code, end.problem.retryable) == ("kv_missing", True)
            jobs = await service.jobs("me")
            assert len(jobs) == 2
            assert (await service.job("me", jobs[0].id, wait_s=END_S)).state is JobState.READY
            (end,) = ends(await all_of(service.answers("me", ask))).values()
            assert isinstance(end, AnswerCompleted) and not end.degraded

    run(body())


# --- the runner by itself -------------------------------------------------------------------------------------------


@pytest.fixture
def alone(lm) -> Iterator[tuple[VideoEngine, Jobs]]:
    with engine(lm=lm) as x2l, Jobs(SqliteLedger(), policy=Policy(backoff_s=0.0, most_strikes=2)) as queue:
        yield x2l, queue


def submitted(x2l: VideoEngine, queue: Jobs, film: Path, **work) -> str:
    source = x2l.stores.sources.put("me", film)
    return queue.submit("me", IndexWork(source=source, recipe=SMALL, **work).to_dict()).id


def test_a_runner_whose_lease_went_to_another_publishes_nothing_more(alone, lm, film, whole):
    x2l, queue = alone
    job = submitted(x2l, queue, film)
    clock = [1000.0]
    queue._clock = lambda: clock[0]
    lm.hold(2)
    slow = threading.Thread(target=JobRunner(x2l, queue, name="slow", ttl_s=60.0).one)
    slow.start()
    assert lm.reached.wait(WAIT_S)
    clock[0] += 100.0
    queue.sweep()
    lease = queue.lease("another", ttl_s=60.0)
    assert lease is not None and lease.job.id == job
    sealed = len(x2l.manifest(lease.job.video, tenant="me").chunks)
    lm.go.set()
    slow.join(WAIT_S)
    assert not slow.is_alive()
    assert len(x2l.manifest(lease.job.video, tenant="me").chunks) <= sealed + 1
    assert queue.job("me", job).state is JobState.RUNNING  # of the other one
    queue.release(lease)
    assert JobRunner(x2l, queue, name="other").one()
    assert queue.job("me", job).state is JobState.READY
    assert same_payloads(x2l.manifest(lease.job.video, tenant="me"), whole)


def test_a_store_that_is_away_is_waited_for(alone, film, monkeypatch):
    x2l, queue = alone
    job = submitted(x2l, queue, film)

    def away(*args: object, **kwargs: object) -> None:
        raise StoreUnavailable("the store does not answer")

    put = x2l.stores.kv.put
    monkeypatch.setattr(x2l.stores.kv, "put", away)
    runner = JobRunner(x2l, queue, name="one")
    for attempts in range(1, 5):  # more often than a job may fail for reasons of its own
        assert runner.one()
        tried = queue.job("me", job)
        assert (tried.state, tried.attempts) == (JobState.QUEUED, attempts)
        assert tried.problem is not None and tried.problem.code == "store_unavailable"
    monkeypatch.setattr(x2l.stores.kv, "put", put)
    assert runner.one()
    assert queue.job("me", job).state is JobState.READY
    assert not runner.one()


def test_a_bug_fails_the_job_and_not_the_runner(alone, lm, film):
    x2l, queue = alone
    bad, good = submitted(x2l, queue, film, video="bad"), submitted(x2l, queue, film, video="good")

    def bug(steps: object) -> None:
        raise RuntimeError("boom")

    lm.before = bug
    runner = JobRunner(x2l, queue, name="one")
    assert runner.one()
    problem = queue.job("me", bad).problem
    assert problem is not None and "boom" in problem.detail and problem.retryable
    lm.before = lambda steps: None
    assert runner.one() and runner.one()
    assert {queue.job("me", job).state for job in (bad, good)} == {JobState.READY}


def test_what_jobs_do_is_counted(alone, film, whole):
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = {name: value(name) for name in ("x2l_chunks_sealed_total", "x2l_video_seconds_total")}
    done = value("x2l_jobs_ended_total", outcome="done")
    x2l, queue = alone
    submitted(x2l, queue, film)
    assert JobRunner(x2l, queue, name="one").one()
    assert value("x2l_chunks_sealed_total") == before["x2l_chunks_sealed_total"] + len(whole.chunks)
    seconds = value("x2l_video_seconds_total") - before["x2l_video_seconds_total"]
    assert seconds == pytest.approx(whole.span.end_s)
    assert value("x2l_jobs_ended_total", outcome="done") == done + 1


def test_how_deep_the_queue_is_can_be_scraped(service, film):
    async def body() -> None:
        job = await started(service, film, 1)
        assert REGISTRY.get_sample_value("x2l_jobs", {"state": "running"}) == 1.0
        service.engine.lm.go.set()
        assert (await service.job("me", job, wait_s=END_S)).state is JobState.READY
        assert REGISTRY.get_sample_value("x2l_jobs", {"state": "running"}) == 0.0

    run(body())
