"""How the workers of a cluster are, when Serve's controller says so and when it does not answer."""

from __future__ import annotations

import asyncio
import threading

import pytest
from ray.exceptions import ActorDiedError

from x2l_cluster.cluster import workers
from x2l_cluster.cluster.workers import RayWorkers
from x2l_cluster.errors import AnswerLost, Overloaded, UnknownVideo
from x2l_cluster.messages import Found, Problem
from x2l_cluster.service import SearchRequest


class Replica:
    """A handle whose calls give what they are told to."""

    def __init__(self, **answers):
        self._answers = answers

    def __getattr__(self, name):
        return _Call(self._answers[name])


class _Call:
    def __init__(self, answer):
        self._answer = answer

    def remote(self, *_, **__):
        return self

    def __await__(self):
        return self._told().__await__()

    async def _told(self):
        if isinstance(self._answer, BaseException):
            raise self._answer
        if self._answer is None:
            await asyncio.Event().wait()
        return self._answer

    def cancel(self):
        pass


@pytest.fixture
def controller(monkeypatch):
    """Says which applications run, or nothing."""
    said = {}
    monkeypatch.setattr(workers, "_running", lambda: dict(said))
    monkeypatch.setattr(workers, "_LOOK_S", 5.0)
    return said


def test_questions_are_answered_when_a_replica_runs_and_jobs_done_when_somebody_looks_after_them(controller):
    there = RayWorkers(Replica())
    assert not asyncio.run(there.pulse()).answering
    assert "loaded its model" in asyncio.run(there.pulse()).amiss[0]
    controller["answerer"] = 1
    pulse = asyncio.run(there.pulse())
    assert (pulse.loaded, pulse.answering, pulse.indexing, pulse.amiss) == (True, True, False, ())
    controller["indexer"] = 1
    assert asyncio.run(there.pulse()).indexing


@pytest.mark.parametrize(("facts", "answering"), [("facts", True), (None, False), (ActorDiedError(), False)])
def test_without_a_controller_a_replica_is_asked_and_looks_do_not_pile_up(monkeypatch, facts, answering):
    back, looks = threading.Event(), []

    def hang():
        looks.append(1)
        assert back.wait(60)
        return {}

    monkeypatch.setattr(workers, "_running", hang)
    monkeypatch.setattr(workers, "_LOOK_S", 0.01)
    there = RayWorkers(Replica(facts=facts))
    for _ in range(5):
        pulse = asyncio.run(there.pulse())
        assert pulse.answering is answering
        assert pulse.amiss == ("Ray's head does not answer",)
    assert len(looks) == 1
    back.set()


def test_what_a_replica_says_is_told_as_the_error_it_is():
    request = SearchRequest(question="?")
    found = Found(moments=(), searched=0)
    assert asyncio.run(RayWorkers(Replica(search=found)).search("me", request)) is found
    with pytest.raises(UnknownVideo):
        asyncio.run(RayWorkers(Replica(search=Problem.of(UnknownVideo("no")))).search("me", request))
    with pytest.raises(AnswerLost):
        asyncio.run(RayWorkers(Replica(search=ActorDiedError())).search("me", request))


def test_what_is_not_known_is_asked_once(monkeypatch):
    monkeypatch.setattr(workers, "_ASK_S", 0.01)
    there = RayWorkers(Replica(facts="facts"))
    assert there.known is None
    assert asyncio.run(there.facts()) == "facts" == there.known
    with pytest.raises(Overloaded):
        asyncio.run(RayWorkers(Replica(facts=None)).facts())
