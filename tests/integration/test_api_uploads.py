"""Uploads: in a form or as the body, too large, too slow, broken off; what is refused leaves nothing."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest

from tests.http import Server, serving
from x2l_cluster.errors import QuotaExceeded

LIMIT = 100_000


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serving(max_upload_bytes=LIMIT, max_body_bytes=2000, body_idle_s=0.2) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.service.sources.clear()
    running.service.all_jobs.clear()
    running.service.failing = lambda: None
    return running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def told(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def nothing_left(server: Server) -> bool:
    return not server.service.sources and not server.service.all_jobs.get("local")


def test_a_form_may_have_its_fields_before_and_behind_the_file(server: Server, http: httpx.Client) -> None:
    parts = {
        "video": (None, "mine"),
        "file": ("C:\\films\\clip.mp4", b"film" * 10_000, "video/mp4"),
        "recipe": (None, json.dumps({"chunk_frames": 8})),
        "priority": (None, "7"),
    }
    job = http.post("/v1/videos", files=parts, headers={"Idempotency-Key": "k"}).raise_for_status().json()
    assert job["video"] == "mine"
    (source,) = server.service.sources.values()
    assert (source.name, source.size_bytes) == ("clip.mp4", 40_000)
    request, _ = server.service.keys["local", "k"]
    assert (request.recipe, request.priority, request.source) == ({"chunk_frames": 8}, 7, source)


def test_the_whole_body_may_be_the_file(server: Server, http: httpx.Client) -> None:
    query = {"name": "../../clip.mp4", "recipe": '{"chunk_frames": 8}', "video": "v"}
    sent = http.post("/v1/videos", content=b"film", params=query, headers={"Content-Type": "video/mp4"})
    assert sent.status_code == 202
    assert next(iter(server.service.sources.values())).name == "clip.mp4"


@pytest.mark.parametrize("how", ["form", "body", "json"])
def test_what_is_appended_comes_as_a_video_does(server: Server, http: httpx.Client, how: str) -> None:
    server.service.add("local", "cam")
    sent = {
        "form": {"files": {"file": ("cam.ts", b"film" * 10_000), "priority": (None, "7")}},
        "body": {"content": b"film" * 10_000, "params": {"priority": 7, "name": "cam.ts"}},
        "json": {"json": {"path": "/videos/cam.ts", "priority": 7}},
    }[how]
    kind = {"Content-Type": "video/mp2t"} if how == "body" else {}
    response = http.post("/v1/videos/cam:append", headers={"Idempotency-Key": how} | kind, **sent)
    assert (response.status_code, response.json()["video"]) == (202, "cam")
    assert response.headers["Location"] == f"/v1/jobs/{response.json()['id']}"
    request, _ = server.service.keys["local", how]
    assert (request.append, request.video, request.priority) == (True, "cam", 7)
    names = [source.name for source in server.service.sources.values()]
    assert names == ([] if how == "json" else ["cam.ts"])


def test_what_is_appended_is_bounded_and_needs_its_video(server: Server, http: httpx.Client) -> None:
    server.service.add("local", "cam")
    film = {"content": b"x" * (LIMIT + 1), "headers": {"Content-Type": "video/mp2t"}}
    assert told(http.post("/v1/videos/cam:append", **film)) == (413, "source_too_large")
    film["content"] = b"film"
    assert told(http.post("/v1/videos/nobody:append", **film)) == (404, "unknown_video")
    assert told(http.post("/v1/videos/cam:append", params={"video": "x"}, **film)) == (422, "invalid_input")
    assert told(http.post("/v1/videos/cam:append", json={"recipe": {}, "path": "/videos/a"})) == (422, "invalid_input")
    assert nothing_left(server)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"video": (None, "v")}, (422, "invalid_input")),
        ({"file": ("a", b"film"), "video": (None, "../x")}, (422, "invalid_input")),
        ({"file": ("a", b"film"), "recipe": (None, "no json")}, (422, "invalid_input")),
        ({"file": ("a", b"film"), "recipe": (None, "[1]")}, (422, "invalid_input")),
        ({"file": ("a", b"film"), "other": (None, "x")}, (422, "invalid_input")),
        ({"file": ("a", b"film"), "recipe": (None, "x" * 70_000)}, (422, "invalid_input")),
        ({"file": ("a", b"")}, (422, "empty_video")),
    ],
)
def test_a_form_that_is_wrong_anywhere_leaves_nothing(
    server: Server, http: httpx.Client, parts: dict[str, tuple[str | None, bytes]], expected: tuple[int, str]
) -> None:
    assert told(http.post("/v1/videos", files=parts)) == expected
    assert nothing_left(server)


def test_one_request_is_one_file(server: Server, http: httpx.Client) -> None:
    twice = [("file", ("a", b"film")), ("file", ("b", b"film"))]
    assert told(http.post("/v1/videos", files=twice)) == (422, "invalid_input")
    assert nothing_left(server)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"what is this"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nfilm'),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nfilm\r\n--x'),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 4000),
        ("multipart/form-data; boundary=" + "x" * 500, b""),
    ],
)
def test_what_is_no_whole_form_is_a_broken_upload(server: Server, http: httpx.Client, kind: str, body: bytes) -> None:
    assert told(http.post("/v1/videos", content=body, headers={"Content-Type": kind})) == (400, "upload_broken")
    assert nothing_left(server)


def test_a_refused_job_takes_its_upload_with_it(server: Server, http: httpx.Client) -> None:
    server.service.failing = lambda: QuotaExceeded("10 videos are all you have")
    refused = http.post("/v1/videos", content=b"film", headers={"Content-Type": "video/mp4"})
    assert told(refused) == (429, "quota_exceeded")
    assert refused.headers["retry-after"] == "1"
    assert nothing_left(server)


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def head(*lines: str, path: str = "/v1/videos", kind: str = "video/mp4") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", *lines, "", ""]).encode()


def test_a_body_announced_too_large_is_refused_before_it_comes(server: Server) -> None:
    for path, kind, size, code in (
        ("/v1/videos", "video/mp4", LIMIT + 1, b"source_too_large"),
        ("/v1/videos", "application/json", 2001, b"body_too_large"),
        ("/v1/answers", "video/mp4", 2001, b"body_too_large"),
        ("/v1/jobs", "video/mp4", 9 * 10**15, b"body_too_large"),
    ):
        with connect(server) as line:
            line.sendall(head(f"Content-Length: {size}", path=path, kind=kind))
            answer = line.recv(1 << 16)  # nothing of the body was sent
            assert answer.startswith(b"HTTP/1.1 413")
            while code not in answer:
                answer += line.recv(1 << 16)
    assert nothing_left(server)


def test_a_body_that_turns_out_too_large_is_refused_on_the_way(server: Server, http: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:  # of unknown length
        for _ in range(20):
            yield b"x" * 10_000

    sent = http.post("/v1/videos", content=pieces(), headers={"Content-Type": "video/mp4"})
    assert told(sent) == (413, "source_too_large")
    asked = http.post("/v1/answers", content=pieces(), headers={"Content-Type": "application/json"})
    assert told(asked) == (413, "body_too_large")
    assert nothing_left(server)


def test_an_upload_that_stands_still_is_given_up(server: Server) -> None:
    for kind, path in (("video/mp4", "/v1/videos"), ("application/json", "/v1/answers")):
        with connect(server) as line:
            line.sendall(head("Content-Length: 1000", path=path, kind=kind) + b"half of it")
            assert line.recv(1 << 16).startswith(b"HTTP/1.1 400")
    assert nothing_left(server)


def test_an_upload_that_trickles_is_given_up_in_the_end() -> None:
    with serving(upload_s=0.3, body_idle_s=10) as server, connect(server) as line:
        line.sendall(head("Content-Length: 1000") + b"a little")
        assert line.recv(1 << 16).startswith(b"HTTP/1.1 400")
        assert nothing_left(server)


def test_an_upload_that_breaks_off_leaves_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for part in (head("Content-Length: 1000") + b"half of it", head("Transfer-Encoding: chunked") + b"4\r\nfilm\r\n"):
        caplog.clear()
        with connect(server) as line:
            line.sendall(part)
        server.until(lambda: "route=/v1/videos status=400" in caplog.text)
        assert nothing_left(server)


@pytest.mark.parametrize("form", [False, True])
def test_an_upload_waits_in_the_network_and_not_in_memory(form: bool) -> None:
    opening = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' if form else b""
    kind = "multipart/form-data; boundary=x" if form else "video/mp4"
    with serving() as server, connect(server) as line:
        server.loop.call_soon_threadsafe(server.service.reading.clear)
        line.sendall(head("Content-Length: 1000000000", kind=kind) + opening)
        line.settimeout(1.0)
        assert sendable_bytes(line, 64 << 20) < 32 << 20  # what two sockets hold, and then nobody takes any more
        server.loop.call_soon_threadsafe(server.service.reading.set)
        line.sendall(b"x" * 65536)  # and now they do


def sendable_bytes(line: socket.socket, most: int) -> int:
    sent = 0
    with suppress(TimeoutError):
        while sent < most:
            sent += line.send(b"x" * 65536)
    return sent
