"""The service on a real Ray cluster over real HTTP, with real servers for state and blocks: whoever comes, and goes."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines import SMALL, calibration, mosaic
from tests.ray_cluster import ray_cluster
from tests.tiny import checkpoint
from x2l_cluster.client import X2L
from x2l_cluster.cluster.place import Place
from x2l_cluster.errors import UnknownVideo
from x2l_cluster.kv.embedded import EmbeddedValkey
from x2l_cluster.messages import AnswerCompleted, AnswerCreated, AnswerDelta, JobState
from x2l_cluster.models import load_model
from x2l_cluster.settings import Settings

QUESTION = "What code is shown with the red star?"
LONG = {"max_tokens": 3000, "detail": "coarse"}
"""A question that is being answered for a while."""
ONGOING = 2


@dataclass
class Running:
    """A service with its parts, which a test may take away."""

    url: str
    chosen: dict[str, Any]
    kv: EmbeddedValkey
    before: dict[str, Any] = field(default_factory=dict)
    """What was seen before anybody could answer."""

    def deploy_gateway(self) -> None:
        from ray import serve

        from x2l_cluster.cluster import gateway

        app = gateway(self.chosen, graceful_shutdown_timeout_s=60.0, ray_actor_options={"num_cpus": 0.1})
        serve.run(app, name="gateway", route_prefix="/")


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [mosaic(folder / f"film{n}.mp4", 12 + 4 * n, seed=n) for n in range(2)]


@pytest.fixture(scope="module")
def running(tmp_path_factory, films):
    """Gateway, one replica that answers, one actor that indexes."""
    from ray import serve

    from services.indexer.main import app as indexer
    from x2l_cluster.cluster import answerer

    with ExitStack() as stack:
        state = stack.enter_context(EmbeddedValkey(flags={"appendonly": "yes", "appendfsync": "always"}))
        kv = stack.enter_context(EmbeddedValkey(maxmemory_bytes=256 << 20))
        disk = tmp_path_factory.mktemp("index")
        model = checkpoint(tmp_path_factory.mktemp("model"))
        calibration(load_model(model, device="cpu")).save(Path(model) / "calibration.json")
        chosen = {"model": model, "store": f"tiers:{kv.url}|disk:{disk}", "state": f"{state.url}?durable=true"}
        chosen |= {"device": "cpu", "prefill_max": 1, "lease_s": 5.0}

        stack.enter_context(ray_cluster(workers=1, prefill=1))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        made = Running(url=f"http://127.0.0.1:{port}", chosen=chosen, kv=kv)
        made.deploy_gateway()
        with X2L(made.url) as x2l:
            made.before["ready"] = httpx.get(f"{made.url}/readyz")
            made.before["live"] = httpx.get(f"{made.url}/livez")
            made.before["job"] = x2l.index(films[0], video="v0", recipe=SMALL)
            made.before["videos"] = x2l.videos()
        serve.run(indexer(chosen), name="indexer", route_prefix=None)
        app = answerer(chosen, max_ongoing_requests=ONGOING, max_queued_requests=1, ray_actor_options={"num_cpus": 1})
        serve.run(app, name="answerer", route_prefix=None)
        yield made


@pytest.fixture(scope="module")
def x2l(running):
    with X2L(running.url) as client:
        yield client


@pytest.fixture(scope="module")
def videos(x2l, running, films) -> list[str]:
    jobs = [running.before["job"], x2l.index(films[1], video="v1", recipe=SMALL)]
    assert [x2l.wait(job.id).state for job in jobs] == [JobState.READY] * 2
    return ["v0", "v1"]


def test_without_an_answering_worker_it_lives_takes_jobs_on_and_is_not_ready(running):
    ready = running.before["ready"]
    assert (ready.status_code, ready.json()["model_loaded"], ready.json()["answering"]) == (503, False, False)
    assert "Retry-After" in ready.headers
    assert "no answering worker has loaded its model" in ready.json()["degraded"]
    assert running.before["live"].status_code == 200
    assert running.before["job"].state is JobState.QUEUED
    assert running.before["videos"] == []


def test_once_a_model_is_loaded_it_is_ready_and_knows_it(running, x2l):
    ready = httpx.get(f"{running.url}/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"model_loaded": True, "answering": True, "indexing": True, "degraded": []}
    card = httpx.get(f"{running.url}/v1/models").json()["data"][0]
    assert card["id"] == running.chosen["model"]
    estimate = x2l.estimate(12.0, width=48, height=48, recipe=SMALL)
    assert estimate.chunks == 3 and set(estimate.tiers) == {"remote", "disk"}
    assert "x2l_requests_total" in httpx.get(f"{running.url}/metrics").text


def test_answers_and_moments_are_those_of_an_engine_over_the_same_stores(running, x2l, videos):
    with Place.of(Settings.over(running.chosen)).engine() as engine:
        wanted = [engine.ask(video, QUESTION, detail="k=2") for video in videos]
        hits, _ = engine.search(QUESTION, videos)
    events = list(x2l.answers(QUESTION, videos, detail="k=2", synthesis=True))
    ends = [event for event in events if isinstance(event, AnswerCompleted)]
    assert isinstance(events[0], AnswerCreated) and len(events[0].parts) == 3
    by_part = {end.part: end for end in ends}
    assert [by_part[part.id].text for part in events[0].parts[:2]] == [answer.text for answer in wanted]
    closing_end = by_part[events[0].parts[2].id]
    assert closing_end is ends[-1] and closing_end.answer is None
    said = "".join(e.text for e in events if isinstance(e, AnswerDelta) and e.part == closing_end.part)
    assert said == closing_end.text
    found = x2l.search(QUESTION)
    assert [(m.video, m.chunk, m.score) for m in found.moments] == [(h.video, h.chunk, h.score) for h in hits]
    assert (found.searched, found.skipped) == (2, {})


def test_what_concerns_a_caller_is_said_as_the_error_it_is(running, x2l, videos):
    (part,) = x2l.ask(QUESTION, ["nobody"]).parts
    assert part.problem and part.problem.code == UnknownVideo.code
    with pytest.raises(UnknownVideo):
        x2l.search(QUESTION, ["nobody"])


def test_a_full_house_turns_away_with_a_time_to_come_back_and_who_leaves_makes_room(running, videos):
    with X2L(running.url) as client, ExitStack() as guests:
        inside = []
        for _ in range(ONGOING):
            events = guests.enter_context(closing(client.answers(QUESTION, ["v0"], **LONG)))
            assert isinstance(next(events), AnswerCreated)
            inside.append(events)
        for events in inside:
            while not isinstance(next(events), AnswerDelta):
                pass
        with ThreadPoolExecutor(6) as others:
            body = {"question": QUESTION, "videos": ["v0"], "max_tokens": 4}
            asking = [
                others.submit(httpx.post, f"{running.url}/v1/answers", json=body, timeout=120.0) for _ in range(6)
            ]
            refused = next(told for done in as_completed(asking) if (told := done.result()).status_code == 503)
            guests.close()
    assert refused.json()["code"] == "overloaded" and int(refused.headers["Retry-After"]) >= 1
    told = [done.result() for done in asking]
    assert {response.status_code for response in told} == {200, 503}, "who waited in line was let in"


def test_a_gateway_that_goes_ends_what_it_has_begun_and_loses_no_job(running, x2l, videos, films):
    from ray import serve

    with closing(x2l.answers(QUESTION, ["v0"], **(LONG | {"max_tokens": 600}))) as events:
        assert isinstance(next(events), AnswerCreated)
        job = x2l.index(films[1], video="again", recipe=SMALL)
        going = threading.Thread(target=serve.delete, args=("gateway",))
        going.start()
        end = list(events)[-1]
        going.join()
    assert isinstance(end, AnswerCompleted) and end.answer.usage.answer_tokens == 600
    running.deploy_gateway()
    assert x2l.wait(job.id).state is JobState.READY
    assert x2l.delete("again").freed_bytes > 0
    assert [video.id for video in x2l.videos()] == videos


def test_without_the_kv_server_it_is_ready_and_answers_coarse_and_says_so(running, x2l, videos):
    running.kv.close()
    ready = _until(lambda: httpx.get(f"{running.url}/readyz"), lambda response: response.json()["degraded"])
    assert (ready.status_code, ready.json()["answering"]) == (200, True)
    assert any(told.startswith("kv: ") for told in ready.json()["degraded"])
    (part,) = x2l.ask(QUESTION, ["v1"], detail="fine").parts
    assert part.completed and part.completed.degraded


def _until(look, good, within_s: float = 60.0):
    end_s = time.monotonic() + within_s
    while True:
        try:
            seen = look()
            if good(seen):
                return seen
        except httpx.TimeoutException:
            seen = None
        assert time.monotonic() < end_s, seen
        time.sleep(0.05)
