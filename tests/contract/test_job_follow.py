"""Following a job from a coroutine, over all queues."""

from __future__ import annotations

import asyncio

import pytest

from tests.ledgers import Clock, LedgerMaker
from x2l_cluster.errors import UnknownJob
from x2l_cluster.messages import JobState
from x2l_cluster.state.follow import ended, follow
from x2l_cluster.state.jobs import JobQueue
from x2l_cluster.state.moves import Policy
from x2l_cluster.state.queue import Jobs


@pytest.fixture
def queue(ledgers: LedgerMaker, clock: Clock) -> JobQueue:
    return Jobs(ledgers("jobs"), policy=Policy(keep_s=10.0), clock=clock)


def work(queue: JobQueue, chunks: int) -> None:
    held = queue.lease("w1", ttl_s=30.0)
    assert held is not None
    for chunk in range(1, chunks + 1):
        queue.progress(held, chunks_done=chunk, covered_s=chunk * 8.0)
    queue.finish(held)


def test_a_follower_gets_every_event_once_and_ends_with_the_job(queue: JobQueue) -> None:
    async def scene() -> list[int]:
        job = await asyncio.to_thread(queue.submit, "ada", {})
        seen: list[int] = []
        async for event in follow(queue, "ada", job.id):
            seen.append(event.number)
            if event.name == "job.queued":  # from here on events happen while they are followed
                working = asyncio.create_task(asyncio.to_thread(work, queue, 20))
        await working
        return seen

    assert asyncio.run(asyncio.wait_for(scene(), 30)) == list(range(1, 24))


def test_a_follower_that_was_cut_off_goes_on_where_it_was(queue: JobQueue) -> None:
    job = queue.submit("ada", {})
    work(queue, 5)

    async def numbers(after: int, most: int = 99) -> list[int]:
        seen = []
        async for event in follow(queue, "ada", job.id, after=after):
            seen.append(event.number)
            if len(seen) == most:
                break
        return seen

    async def scene() -> list[int]:
        first = await numbers(0, most=3)
        return first + await numbers(first[-1]) + await numbers(8) + await numbers(99)

    assert asyncio.run(scene()) == list(range(1, 9))


def test_waiting_for_a_job_ends_with_the_job_or_with_patience(queue: JobQueue, clock: Clock) -> None:
    async def scene() -> None:
        job = await asyncio.to_thread(queue.submit, "ada", {})
        assert (await ended(queue, "ada", job.id, wait_s=0.0)).state is JobState.QUEUED
        waiting = asyncio.create_task(ended(queue, "ada", job.id, wait_s=60.0))
        await asyncio.to_thread(work, queue, 1)
        assert (await asyncio.wait_for(waiting, 10)).state is JobState.READY
        clock.now_s += 10.0
        await asyncio.to_thread(queue.sweep)
        for late in (ended(queue, "ada", job.id, wait_s=1.0), anext(follow(queue, "ada", job.id))):
            with pytest.raises(UnknownJob):
                await late

    asyncio.run(scene())
