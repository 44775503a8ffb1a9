"""The load generator: what it asks, when, and what it writes down, of a service that does as it is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator

import pytest

from x2l_cluster.bench.load import Crowd, closed, opened, percentiles
from x2l_cluster.errors import InvalidInput, Overloaded
from x2l_cluster.messages import AnswerCompleted, AnswerDelta, AnswerEvent, AnswerFailed, Problem
from x2l_cluster.types import Answer, Detail, Evidence, Level, ReloadPlan, Span, Tier, Usage

CROWD = Crowd(questions={"a": ["one?", "two?"], "b": ["three?"], "c": ["four?"]})


def answer(*, degraded: str | None = None, tokens: int = 3) -> Answer:
    span = Span(start_s=0.0, end_s=16.0)
    plan = ReloadPlan(chunks=(), scorer="coarse", detail=Detail())
    found = Evidence(chunk=0, span=span, level=Level.L, score=1.0, tier=Tier.DISK, size_bytes=100, degraded=degraded)
    usage = Usage(prompt_tokens=1, answer_tokens=tokens, kv_entries=1, full_entries=1, reload_bytes=100, full_bytes=100)
    return Answer(
        text="abc", video="a", plan=plan, evidence=(found,), usage=usage, timings={}, finish="stop", covered=span
    )


class Service:
    """Answers in three pieces; remembers how many asked at once."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.now = self.most = 0

    async def __call__(self, video: str, question: str) -> AsyncGenerator[AnswerEvent, None]:
        self.asked.append((video, question))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for text in "abc":
                await asyncio.sleep(0)
                yield AnswerDelta(part="p", text=text)
            made = answer(degraded="late" if question == "three?" else None)
            yield AnswerCompleted(part="p", text="abc", degraded=made.degraded, answer=made)
        finally:
            self.now -= 1


def test_the_popular_are_asked_about_more_and_the_same_seed_asks_the_same() -> None:
    drawn = CROWD.draw(3000)
    counted = Counter(video for video, _ in drawn)
    assert counted["a"] > 1.5 * counted["b"] > counted["c"] > 300
    assert drawn == CROWD.draw(3000) != Crowd(questions=CROWD.questions, seed=1).draw(3000)
    alike = Counter(video for video, _ in Crowd(questions=CROWD.questions, zipf=0.0).draw(3000))
    assert max(alike.values()) < 1.2 * min(alike.values())


def test_a_closed_crowd_never_asks_more_than_it_has_people() -> None:
    service = Service()
    row = asyncio.run(closed(service, CROWD, people=4, questions=50))
    assert sorted(service.asked) == sorted(CROWD.draw(50)) and service.most == 4
    assert (row["questions"], row["answered"], row["failed"]) == (50, 50, {})
    late = sum(question == "three?" for _, question in service.asked)
    assert row["degraded_share"] == round(late / 50, 4) > 0
    assert row["fine_bytes_by_tier"] == {"disk": 100 * (50 - late)}
    assert row["ttft_s"]["p50"] > 0 and row["between_pieces_s"]["p99"] >= 0
    assert row["tokens_per_s"] == pytest.approx(3 * row["questions_per_s"], rel=0.01)


def test_an_open_crowd_asks_whatever_becomes_of_the_ones_before() -> None:
    gate, waiting = asyncio.Event(), 0

    async def stuck(video: str, question: str) -> AsyncGenerator[AnswerEvent, None]:
        nonlocal waiting
        waiting += 1
        if waiting == 20:  # all have come though none was answered
            gate.set()
        await gate.wait()
        yield AnswerDelta(part="p", text="x")
        yield AnswerCompleted(part="p", text="x", answer=answer())

    row = asyncio.run(asyncio.wait_for(opened(stuck, CROWD, rate=2000.0, questions=20), 30))
    assert row["answered"] == 20 and row["rate_per_s"] == 2000.0
    assert row["ttft_s"]["p99"] > row["ttft_s"]["p50"] > 0


def test_what_fails_or_is_refused_is_counted_by_code_and_is_no_answer() -> None:
    async def service(video: str, question: str) -> AsyncGenerator[AnswerEvent, None]:
        if video == "a":
            raise Overloaded("busy", retry_after_s=1.0)
        yield AnswerFailed(part="p", problem=Problem.of(InvalidInput("no")))

    row = asyncio.run(closed(service, CROWD, people=3, questions=30))
    refused = sum(video == "a" for video, _ in CROWD.draw(30))
    assert row["failed"] == {"overloaded": refused, "invalid_input": 30 - refused}
    assert (row["answered"], row["ttft_s"], row["degraded_share"]) == (0, None, 0.0)


def test_percentiles_of_nothing_are_none() -> None:
    assert percentiles([]) is None
    assert percentiles([1.0, 3.0]) == {"p50": 2.0, "p99": 2.98}


@pytest.mark.parametrize("bad", [{"questions": {}}, {"questions": {"a": []}}, {"questions": {"a": ["?"]}, "zipf": -1}])
def test_a_crowd_without_questions_is_refused(bad) -> None:
    with pytest.raises(InvalidInput):
        Crowd(**bad)
