"""Services over tiny models, for tests of everything behind the service seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from tests.engines import SMALL, engine
from x2l_cluster.messages import AnswerCompleted, AnswerEvent, AnswerFailed, Job
from x2l_cluster.models import VideoLM
from x2l_cluster.service import IndexRequest, Service
from x2l_cluster.service.local import LocalOptions, LocalService

END_S = 60.0
"""A job that takes longer is broken."""


def local_service(store: str = "memory:", *, lm: VideoLM | None = None, **options: object) -> LocalService:
    chosen = LocalOptions(drain_s=1.0, **options)  # type: ignore[arg-type]
    return LocalService.over(engine(store, lm=lm), store=store, model="tiny", options=chosen)


async def pieces(data: bytes, size: int = 4096) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def indexed(service: Service, tenant: str, film: Path, **request: object) -> Job:
    """Uploads and indexes a file, and waits for the end of the job."""
    source = await service.keep(tenant, pieces(film.read_bytes()), name=film.name)
    job = await service.submit(tenant, IndexRequest(source=source, recipe=SMALL, **request))  # type: ignore[arg-type]
    return await service.job(tenant, job.id, wait_s=END_S)


async def all_of(events: AsyncIterator[AnswerEvent]) -> list[AnswerEvent]:
    return [event async for event in events]


def ends(events: Iterable[AnswerEvent]) -> dict[str, AnswerCompleted | AnswerFailed]:
    return {event.part: event for event in events if isinstance(event, AnswerCompleted | AnswerFailed)}


def run(coroutine):  # type: ignore[no-untyped-def]
    """Runs one test's coroutine."""
    return asyncio.run(asyncio.wait_for(coroutine, 120.0))
