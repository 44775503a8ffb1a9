"""A load generator: many people ask about many videos, and what they see of it is written down.

*Closed*: so many people, each asks again as soon as it has its answer: how much can be served. *Open*: questions come
when they come (Poisson), however busy the service is: how long people wait. Times count from the moment a question was
due, not from when there was time to send it, so that a service that stalls is not spared.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Any

import numpy as np

from x2l_cluster.errors import InvalidInput, X2LError
from x2l_cluster.messages import AnswerCompleted, AnswerDelta, AnswerEvent, AnswerFailed
from x2l_cluster.types import Tier

AskIt = Callable[[str, str], AsyncGenerator[AnswerEvent, None]]
"""Asks a question about one video; its events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Who asks what: the videos, the most popular first, with the questions about each.

    Attributes:
        zipf: the video of rank n is asked about in proportion to n to the minus this; 0 makes all alike.
    """

    questions: Mapping[str, Sequence[str]]
    zipf: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.questions or not all(self.questions.values()):
            raise InvalidInput("a load needs at least one video, and a question about each")
        if self.zipf < 0:
            raise InvalidInput(f"zipf is at least 0, got {self.zipf}")

    def draw(self, number: int) -> list[tuple[str, str]]:
        """So many videos and questions; the same ones for the same seed."""
        random = Random(self.seed)
        weights = [rank**-self.zipf for rank in range(1, len(self.questions) + 1)]
        videos = random.choices(list(self.questions), weights, k=number)
        return [(video, random.choice(self.questions[video])) for video in videos]


@dataclass(slots=True, kw_only=True)
class Seen:
    """What one who asked has seen. Times in seconds from when the question was due.

    Attributes:
        pieces: when each piece of text came.
        found: stored bytes of fine blocks, by the tier they were found in: on the device they were hot.
        problem: the code of what it failed with.
    """

    due_s: float
    pieces: list[float] = field(default_factory=list)
    took_s: float = 0.0
    tokens: int = 0
    degraded: bool = False
    found: Counter[Tier] = field(default_factory=Counter)
    problem: str | None = None

    def note(self, event: AnswerEvent) -> None:
        match event:
            case AnswerDelta():
                self.pieces.append(perf_counter() - self.due_s)
            case AnswerFailed(problem=problem):
                self.problem = problem.code
            case AnswerCompleted(degraded=degraded, answer=answer):
                self.degraded = degraded
                if answer is not None:
                    self.tokens = answer.usage.answer_tokens
                    for item in answer.evidence:
                        self.found[item.tier] += 0 if item.degraded else item.size_bytes


async def closed(ask: AskIt, crowd: Crowd, *, people: int, questions: int) -> dict[str, Any]:
    """So many people ask so many questions, each the next one when it has the answer to its last."""
    left = crowd.draw(questions)
    seen: list[Seen] = []

    async def person() -> None:
        while left:
            video, question = left.pop()
            seen.append(await _asked(ask, video, question, perf_counter()))

    begun = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(people):
            group.create_task(person())
    return {"people": people, **summary(seen, perf_counter() - begun)}


async def opened(ask: AskIt, crowd: Crowd, *, rate: float, questions: int) -> dict[str, Any]:
    """So many questions that come at random, ``rate`` a second on average, whatever becomes of the ones before."""
    random = Random(crowd.seed)
    begun = due = perf_counter()
    async with asyncio.TaskGroup() as group:
        asking = []
        for video, question in crowd.draw(questions):
            due += random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - perf_counter()))
            asking.append(group.create_task(_asked(ask, video, question, due)))
    return {"rate_per_s": round(rate, 3), **summary([task.result() for task in asking], perf_counter() - begun)}


async def _asked(ask: AskIt, video: str, question: str, due_s: float) -> Seen:
    seen = Seen(due_s=due_s)
    try:
        async with aclosing(ask(video, question)) as events:
            async for event in events:
                seen.note(event)
    except X2LError as error:  # refused as a whole: too busy, say
        seen.problem = error.code
    seen.took_s = perf_counter() - due_s
    return seen


def summary(seen: Sequence[Seen], wall_s: float) -> dict[str, Any]:
    """What a crowd has seen, in one object. Shares and times are of what was answered."""
    answered = [one for one in seen if one.problem is None]
    found: Counter[Tier] = sum((one.found for one in answered), Counter())
    return {
        "questions": len(seen),
        "answered": len(answered),
        "failed": dict(Counter(one.problem for one in seen if one.problem is not None)),
        "degraded_share": round(sum(one.degraded for one in answered) / max(1, len(answered)), 4),
        "questions_per_s": round(len(answered) / wall_s, 3),
        "tokens_per_s": round(sum(one.tokens for one in answered) / wall_s, 1),
        "ttft_s": percentiles([one.pieces[0] for one in answered if one.pieces]),
        "between_pieces_s": percentiles([gap for one in answered for gap in np.diff(one.pieces)]),
        "answer_s": percentiles([one.took_s for one in answered]),
        "fine_bytes_by_tier": {tier.value: size for tier, size in found.items()},
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": round(float(p50), 5), "p99": round(float(p99), 5)}
