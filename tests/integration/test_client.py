"""The clients against a real server: values, errors, tries, cuts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.http import CuttingProxy, Server, serving
from x2l_cluster.client import X2L, AsyncX2L, Retry
from x2l_cluster.errors import (
    ConnectionLost,
    DecodeTimeout,
    Forbidden,
    InvalidInput,
    InvalidQuestion,
    JobConflict,
    Overloaded,
    QuotaExceeded,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
    UnknownJob,
    UnknownSession,
    UnknownVideo,
    VideoFileNotFound,
    X2LError,
)
from x2l_cluster.messages import (
    AnswerCompleted,
    AnswerCreated,
    AnswerDelta,
    AnswerEvidence,
    AnswerPlan,
    Deleted,
    JobState,
)
from x2l_cluster.service.requests import IndexRequest
from x2l_cluster.types import Detail


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.service.add("local", "clip")
        yield running


@pytest.fixture
def x2l(server: Server) -> Iterator[X2L]:
    with client(server.url) as made:
        yield made


def client(url: str, **options: Any) -> X2L:
    """Pauses take no time."""
    return X2L(url, sleep=lambda _: None, **options)


def test_values_come_back_equal(server: Server, x2l: X2L) -> None:
    job = x2l.index(path="/videos/a.mp4", video="a", recipe={"chunk_frames": 8}, priority=3)
    assert server.service.all_jobs["local"][job.id] == job
    server.advance(job.id, state=JobState.READY, chunks=3, chunks_done=3)
    assert x2l.wait(job.id) == server.service.all_jobs["local"][job.id]
    again = x2l.reindex("clip", recipe={"chunk_frames": 8})
    assert (again.video, again.state) == ("clip", JobState.QUEUED)
    server.advance(again.id, state=JobState.CANCELLED)
    with pytest.raises(UnknownVideo):
        x2l.reindex("nobody")
    assert x2l.jobs() == [x2l.job(again.id), x2l.job(job.id)]
    assert list(x2l.job_events(job.id)) == server.service.events[job.id]
    assert x2l.video("a") == server.service.all_videos["local"]["a"]
    assert x2l.videos() == server.do(server.service.videos("local"))
    assert x2l.chunks("a") == server.do(server.service.chunks("local", "a"))
    assert x2l.frame("a", 3.25) == (b"\xff\xd8 picture of local", 3.25)
    assert x2l.estimate(60.0).chunks == 4
    assert x2l.search("a star").moments[0].video == "a"
    longer = x2l.append("a", path="/videos/b.mp4", priority=2, idempotency_key="k")
    assert server.service.keys["local", "k"] == (
        IndexRequest(path="/videos/b.mp4", video="a", append=True, priority=2, idempotency_key="k"),
        longer.id,
    )
    assert x2l.delete("a") == Deleted(video="a", freed_bytes=3330)
    session = x2l.open_session(["clip"])
    assert x2l.ask("Who?", session=session.id).parts[0].video == "clip"
    assert [turn.question for turn in x2l.session(session.id).turns] == ["Who?"]
    x2l.close_session(session.id)
    assert x2l.ready() == server.service.readiness


def test_the_async_client_does_the_same(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"x" * 3_000_000)

    async def talk() -> None:
        async with AsyncX2L(server.url) as x2l:
            sent: list[tuple[int, int]] = []
            job = await x2l.index(file, video="a", progress=lambda done, size: sent.append((done, size)))
            assert sent[-1] == (3_000_000, 3_000_000)
            longer = await x2l.append("clip", file, progress=lambda done, size: file.write_bytes(b"x" * 3_000_001))
            assert (longer.video, longer.id != job.id) == ("clip", True)
            assert {ref.size_bytes for ref in server.service.sources.values()} == {3_000_000}, "it grew meanwhile"
            assert await x2l.cancel(job.id) == await x2l.job(job.id)
            await x2l.retry(job.id)
            server.advance(job.id, state=JobState.READY)
            assert (await x2l.wait(job.id)).state is JobState.READY
            assert [event.number async for event in x2l.job_events(job.id)] == [1, 2, 3, 4]
            assert await x2l.jobs() == [await x2l.job(longer.id), await x2l.job(job.id)]
            assert await x2l.videos() == [await x2l.video("a"), await x2l.video("clip")]
            assert len(await x2l.chunks("a")) == 3
            assert (await x2l.frame("a", 1.0))[1] == 1.0
            assert (await x2l.estimate(60.0)).chunks == 4
            assert (await x2l.search("a star")).searched == 2
            session = await x2l.open_session(["clip"])
            assert (await x2l.ask("Who?", session=session.id)).parts[0].completed
            assert (await x2l.session(session.id)).turns
            await x2l.close_session(session.id)
            assert await x2l.delete("a") == Deleted(video="a", freed_bytes=3330)
            assert (await x2l.ready()).answering
            async with aclosing(x2l.answers("Who?", ["clip"])) as events:
                assert isinstance(await anext(events), AnswerCreated)
            with pytest.raises(UnknownVideo):
                await x2l.video("gone")

    asyncio.run(talk())


def test_an_answer_comes_in_pieces_and_in_order(server: Server, x2l: X2L) -> None:
    events = list(x2l.answers("Who?", ["clip"], detail=Detail(mode="k", k=1), seed=4))
    kinds = [type(event) for event in events]
    assert kinds == [AnswerCreated, AnswerPlan, *[AnswerDelta] * 3, AnswerEvidence, AnswerCompleted]
    *_, end = events
    assert isinstance(end, AnswerCompleted) and end.answer
    assert "".join(e.text for e in events if isinstance(e, AnswerDelta)) == end.text == "You asked: Who?"
    assert end.answer.plan.detail == Detail(mode="k", k=1)
    assert server.service.asked[-1].seed == 4


@pytest.mark.parametrize("detail", ["auto", "k=2", Detail(mode="budget", budget_bytes=9), Detail(mode="fine")])
def test_every_way_to_say_how_much_detail_arrives(server: Server, x2l: X2L, detail: str | Detail) -> None:
    x2l.ask("Who?", ["clip"], detail=detail)
    wanted = Detail.parse(detail) if isinstance(detail, str) else detail
    assert server.service.asked[-1].detail == wanted


def test_events_cut_off_again_and_again_come_each_once(server: Server) -> None:
    with client(server.url) as direct:
        job = direct.index(path="/videos/a.mp4").id
    for chunk in range(40):
        server.advance(job, state=JobState.RUNNING, chunks=40, chunks_done=chunk)
    server.advance(job, state=JobState.READY)
    with CuttingProxy(server, cuts=range(100, 12_000, 731)) as proxy, client(proxy.url) as x2l:
        events = list(x2l.job_events(job))
        assert events == server.service.events[job]
        assert [event.number for event in events] == list(range(1, 43))
        assert proxy.connections > 5
        assert [event.number for event in x2l.job_events(job, after=40)] == [41, 42]
        assert list(x2l.job_events(job, after=42)) == []


def test_events_come_as_they_happen(server: Server, x2l: X2L) -> None:
    job = x2l.index(path="/videos/a.mp4").id
    with closing(x2l.job_events(job)) as events:
        assert next(events).name == "job.queued"
        server.advance(job, state=JobState.RUNNING)
        assert next(events).name == "job.running"
    server.until(lambda: job in server.service.stopped)  # leaving ends the service's iterator too


def test_a_service_that_goes_away_in_the_middle_is_lost_after_so_many_tries(server: Server) -> None:
    with client(server.url) as direct:
        job = direct.index(path="/videos/a.mp4").id
    with CuttingProxy(server, cuts=[100] * 50) as proxy, client(proxy.url, retry=Retry(tries=3)) as x2l:
        with pytest.raises(ConnectionLost):
            list(x2l.job_events(job))
        assert proxy.connections < 8


def test_closing_an_answer_stops_the_work(server: Server, x2l: X2L) -> None:
    server.loop.call_soon_threadsafe(server.service.held.clear)
    with closing(x2l.answers("Who?", ["clip"])) as events:
        created = next(events)
        assert isinstance(created, AnswerCreated)
        next(events)
        assert server.service.stopped == []
    server.until(lambda: server.service.stopped == [created.id])


def test_a_cut_answer_is_lost_and_not_asked_twice(server: Server) -> None:
    with CuttingProxy(server, cuts=[700]) as proxy, client(proxy.url) as x2l:
        with pytest.raises(ConnectionLost, match=r"broke off|did not answer"):
            x2l.ask("Who?", ["clip"])
        assert len(server.service.asked) == 1


def test_an_upload_is_read_from_disk_and_its_progress_told(server: Server, x2l: X2L, tmp_path: Path) -> None:
    file = tmp_path / "holiday film.mp4"
    file.write_bytes(b"film" * 700_000)
    sent: list[tuple[int, int]] = []
    job = x2l.index(file, progress=lambda done, size: sent.append((done, size)), recipe={"chunk_frames": 8})
    assert sent[-1] == (2_800_000, 2_800_000) and len(sent) == 3
    (source,) = server.service.sources.values()
    assert (source.name, source.size_bytes) == ("holiday film.mp4", 2_800_000)
    assert job.video == f"v-{source.id[:16]}"


def test_tries_of_one_call_are_one_job(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"film")
    with CuttingProxy(server, cuts=[10, 60]) as proxy, client(proxy.url) as x2l:
        job = x2l.index(file)
        assert x2l.jobs() == [job]
        assert proxy.connections >= 3
        again = x2l.index(file)
        assert again.id != job.id  # another call, another key


@pytest.mark.parametrize(
    "error",
    [
        UnknownJob("there is no job j-1"),
        JobConflict("job j-1 is running"),
        QuotaExceeded("10 videos are all you have", retry_after_s=3600.0),
        InvalidQuestion("the question is empty"),
        StoreUnavailable("state does not answer"),
        Overloaded("64 wait", retry_after_s=0.5),
        UnknownSession("gone"),
    ],
    ids=lambda error: error.code,
)
def test_errors_come_back_as_what_they_were(server: Server, error: X2LError) -> None:
    server.service.failing = lambda: error
    with client(server.url) as x2l, pytest.raises(X2LError) as caught:
        x2l.jobs()
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert caught.value.retry_after_s == error.retry_after_s


def test_what_is_turned_away_is_tried_again_as_late_as_is_asked(server: Server) -> None:
    pauses: list[float] = []
    left = [Overloaded("64 wait", retry_after_s=0.75), StoreUnavailable("late"), StoreUnavailable("late")]
    server.service.failing = lambda: left.pop(0) if left else None
    with X2L(server.url, sleep=pauses.append, retry=Retry(jitter=lambda: 1.0)) as x2l:
        assert x2l.ask("Who?", ["clip"]).parts[0].completed
    assert pauses == [0.75, 0.5, 1.0]


def test_what_asks_for_more_patience_than_there_is_is_told_at_once(server: Server) -> None:
    server.service.failing = lambda: QuotaExceeded("come back tomorrow", retry_after_s=86400.0)
    with X2L(server.url, sleep=lambda _: pytest.fail("waited")) as x2l, pytest.raises(QuotaExceeded):
        x2l.index(path="/videos/a.mp4")


def test_a_bad_file_is_not_looked_at_again_and_again(server: Server) -> None:
    server.service.failing = lambda: DecodeTimeout("the decoder made no progress")
    with X2L(server.url, sleep=lambda _: pytest.fail("waited")) as x2l, pytest.raises(DecodeTimeout):
        x2l.jobs()


def test_the_key_opens_what_is_the_tenants(tmp_path: Path) -> None:
    with serving(keys=True) as server:
        server.service.add("anna", "clip")
        with client(server.url, key="key-a") as anna, client(server.url, key="key-b") as bert:
            assert [video.id for video in anna.videos()] == ["clip"]
            assert bert.videos() == []
        for key, kind in ((None, Unauthenticated), ("key-locked", Forbidden), ("key-fast", RateLimited)):
            with client(server.url, key=key, retry=Retry(tries=2)) as x2l, pytest.raises(kind):
                x2l.videos()


def test_a_service_that_cannot_answer_says_so(server: Server, x2l: X2L) -> None:
    server.service.readiness = replace(server.service.readiness, answering=False)
    assert not x2l.ready().answering


def test_what_cannot_be_sent_is_told_before_it_is(x2l: X2L, tmp_path: Path) -> None:
    with pytest.raises(VideoFileNotFound, match=r"nowhere\.mp4"):
        x2l.index(tmp_path / "nowhere.mp4")
    with pytest.raises(InvalidInput, match="exactly one"):
        x2l.index()
    with pytest.raises(InvalidInput, match="http"):
        X2L("ftp://example.org")


def test_nobody_there_is_connection_lost() -> None:
    with client("http://127.0.0.1:1") as x2l, pytest.raises(ConnectionLost, match="did not answer"):
        x2l.videos()


def test_a_client_is_light() -> None:
    heavy = "torch numpy transformers fastapi redis ray".split()
    code = f"import sys, x2l_cluster.client; sys.exit(' '.join(m for m in {heavy} if m in sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr.strip() == ""
    )
