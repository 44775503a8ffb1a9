"""The HTTP face over a service in memory: addresses, values, problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from tests.http import Server, serving
from x2l_cluster.errors import Overloaded, StoreUnavailable
from x2l_cluster.messages import Answers, Deleted, Estimate, Found, Job, JobState, Readiness, Session, Video


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        running.service.add("local", "clip")
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def read(kind: Any, response: httpx.Response) -> Any:
    return TypeAdapter(kind).validate_json(response.content)


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["status"] == response.status_code
    assert told["type"] == f"urn:x2l:problem:{told['code']}"
    return response.status_code, told["code"]


def test_a_job_from_submission_to_a_ready_video(server: Server, http: httpx.Client) -> None:
    sent = http.post("/v1/videos", json={"path": "/videos/a.mp4", "video": "a"})
    job = read(Job, sent)
    assert (sent.status_code, job.state, sent.headers["location"]) == (202, JobState.QUEUED, f"/v1/jobs/{job.id}")
    assert read(Job, http.get(sent.headers["location"])) == job
    server.advance(job.id, state=JobState.RUNNING, chunks=2)
    server.advance(job.id, state=JobState.READY, chunks_done=2)
    done = read(Job, http.get(f"/v1/jobs/{job.id}", params={"wait": 10}))
    assert done.state is JobState.READY
    assert done in read(list[Job], http.get("/v1/jobs"))
    video = read(Video, http.get("/v1/videos/a"))
    assert video in read(list[Video], http.get("/v1/videos"))
    assert len(http.get("/v1/videos/a/chunks").json()) == video.chunks
    assert read(Deleted, http.delete("/v1/videos/a")) == Deleted(video="a", freed_bytes=3330)
    assert problem(http.get("/v1/videos/a")) == (404, "unknown_video")


def test_jobs_are_cancelled_and_tried_again(http: httpx.Client) -> None:
    job = read(Job, http.post("/v1/videos", json={"url": "https://example.org/a.mp4"}))
    assert problem(http.post(f"/v1/jobs/{job.id}:retry")) == (409, "job_conflict")
    assert read(Job, http.post(f"/v1/jobs/{job.id}:cancel")).state is JobState.CANCELLED
    assert read(Job, http.get(f"/v1/jobs/{job.id}")).state is JobState.CANCELLED
    assert read(Job, http.post(f"/v1/jobs/{job.id}:retry")).state is JobState.QUEUED


def test_waiting_for_a_job_ends_when_it_is_final(server: Server, http: httpx.Client) -> None:
    job = read(Job, http.post("/v1/videos", json={"url": "https://example.org/b.mp4"}))
    assert read(Job, http.get(f"/v1/jobs/{job.id}", params={"wait": 0.01})).state is JobState.QUEUED
    server.loop.call_soon_threadsafe(
        lambda: server.loop.create_task(server.service.advance("local", job.id, state=JobState.FAILED))
    )
    assert read(Job, http.get(f"/v1/jobs/{job.id}", params={"wait": 20})).state is JobState.FAILED


def test_an_idempotency_key_is_one_job_and_one_request(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "once"}
    first = http.post("/v1/videos", json={"path": "/videos/c.mp4"}, headers=headers)
    again = http.post("/v1/videos", json={"path": "/videos/c.mp4"}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/v1/videos", json={"path": "/videos/d.mp4"}, headers=headers)
    assert problem(other) == (409, "idempotency_conflict")


def test_a_frame_is_a_picture_with_its_true_time(http: httpx.Client) -> None:
    frame = http.get("/v1/videos/clip/frames", params={"t": 99, "format": "jpeg"})
    assert (frame.headers["content-type"], frame.headers["x-frame-time-s"]) == ("image/jpeg", "30.0")
    assert frame.content.startswith(b"\xff\xd8")


def test_estimates_searches_and_whole_answers(http: httpx.Client) -> None:
    assert read(Estimate, http.post("/v1/videos:estimate", json={"duration_s": 3600})).chunks == 226
    assert read(Found, http.post("/v1/search", json={"question": "a star"})).searched >= 1
    asked = {"question": "Where?", "videos": ["clip", "gone"], "detail": {"k": 2}, "synthesis": True}
    answers = read(Answers, http.post("/v1/answers", json=asked))
    clip, gone, everything = answers.parts
    assert clip.completed and clip.completed.text == "You asked: Where?"
    assert clip.completed.answer and clip.completed.answer.plan.detail.k == 2
    assert gone.problem and gone.problem.code == "unknown_video"
    assert everything.video is None and everything.completed


def test_a_session_remembers_its_turns(http: httpx.Client) -> None:
    session = read(Session, http.post("/v1/sessions", json={"videos": ["clip"]}))
    http.post("/v1/answers", json={"question": "Who?", "session": session.id})
    turn = read(Session, http.get(f"/v1/sessions/{session.id}")).turns[0]
    assert (turn.question, turn.answers) == ("Who?", {"clip": "You asked: Who?"})
    assert http.delete(f"/v1/sessions/{session.id}").status_code == 204
    assert problem(http.get(f"/v1/sessions/{session.id}")) == (404, "unknown_session")


@pytest.mark.parametrize(
    ("method", "path", "sent", "told"),
    [
        ("GET", "/v1/jobs/j-none", None, (404, "unknown_job")),
        ("GET", "/v1/jobs/j-none/events", None, (404, "unknown_job")),
        ("GET", "/v1/jobs/j:cancel", None, (405, "method_not_allowed")),
        ("GET", "/v1/jobs/%00", None, (404, "not_found")),
        ("GET", "/v1/jobs/..%2F..", None, (404, "not_found")),
        ("GET", "/nowhere", None, (404, "not_found")),
        ("PUT", "/v1/jobs", None, (405, "method_not_allowed")),
        ("GET", "/v1/videos/clip/frames", None, (422, "invalid_input")),
        ("GET", "/v1/videos/clip/frames?t=nan", None, (422, "invalid_input")),
        ("GET", "/v1/videos/clip/frames?t=1&format=bmp", None, (422, "invalid_input")),
        ("POST", "/v1/videos", {}, (422, "invalid_input")),
        ("POST", "/v1/videos", {"url": "https://a.b/c", "path": "/videos/c"}, (422, "invalid_input")),
        ("POST", "/v1/videos", {"path": "/etc/passwd"}, (422, "path_refused")),
        ("POST", "/v1/videos", {"url": "http://10.0.0.1/a"}, (422, "source_refused")),
        ("POST", "/v1/videos", {"path": "/videos/a", "source": {"id": "x"}}, (422, "invalid_input")),
        ("POST", "/v1/videos", {"path": "/videos/a", "video": "../b"}, (422, "invalid_input")),
        ("POST", "/v1/answers", {"question": " ", "videos": ["clip"]}, (422, "invalid_question")),
        ("POST", "/v1/answers", {"question": "Who?"}, (422, "invalid_input")),
        ("POST", "/v1/answers", {"question": "Who?", "session": "s-none"}, (404, "unknown_session")),
        ("POST", "/v1/answers", {"question": "Who?", "videos": ["clip"], "detail": "k=²"}, (422, "invalid_input")),
        ("POST", "/v1/answers", {"question": "Who?", "videos": ["clip"], "detail": {}}, (422, "invalid_input")),
        ("POST", "/v1/answers", {"question": "Who?", "videos": ["clip"], "max_tokens": 0}, (422, "invalid_input")),
        ("POST", "/v1/search", {"question": "Who?", "videos": ["gone"]}, (404, "unknown_video")),
        ("POST", "/v1/sessions", {"videos": ["gone"]}, (404, "unknown_video")),
        ("DELETE", "/v1/videos/gone", None, (404, "unknown_video")),
    ],
)
def test_what_cannot_be_is_a_problem(
    http: httpx.Client, method: str, path: str, sent: Any, told: tuple[int, str]
) -> None:
    assert problem(http.request(method, path, json=sent)) == told


@pytest.mark.parametrize("body", [b"", b"{", b'"text"', b"\xff", b'{"question": "\\ud800", "videos": ["clip"]}'])
def test_what_is_no_json_is_a_problem(http: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    for path in ("/v1/answers", "/v1/videos"):
        assert problem(http.post(path, content=body, headers=headers)) == (422, "invalid_input")


def test_when_to_come_back_is_said(server: Server, http: httpx.Client) -> None:
    server.service.failing = lambda: Overloaded("64 questions wait", retry_after_s=2.2)
    try:
        refused = http.post("/v1/answers", json={"question": "Who?", "videos": ["clip"]})
        assert problem(refused) == (503, "overloaded")
        assert (refused.headers["retry-after"], refused.json()["retry_after_s"]) == ("3", 2.2)
        server.service.failing = lambda: StoreUnavailable("state does not answer")
        refused = http.get("/v1/jobs")
        assert problem(refused) == (503, "store_unavailable")
        assert refused.headers["retry-after"] == "1"
    finally:
        server.service.failing = lambda: None


def test_a_bug_tells_its_request_and_nothing_else(
    server: Server, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.service.failing = lambda: ValueError("the secret question")
    try:
        broken = http.get("/v1/jobs", headers={"X-Request-Id": "r-17"})
    finally:
        server.service.failing = lambda: None
    assert problem(broken) == (500, "internal")
    assert "secret" not in broken.text and "secret" not in caplog.text
    bug = next(record.message for record in caplog.records if record.levelname == "ERROR")
    assert "id=r-17 kind=ValueError at=service.py:" in bug


def test_health_needs_no_key_and_tells_no_tenant() -> None:
    with serving(keys=True) as server, httpx.Client(base_url=server.url) as http:
        assert http.get("/livez").status_code == 200
        assert read(Readiness, http.get("/readyz")) == server.service.readiness
        assert http.get("/v1/jobs").status_code == 401
        metrics = http.get("/metrics").text
        assert 'x2l_requests_total{route="/v1/jobs",status="401"}' in metrics or 'route="other",status="401"' in metrics
        assert 'x2l_refused_total{reason="unauthenticated"}' in metrics
        server.service.readiness = Readiness(model_loaded=True, answering=False, indexing=False, degraded=("state",))
        unready = http.get("/readyz")
        assert (unready.status_code, unready.headers["retry-after"]) == (503, "1")
        assert read(Readiness, unready).degraded == ("state",)
