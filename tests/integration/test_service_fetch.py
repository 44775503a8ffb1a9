"""Fetching from a real server on this machine that the tests' gate takes for a public one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.engines import SMALL, files, mosaic
from tests.services import END_S, local_service, run
from tests.tiny import qwen3_vl
from x2l_cluster.errors import (
    Cancelled,
    EmptyVideo,
    FetchFailed,
    NotAVideo,
    SourceRefused,
    SourceTooLarge,
)
from x2l_cluster.messages import JobState
from x2l_cluster.service import IndexRequest
from x2l_cluster.service.addresses import Gate
from x2l_cluster.service.fetch import Fetcher, check_url
from x2l_cluster.video import FsspecSourceStore

VIDEO = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 400

Reply = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Replies by path; remembers who asked for what."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {"/film.mp4": body(VIDEO)}
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append((self.headers["Host"], self.path))
                outer.replies.get(self.path.partition("?")[0], status(404))(self)
                self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, path: str, host: str = "films.host") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def body(data: bytes, kind: str = "video/mp4", length: int | None = None, more: dict[str, str] | None = None) -> Reply:
    def reply(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.send_header("Content-Type", kind)
        to.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in (more or {}).items():
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(data)

    return reply


def status(code: int, **headers: str) -> Reply:
    def reply(to: BaseHTTPRequestHandler) -> None:
        to.send_response(code)
        for name, value in headers.items():
            to.send_header(name, value)
        to.send_header("Content-Length", "0")
        to.end_headers()

    return reply


def chunked(data: bytes) -> Reply:
    """Without a length."""

    def reply(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.send_header("Content-Type", "application/octet-stream")
        to.send_header("Transfer-Encoding", "chunked")
        to.end_headers()
        for start in range(0, len(data), 5000):
            piece = data[start : start + 5000]
            to.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        to.wfile.write(b"0\r\n\r\n")

    return reply


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def sources(tmp_path) -> FsspecSourceStore:
    return FsspecSourceStore(tmp_path / "sources")


def here(*public: str) -> Gate:
    """Every name is this machine; only those given pass for public."""
    return Gate(public or ("films.host",), resolver=lambda host, port: ["127.0.0.1"])


def fetch(server: Server, sources: FsspecSourceStore, path: str, gate: Gate | None = None, **options):
    stopped = options.pop("stopped", lambda: False)
    return Fetcher(gate or here(), **options).fetch(server.url(path), "me", sources, stopped=stopped)


@pytest.mark.parametrize("reply", [body(VIDEO), chunked(VIDEO)])
def test_what_a_url_delivers_is_kept_under_its_name(server, sources, reply):
    server.replies["/a/holiday%20film.mp4"] = reply
    ref = fetch(server, sources, "/a/holiday%20film.mp4?token=secret")
    assert (ref.name, ref.size_bytes) == ("holiday film.mp4", len(VIDEO))
    with sources.open_local("me", ref) as path:
        assert path.read_bytes() == VIDEO
    assert server.asked == [(f"films.host:{server.port}", "/a/holiday%20film.mp4?token=secret")]


def test_redirects_are_followed_and_every_hop_is_checked(server, sources):
    server.replies["/1"] = status(302, Location="/film.mp4")
    assert fetch(server, sources, "/1").size_bytes == len(VIDEO)
    server.replies["/2"] = status(307, Location=server.url("/film.mp4", host="inner.host"))
    server.asked.clear()
    with pytest.raises(SourceRefused, match=r"inner\.host"):
        fetch(server, sources, "/2")
    assert len(server.asked) == 1  # the second hop was never asked
    for bad in ("file:///etc/passwd", "ftp://films.host/x", "http://user:secret@films.host/x", ""):
        server.replies["/3"] = status(301, Location=bad) if bad else status(301)
        with pytest.raises((SourceRefused, FetchFailed)):
            fetch(server, sources, "/3")
    server.replies["/4"] = status(302, Location="/4")
    with pytest.raises(FetchFailed, match="redirects"):
        fetch(server, sources, "/4")


def test_a_name_that_changes_its_address_after_the_check_changes_nothing(server, sources):
    looks = []

    def rebinding(host: str, port: int) -> list[str]:
        looks.append(host)
        return ["127.0.0.1"] if len(looks) == 1 else ["127.0.0.2"]

    gate = Gate(["127.0.0.1"], resolver=rebinding)
    assert fetch(server, sources, "/film.mp4", gate).size_bytes == len(VIDEO)
    assert looks == ["films.host"]
    with pytest.raises(SourceRefused):
        fetch(server, sources, "/film.mp4", gate)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (body(b"<html>not here</html>", "text/html"), NotAVideo),
        (body(b"<html>not here</html>", "video/mp4"), NotAVideo),
        (body(b'{"error": 1}', "application/octet-stream"), NotAVideo),
        (body(b"#EXTM3U\nfile:///etc/passwd", "video/mp4"), NotAVideo),
        (body(b"", "video/mp4"), EmptyVideo),
        (body(VIDEO, length=len(VIDEO) + 50), FetchFailed),
        (status(404), FetchFailed),
        (status(500), FetchFailed),
        (status(204), FetchFailed),
    ],
)
def test_what_is_no_video_or_does_not_come_whole_leaves_nothing(server, sources, tmp_path, reply, error):
    server.replies["/x.mp4"] = reply
    with pytest.raises(error):
        fetch(server, sources, "/x.mp4")
    assert files(tmp_path) == []


@pytest.mark.parametrize("reply", [body(VIDEO), chunked(VIDEO)])
def test_more_bytes_than_are_taken_are_refused(server, sources, tmp_path, reply):
    server.replies["/x.mp4"] = reply
    with pytest.raises(SourceTooLarge):
        fetch(server, sources, "/x.mp4", max_bytes=len(VIDEO) - 1)
    assert files(tmp_path) == []
    assert fetch(server, sources, "/x.mp4", max_bytes=len(VIDEO)).size_bytes == len(VIDEO)


def test_a_server_that_takes_too_long_is_given_up(server, sources, tmp_path):
    now = iter(range(0, 10_000, 40))
    with pytest.raises(FetchFailed, match="slowly"):
        fetch(server, sources, "/film.mp4", within_s=60.0, clock=lambda: next(now))
    assert files(tmp_path) == []


def test_a_fetch_can_be_cancelled(server, sources, tmp_path):
    with pytest.raises(Cancelled):
        fetch(server, sources, "/film.mp4", stopped=lambda: True)
    assert files(tmp_path) == []


def test_nobody_there_is_a_failed_fetch(server, sources):
    server.close()
    try:
        with pytest.raises(FetchFailed):
            fetch(server, sources, "/film.mp4")
    finally:
        server.__init__()  # for the fixture to close


@pytest.mark.parametrize(
    "url",
    ["", "film.mp4", "file:///etc/passwd", "gopher://x/", "http:///x", "https://a:b@host/x", "http://[::1", "//h/x"],
)
def test_what_is_no_url_to_fetch_is_refused(url):
    with pytest.raises(SourceRefused):
        check_url(url)


def test_a_proxy_of_the_environment_is_not_asked(server, sources, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert fetch(server, sources, "/film.mp4").size_bytes == len(VIDEO)


def test_a_url_becomes_a_video_and_what_is_none_fails_its_job(server, tmp_path):
    film = mosaic(tmp_path / "film.mp4", 8)
    server.replies["/film.mp4"] = body(film.read_bytes())
    server.replies["/fake.mp4"] = body(VIDEO)
    store = tmp_path / "store"

    async def jobs() -> None:
        with local_service(f"disk:{store}", lm=qwen3_vl(0), fetch_allow=("127.0.0.1",)) as service:
            good, fake = [
                await service.submit("me", IndexRequest(url=server.url(path, "127.0.0.1"), recipe=SMALL))
                for path in ("/film.mp4?signature=s", "/fake.mp4")
            ]
            assert good.video is None
            done = await service.job("me", good.id, wait_s=END_S)
            assert done.state is JobState.READY, done.problem
            video = await service.video("me", done.video)
            assert (video.name, video.source_bytes) == ("film.mp4", film.stat().st_size)
            failed = await service.job("me", fake.id, wait_s=END_S)
            assert failed.state is JobState.FAILED and failed.problem.status == 422
            end_s = time.monotonic() + END_S
            while len(files(store / "sources")) > 1 and time.monotonic() < end_s:
                await asyncio.sleep(0.05)  # it is forgotten once the job has said why
            assert len(files(store / "sources")) == 1  # what is no video is not kept

    run(jobs())
