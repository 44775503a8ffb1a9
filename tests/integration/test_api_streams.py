"""Streams as they are on the wire: numbers, names, heartbeats, ends, and clients that leave."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent

from tests.http import Server, serving
from x2l_cluster.messages import JobState


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(heartbeat_s=0.05) as running:
        running.service.add("local", "clip")
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def finished(server: Server, http: httpx.Client) -> str:
    job = str(http.post("/v1/videos", json={"path": "/videos/a.mp4"}).json()["id"])
    server.advance(job, state=JobState.RUNNING)
    server.advance(job, state=JobState.RUNNING, chunks_done=1)
    server.advance(job, state=JobState.READY)
    return job


def events(http: httpx.Client, path: str, **headers: str | bytes) -> list[ServerSentEvent]:
    with http.stream("GET", path, headers=list(headers.items())) as response:
        return list(EventSource(response).iter_sse())


def test_events_of_a_job_have_names_numbers_and_an_end(server: Server, http: httpx.Client) -> None:
    job = finished(server, http)
    told = events(http, f"/v1/jobs/{job}/events")
    names = ["job.queued", "job.running", "job.progress", "job.ready", "stream.end"]
    assert [event.event for event in told] == names
    assert [event.id for event in told[:-1]] == ["1", "2", "3", "4"]
    assert json.loads(told[2].data)["job"]["chunks_done"] == 1


def test_the_last_event_seen_is_where_it_goes_on(server: Server, http: httpx.Client) -> None:
    job = finished(server, http)
    path = f"/v1/jobs/{job}/events"
    assert [event.id for event in events(http, path, **{"Last-Event-ID": "2"})][:-1] == ["3", "4"]
    assert [event.id for event in events(http, f"{path}?after=3")][:-1] == ["4"]
    assert [event.id for event in events(http, f"{path}?after=1", **{"Last-Event-ID": "3"})][:-1] == ["4"]
    assert len(events(http, path, **{"Last-Event-ID": b"\xb2"})) == 5  # no number: from the beginning
    assert http.get(path, headers={"Last-Event-ID": "4"}).status_code == 204


def test_a_stream_with_nothing_to_say_gives_signs_of_life(server: Server, http: httpx.Client) -> None:
    job = http.post("/v1/videos", json={"path": "/videos/a.mp4"}).json()["id"]
    with http.stream("GET", f"/v1/jobs/{job}/events") as response:
        assert response.headers["cache-control"] == "no-store"
        pings = (line for line in response.iter_lines() if line.startswith(": ping"))
        next(pings)
        next(pings)
    server.until(lambda: server.service.stopped == [job])


def test_a_client_that_leaves_stops_the_work_it_waits_for(server: Server, http: httpx.Client) -> None:
    job = http.post("/v1/videos", json={"path": "/videos/a.mp4"}).json()["id"]
    with pytest.raises(httpx.ReadTimeout):
        http.get(f"/v1/jobs/{job}", params={"wait": 50}, timeout=0.2)
    server.until(lambda: server.service.stopped == [job])
    server.loop.call_soon_threadsafe(server.service.held.clear)
    asked = {"question": "Who?", "videos": ["clip"]}
    for path, body in (
        ("/v1/answers", asked),
        ("/v1/answers", asked | {"stream": True}),
        ("/v1/chat/completions", {"model": "tiny", "messages": chat()}),
        ("/v1/chat/completions", {"model": "tiny", "messages": chat(), "stream": True}),
    ):
        server.service.stopped.clear()
        with pytest.raises(httpx.ReadTimeout):
            http.post(path, json=body, timeout=httpx.Timeout(20, read=0.04))
        server.until(lambda: len(server.service.stopped) == 1)


def chat() -> list[dict[str, object]]:
    video = {"type": "video_url", "video_url": {"url": "clip"}}
    return [{"role": "user", "content": [video, {"type": "text", "text": "Who?"}]}]


def test_a_bug_in_the_middle_of_a_stream_is_told_in_it(server: Server, http: httpx.Client) -> None:
    job = http.post("/v1/videos", json={"path": "/videos/a.mp4"}).json()["id"]
    with http.stream("GET", f"/v1/jobs/{job}/events") as response:
        told = EventSource(response).iter_sse()
        assert next(told).event == "job.queued"
        server.loop.call_soon_threadsafe(server.service.all_jobs["local"].pop, job)

        async def wake() -> None:
            async with server.service._changed:
                server.service._changed.notify_all()

        server.do(wake())
        last = list(told)[-1]
    assert last.event == "error"
    assert json.loads(last.data)["code"] == "unknown_job"
