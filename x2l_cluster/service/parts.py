"""Several answers written side by side, as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from x2l_cluster.errors import X2LError
from x2l_cluster.messages import AnswerEvent, AnswerFailed, Problem
from x2l_cluster.service.requests import Ask


class Begun(Protocol):
    """A part of an answer that was taken on."""

    def events(self) -> AsyncGenerator[AnswerEvent]:
        """What becomes of it, up to AnswerCompleted or AnswerFailed. Asked for once."""
        ...

    def cancel(self) -> None:
        """Stops the work, whether anybody listens or not. May be called when it has ended."""
        ...


class PartAnswerer(Protocol):
    """Takes on parts, here or on some worker."""

    async def about(self, tenant: str, part: str, video: str, ask: Ask, history: Sequence[tuple[str, str]]) -> Begun:
        """The question, about one video. What concerns this part alone fails it. Raises Overloaded, QuotaExceeded."""
        ...

    async def closing(self, tenant: str, part: str, ask: Ask, answers: Mapping[str, str]) -> Begun:
        """One answer made of those about each video, by the language model alone. Raises as :meth:`about`."""
        ...


class FailedPart:
    """A part that never began."""

    def __init__(self, part: str, error: X2LError) -> None:
        self._event = AnswerFailed(part=part, problem=Problem.of(error))

    async def events(self) -> AsyncGenerator[AnswerEvent]:
        yield self._event

    def cancel(self) -> None:
        """There is nothing to stop."""


async def merged(parts: Sequence[Begun]) -> AsyncGenerator[AnswerEvent]:
    """Events of all parts as they come. The parts stay the caller's to cancel."""
    news: asyncio.Queue[AnswerEvent | BaseException | None] = asyncio.Queue()

    async def listen(part: Begun) -> None:
        try:
            async with aclosing(part.events()) as events:
                async for event in events:
                    news.put_nowait(event)
        except Exception as error:  # noqa: BLE001 (raised where the events are read)
            news.put_nowait(error)
        news.put_nowait(None)

    listening = [asyncio.create_task(listen(part)) for part in parts]
    try:
        left = len(parts)
        while left:
            event = await news.get()
            if event is None:
                left -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
