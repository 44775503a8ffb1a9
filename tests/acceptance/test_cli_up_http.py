"""What ``x2l up`` is to those who talk to it over HTTP, whoever they are, whatever they send."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from httpx_sse import EventSource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.acceptance.conftest import COMMAND, ROOT, X2L, at_home, film
from tests.acceptance.running import Running
from tests.integration.test_api_schema import CHECKS, DOCUMENT, schema
from tests.integration.test_api_tenants import requests
from x2l_cluster.client import X2L as Client
from x2l_cluster.messages import JobState

QUESTION = "What code is shown with the red star?"
SECRET = "annasfilm"


@dataclass(frozen=True)
class World:
    """A service that asks for keys, and two tenants; anna has a video, a job and a session, bert has none."""

    x2l: X2L
    url: str
    anna: str
    bert: str
    ids: dict[str, str]

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, clip: Path) -> Iterator[World]:
    x2l = at_home(tmp_path_factory.mktemp("home"), checkpoint)
    process = x2l.start("up", "--port", "0", "--json", "--api-keys", "required")
    try:
        url = Running.of(process).url
        anna, bert = (x2l.json("keys", "create", name)["secret"] for name in ("anna", "bert"))
        with Client(url, key=anna) as client:
            job = client.wait(client.index(clip, video=SECRET).id)
            assert job.state is JobState.READY, job
            session = client.open_session([SECRET])
        yield World(x2l, url, anna, bert, {"video": SECRET, "job": job.id, "session": session.id})
        assert process.poll() is None, "whatever was sent, it still runs"
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    for secret in (anna, bert, QUESTION):
        assert secret not in errors


def test_it_serves_the_document_that_is_tested(world: World) -> None:
    with world.client(world.bert) as http:
        assert http.get("/openapi.json").json() == DOCUMENT


@schema.parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_it_does_what_is_written_down(case: schemathesis.Case, world: World) -> None:
    case.call_and_validate(
        base_url=world.url, headers={"Authorization": f"Bearer {world.bert}"}, checks=CHECKS, timeout=60
    )


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_the_other_tenant_comes_back(world: World, data: st.DataObject) -> None:
    ids = world.ids
    mixed = {
        kind: data.draw(st.sampled_from([ids[kind], *ids.values(), "anna", "..", "%2e%2e", "a/b"])) for kind in ids
    }
    method, path, body = data.draw(st.sampled_from(requests(mixed)))
    method = data.draw(st.sampled_from([method, "GET", "POST", "DELETE", "PUT"]))
    with world.client(world.bert) as http:
        response = http.request(method, path, json=body)
    assert response.status_code < 500
    for trace in ("clip.mp4", '"chunk":', "decode_s", '"duration_s":30', "JFIF"):
        assert trace not in response.text


def test_the_other_tenant_has_lost_nothing(world: World) -> None:
    with Client(world.url, key=world.anna) as client:
        assert client.video(SECRET).chunks == len(client.chunks(SECRET)) == 8
        assert client.job(world.ids["job"]).state is JobState.READY
        assert client.session(world.ids["session"]).videos == (SECRET,)
    with Client(world.url, key=world.bert) as client:
        assert SECRET not in {video.id for video in client.videos()}


def test_the_stock_openai_client_streams_an_answer(world: World) -> None:
    part = {"type": "video_url", "video_url": {"url": SECRET}}
    message: Any = {"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}
    with openai.OpenAI(base_url=f"{world.url}/v1", api_key=world.anna, max_retries=0) as client:
        (model,) = client.models.list()
        chunks = list(client.chat.completions.create(model=model.id, messages=[message], max_tokens=8, stream=True))
    assert len(chunks) > 2 and "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    with (
        openai.OpenAI(base_url=f"{world.url}/v1", api_key=world.bert, max_retries=0) as other,
        pytest.raises(openai.NotFoundError),
    ):
        other.chat.completions.create(model=model.id, messages=[message], stream=True)


def test_events_that_are_cut_while_a_job_runs_come_each_once(world: World, tmp_path: Path) -> None:
    """Cuts the connection after so many bytes, wherever that is, and goes on behind the last event that came whole."""
    pick = random.Random(4)
    with world.client(world.anna) as http, Client(world.url, key=world.anna) as client:
        job = client.index(film(tmp_path / "long.mp4", seconds=240), video="long").id
        came: list[tuple[str, Any]] = []
        connections, ended = 0, False
        while not ended:
            after = {"Last-Event-ID": came[-1][0]} if came else {}
            with http.stream("GET", f"/v1/jobs/{job}/events", headers=after) as response:
                assert response.status_code == 200
                connections += 1
                cut = Cut(response, pick.randrange(200, 4000))
                with suppress(CutOff):
                    for event in cut.events():
                        ended = ended or event.event == "stream.end"
                        if event.id and not ended:
                            came.append((event.id, json.loads(event.data)["job"]))
        assert client.job(job).state is JobState.READY
        assert connections > 5
        assert [int(number) for number, _ in came] == list(range(1, len(came) + 1))
        done = [told["chunks_done"] for _, told in came]
        assert done == sorted(done) and done[-1] == 60
        assert [event.number for event in client.job_events(job)] == [int(number) for number, _ in came]


class CutOff(Exception):
    """The connection is gone."""


class Cut:
    """A response that ends after so many bytes, in the middle of whatever is on its way."""

    def __init__(self, response: httpx.Response, most_bytes: int) -> None:
        self._response, self._left = response, most_bytes

    def events(self) -> Iterator[Any]:
        whole = self._response.iter_raw

        def some(*_: object) -> Iterator[bytes]:
            for data in whole():
                yield data[: self._left]
                self._left -= len(data)
                if self._left <= 0:
                    self._response.close()
                    raise CutOff

        self._response.iter_bytes = some  # type: ignore[method-assign, assignment]
        return EventSource(self._response).iter_sse()


def test_on_a_terminal_one_sees_an_answer_come(world: World) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "ask", SECRET, QUESTION, "--detail", "k=2", "--max-tokens", "8"]
    env = world.x2l.env | {"X2L_URL": world.url, "X2L_API_KEY": world.anna, "TERM": "xterm"}
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # what a terminal says when nobody writes to it any more
        while data := os.read(ours, 1 << 16):
            seen += data
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, seen
    answer, evidence = out.decode().splitlines()[:2]
    assert answer.strip() in seen.decode() and "fine from" in evidence
