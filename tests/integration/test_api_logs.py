"""What is logged of requests: ids and figures; never questions, answers, keys or what else was sent."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx
import pytest

from tests.http import Server, serving
from x2l_cluster.api.serve import server_of

KEY = "key-a"
SECRETS = ("whistleblower", KEY, "Bearer", "You asked", "hushhush")


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[Server]:
    caplog.set_level(logging.DEBUG)
    with serving(keys=True) as running:
        running.service.add("anna", "clip")
        yield running


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Of the server: the client of these tests may log what it likes, and pytest revives a log that is off."""
    others = ("httpx", "httpcore", "uvicorn.access")
    return [record for record in caplog.records if not record.name.startswith(others)]


def test_the_web_server_keeps_no_log_of_addresses() -> None:
    server_of(lambda *_: None)
    assert not logging.getLogger("uvicorn.access").propagate
    assert not logging.getLogger("uvicorn.access").handlers


def test_no_question_no_answer_and_no_key_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    question = "Who is the whistleblower?"
    content = [{"type": "video_url", "video_url": {"url": "clip"}}, {"type": "text", "text": question}]
    bodies = [
        ("/v1/answers", {"question": question, "videos": ["clip"]}),
        ("/v1/answers", {"question": question, "videos": ["clip"], "stream": True}),
        ("/v1/answers", {"question": question, "videos": 3, "hushhush": 1}),
        ("/v1/answers", {"question": question, "videos": ["clip"], "detail": "hushhush"}),
        ("/v1/search", {"question": question}),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": content}]}),
        ("/v1/chat/completions", {"model": "hushhush", "messages": [{"role": "user", "content": content}]}),
        ("/v1/nowhere/hushhush", {"question": question}),
    ]
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}) as http:
        for path, body in bodies:
            http.post(path, json=body)
        http.get("/v1/videos", params={"hushhush": question})
        http.get("/v1/videos", headers={"X-Request-Id": "hushhush whistleblower"})
        server.service.failing = lambda: RuntimeError(question)
        http.post("/v1/answers", json={"question": question, "videos": ["clip"]})
    told = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in ours(caplog))
    assert "request id=" in told and "bug id=" in told
    for secret in SECRETS:
        assert secret not in told


def test_a_request_is_one_line_with_its_ids(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}) as http:
        named = http.get("/v1/videos/clip", headers={"X-Request-Id": "r-1"})
        unnamed = http.get("/v1/jobs")
    assert named.headers["x-request-id"] == "r-1"
    assert len(unnamed.headers["x-request-id"]) == 32
    server.until(lambda: len([r for r in ours(caplog) if r.getMessage().startswith("request ")]) == 2)
    first, second = (r.getMessage() for r in ours(caplog) if r.getMessage().startswith("request "))
    assert first.startswith("request id=r-1 tenant=anna method=GET route=/v1/videos/{video} status=200 ")
    assert first.endswith(" video=clip")
    assert f"id={unnamed.headers['x-request-id']} tenant=anna method=GET route=/v1/jobs status=200" in second


def test_an_address_writes_no_line_of_its_own(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}) as http:
        assert http.get("/v1/models/x%0Drequest id=forged").status_code == 404
    server.until(lambda: any("/v1/models/" in r.getMessage() for r in ours(caplog)))
    (line,) = (r.getMessage() for r in ours(caplog) if "/v1/models/" in r.getMessage())
    assert line.endswith(" model=?")
    assert "forged" not in line and "\r" not in line
