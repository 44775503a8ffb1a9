"""The HTTP face and the client over the real service in one process, with tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest

from tests.engines import SMALL, mosaic
from tests.http import CuttingProxy, Server, serving
from tests.integration.test_api_tenants import ANNA, BERT, requests
from tests.services import local_service
from x2l_cluster.client import X2L
from x2l_cluster.errors import InvalidRecipe, UnknownVideo
from x2l_cluster.messages import AnswerCompleted, AnswerCreated, AnswerDelta, AnswerPlan, JobState
from x2l_cluster.service.local import LocalService

QUESTION = "What code is shown with the red star?"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mosaic(tmp_path_factory.mktemp("film") / "film.mp4", 20)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalService]:
    with local_service() as service:
        yield service


@pytest.fixture(scope="module")
def server(local: LocalService) -> Iterator[Server]:
    with serving(service=local, keys=True) as running:
        yield running


@pytest.fixture(scope="module")
def anna(server: Server) -> Iterator[X2L]:
    with X2L(server.url, key="key-a") as client:
        yield client


@pytest.fixture(scope="module")
def clip(anna: X2L, film: Path) -> str:
    job = anna.wait(anna.index(film, video="clip", recipe=SMALL).id)
    assert job.state is JobState.READY, job
    return "clip"


def test_an_answer_over_the_wire_is_that_of_the_engine(local: LocalService, anna: X2L, clip: str) -> None:
    events = list(anna.answers(QUESTION, [clip], detail="k=2", max_tokens=12))
    want = local.engine.ask(clip, QUESTION, tenant="anna", detail="k=2", generation=None)
    plans = [event.plan for event in events if isinstance(event, AnswerPlan)]
    end = events[-1]
    assert isinstance(end, AnswerCompleted) and end.answer
    assert [chunk.level for chunk in plans[0].chunks] == [chunk.level for chunk in want.plan.chunks]
    assert want.text.startswith(end.text)
    assert end.text == "".join(event.text for event in events if isinstance(event, AnswerDelta))
    assert {e.chunk for e in end.answer.evidence} == {e.chunk for e in want.evidence}


def test_events_of_a_real_job_come_each_once_however_often_they_are_cut(server: Server, anna: X2L, clip: str) -> None:
    (job,) = (job for job in anna.jobs() if job.video == clip)
    whole = list(anna.job_events(job.id))
    assert [event.number for event in whole] == sorted({event.number for event in whole})
    assert whole[-1].job.state is JobState.READY
    with CuttingProxy(server, cuts=range(300, 6000, 509)) as proxy:
        with X2L(proxy.url, key="key-a", sleep=lambda _: None) as x2l:
            assert list(x2l.job_events(job.id)) == whole
        assert proxy.connections > 3


def test_leaving_stops_the_decoding(server: Server, local: LocalService, anna: X2L, clip: str) -> None:
    with closing(anna.answers(QUESTION, [clip], max_tokens=2000)) as events:
        assert isinstance(next(events), AnswerCreated)
        while not isinstance(next(events), AnswerDelta):
            pass
        assert local.loop.live == 1
    server.until(lambda: local.loop.live == 0)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=server.url, headers=ANNA) as http:
        http.post("/v1/answers", json={"question": QUESTION, "videos": [clip], "max_tokens": 2000}, timeout=0.3)
    server.until(lambda: local.loop.live == 0 and local.loop.waiting == 0)


def test_the_stock_openai_client_streams_an_answer(server: Server, clip: str) -> None:
    part = {"type": "video_url", "video_url": {"url": f"x2l://{clip}"}}
    message = {"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key-a", max_retries=0) as client:
        (model,) = client.models.list()
        stream = client.chat.completions.create(
            model=model.id,
            messages=[message],  # type: ignore[list-item]
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 8


def test_a_frame_search_session_and_deletion(anna: X2L, film: Path) -> None:
    job = anna.wait(anna.index(film, video="brief", recipe=SMALL).id)
    assert job.state is JobState.READY
    picture, time_s = anna.frame("brief", 3.1)
    assert picture.startswith(b"\xff\xd8") and 2.5 <= time_s <= 3.1
    assert anna.search("a red star", ["brief"]).moments[0].video == "brief"
    session = anna.open_session(["brief"])
    said = anna.ask("And then?", session=session.id, max_tokens=4).parts[0].completed
    assert said and anna.session(session.id).turns[0].answers == {"brief": said.text}
    assert anna.estimate(60.0).chunks > 0
    assert sum(chunk.fine_bytes for chunk in anna.chunks("brief")) < anna.delete("brief").freed_bytes
    with pytest.raises(UnknownVideo):
        anna.video("brief")


def test_another_tenants_ids_are_as_unknown_as_any(server: Server, anna: X2L, clip: str) -> None:
    (job,) = (job for job in anna.jobs() if job.video == clip)
    session = anna.open_session([clip])
    ids = {"video": clip, "job": job.id, "session": session.id}
    nobodys = {kind: "x" * len(id) for kind, id in ids.items()}
    with httpx.Client(base_url=server.url, headers=BERT, timeout=60) as bert:
        for (method, path, body), (_, none_path, none_body) in zip(requests(ids), requests(nobodys), strict=True):
            real = bert.request(method, path, json=body)
            none = bert.request(method, none_path, json=none_body)
            assert real.status_code == none.status_code, path
            plain = real.text
            for kind, id in ids.items():
                plain = plain.replace(id, nobodys[kind])
            assert "answers" in path or "chat" in path or plain == none.text
            assert "film" not in real.text
    assert anna.video(clip).chunks == len(anna.chunks(clip))
    assert anna.job(job.id).state is JobState.READY
    assert anna.session(session.id) == session


def test_an_estimate_of_giant_frames_costs_no_more_than_is_seen_of_them(anna: X2L) -> None:
    recipe = {"max_pixels": 32 * 32, "chunk_frames": 4}
    giant = anna.estimate(60.0, width=16384, height=16384, recipe=recipe)
    assert giant == anna.estimate(60.0, width=64, height=64, recipe=recipe)
    with pytest.raises(InvalidRecipe, match="pixels"):
        anna.estimate(60.0, recipe={"chunk_frames": 1 << 16})
    with pytest.raises(InvalidRecipe, match="pixels"):
        anna.index(url="https://example.org/a.mp4", recipe={"height": 1 << 15, "width": 1 << 15})
