"""A job queue from asyncio: waiting for a job's end, and following what happens to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from x2l_cluster.messages import Job, JobEvent
from x2l_cluster.state.jobs import JobQueue

_LOOK_S: Final = 5.0
"""A call that tells of news can be lost with a connection; so one looks now and then all the same."""


async def wait_for_end(queue: JobQueue, tenant: str, job: str, wait_s: float) -> Job:
    """How a job stands once it is final, or after that time. Raises UnknownJob."""
    end = time.monotonic() + wait_s
    found = await asyncio.to_thread(queue.job, tenant, job)
    if found.state.final or wait_s <= 0:
        return found
    with _news(queue, tenant, job) as news:
        while True:
            news.clear()
            found = await asyncio.to_thread(queue.job, tenant, job)
            left = end - time.monotonic()
            if found.state.final or left <= 0:
                return found
            await _heard(news, min(left, _LOOK_S))


async def follow(queue: JobQueue, tenant: str, job: str, after: int) -> AsyncGenerator[JobEvent]:
    """Events of a job behind ``after``, each once, up to a final state. The first ``anext`` raises UnknownJob."""
    with _news(queue, tenant, job) as news:
        while True:
            news.clear()
            stands = await asyncio.to_thread(queue.job, tenant, job)
            for event in await asyncio.to_thread(queue.events, tenant, job, after=after):
                after = event.number
                stands = event.job
                yield event
            if stands.state.final:
                return
            await _heard(news, _LOOK_S)


async def _heard(news: asyncio.Event, within_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(news.wait(), within_s)


@contextmanager
def _news(queue: JobQueue, tenant: str, job: str) -> Iterator[asyncio.Event]:
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def notify() -> None:
        with suppress(RuntimeError):  # the loop of a consumer that went away is closed
            loop.call_soon_threadsafe(news.set)

    with queue.watching(tenant, job, notify):
        yield news
