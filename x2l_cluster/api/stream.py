"""From the service's iterators to responses: events as they come, and an end to work whose asker has left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar, cast

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from x2l_cluster.api.problems import problem_of
from x2l_cluster.api.settings import ApiSettings
from x2l_cluster.api.wire import dump
from x2l_cluster.errors import Cancelled
from x2l_cluster.messages import Problem

T = TypeVar("T")
R = TypeVar("R")

# At DEBUG it logs what is sent, which is what was answered.
logging.getLogger("sse_starlette.sse").setLevel(logging.INFO)


class Feed(Generic[T]):
    """Iterates ``events`` in one task of its own, from the first event to the last, and closes it there.

    So an iterator may hold what belongs to a task (a timeout, say), and its clean-up is cancelled once and not, as a
    response's own scope would, at every step. At most one event is ahead of the reader.
    """

    def __init__(self, events: AsyncIterator[T]) -> None:
        self._queue: asyncio.Queue[tuple[T] | Exception | None] = asyncio.Queue(1)
        self._task = asyncio.create_task(self._run(cast(AsyncGenerator[T, None], events)))

    async def _run(self, events: AsyncGenerator[T, None]) -> None:
        try:
            async for event in events:
                await self._queue.put((event,))
        except Exception as error:  # noqa: BLE001 - raised to the reader
            await self._queue.put(error)
        else:
            await self._queue.put(None)
        finally:
            await events.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        got = await self._queue.get()
        if got is None:
            raise StopAsyncIteration
        if isinstance(got, Exception):
            raise got
        return got[0]

    async def aclose(self) -> None:
        """Stops the work, and waits until it has stopped."""
        self._task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self._task])

    async def kept(self, work: Coroutine[Any, Any, R]) -> R:
        """What ``work`` gives, which reads from here; when it raises, the feed is closed."""
        try:
            return await work
        except BaseException:
            await self.aclose()
            raise


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; when the client leaves before, ``work`` is cancelled and Cancelled is raised."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Cancelled("the caller has left")
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


class EventStream(EventSourceResponse):
    """Server-sent events written from ``feed``, which is closed when the response ends, however it does.

    While there is nothing to say, comments are sent. An error is told in a last event, made by ``failed``.
    """

    def __init__(
        self,
        request: Request,
        feed: Feed[Any],
        events: AsyncIterator[ServerSentEvent],
        *,
        failed: Callable[[Problem], ServerSentEvent] = lambda problem: event("error", problem),
    ) -> None:
        settings: ApiSettings = request.app.state.settings
        super().__init__(self._told(request, events), ping=settings.heartbeat_s, send_timeout=settings.send_s)
        self._feed, self._failed = feed, failed

    async def _told(self, request: Request, events: AsyncIterator[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
        try:
            async for said in events:
                yield said
        except Exception as error:  # noqa: BLE001 - the status is sent, so a bug too can only be told here
            yield self._failed(problem_of(request.scope, error))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._feed.aclose()


def event(name: str, value: Any, *, id: int | None = None) -> ServerSentEvent:
    """A message as a server-sent event."""
    return ServerSentEvent(event=name, data=dump(value).decode(), id=None if id is None else str(id))
