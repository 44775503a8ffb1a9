"""Following a job from a coroutine: its events as they happen, or the moment it ends. Looks in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Final

from x2l_cluster.errors import UnknownJob
from x2l_cluster.messages import Job, JobEvent
from x2l_cluster.state.jobs import JobQueue

_LOOK_S: Final = 2.0
"""How often is looked without having been told: a call may be lost with a connection."""


async def follow(queue: JobQueue, tenant: str, job: str, *, after: int = 0) -> AsyncGenerator[JobEvent]:
    """Events behind ``after``, each once, until the job has ended and all is said. Raises UnknownJob at first."""
    async with _changes(queue, tenant, job) as changed:
        state = (await asyncio.to_thread(queue.job, tenant, job)).state
        while True:
            changed.clear()
            try:
                events = await asyncio.to_thread(queue.events, tenant, job, after=after)
            except UnknownJob:  # it ended, and was forgotten since
                return
            for event in events:
                yield event
                after, state = event.number, event.job.state
            if state.final:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _LOOK_S)


async def ended(queue: JobQueue, tenant: str, job: str, *, wait_s: float) -> Job:
    """The job as soon as it has ended, or as it is after ``wait_s``. Raises UnknownJob."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + wait_s
    async with _changes(queue, tenant, job) as changed:
        while True:
            changed.clear()
            found = await asyncio.to_thread(queue.job, tenant, job)
            left_s = end_s - loop.time()
            if found.state.final or left_s <= 0:
                return found
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left_s, _LOOK_S))


@asynccontextmanager
async def _changes(queue: JobQueue, tenant: str, job: str) -> AsyncIterator[asyncio.Event]:
    """An event that is set after every change of the job."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def notify() -> None:
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(changed.set)

    with ExitStack() as watching:
        await asyncio.to_thread(watching.enter_context, queue.watching(tenant, job, notify))
        yield changed
