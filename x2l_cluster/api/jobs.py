"""Indexing work: how it stands, what happens to it, stopping it and trying again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from sse_starlette import ServerSentEvent
from starlette.requests import Request

from x2l_cluster.api.deps import Limits, Tenant, Work
from x2l_cluster.api.problems import raises
from x2l_cluster.api.stream import EventStream, Feed, event, unless_gone
from x2l_cluster.errors import JobConflict, UnknownJob
from x2l_cluster.messages import Job, JobEvent

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
END = "stream.end"


@router.get("", responses=raises())
async def jobs(service: Work, tenant: Tenant) -> list[Job]:
    """Newest first."""
    return list(await service.jobs(tenant))


@router.get("/{job:id}", responses=raises(UnknownJob))
async def job(
    job: str,
    service: Work,
    tenant: Tenant,
    limits: Limits,
    request: Request,
    wait: Annotated[
        float, Query(ge=0, le=3600, description="seconds to wait for a final state, as far as is allowed")
    ] = 0.0,
) -> Job:
    """How a job stands; the same in every state. With ``wait`` as soon as it is final."""
    return await unless_gone(request, service.job(tenant, job, wait_s=min(wait, limits.max_wait_s)))


@router.get(
    "/{job:id}/events",
    response_class=Response,
    responses=raises(UnknownJob)
    | {
        200: {
            "description": "Server-sent events: `event` is the name of a JobEvent, `id` its number, `data` itself. "
            "`stream.end` when nothing more will come; `error` with a Problem when the service fails.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "Nothing has come since, and nothing more will."},
    },
)
async def events(
    job: str,
    service: Work,
    tenant: Tenant,
    request: Request,
    after: Annotated[int, Query(ge=0, le=1 << 53, description="the last event already seen")] = 0,
    last_event_id: Annotated[str | None, Header(description="as `after`, and wins over it")] = None,
) -> Response:
    """What has happened since an event and what happens from now on, each once; ends with a final state."""
    if last_event_id is not None and last_event_id.isdecimal() and len(last_event_id) < 16:
        after = int(last_event_id)
    known = await service.job(tenant, job)
    feed = Feed(service.job_events(tenant, job, after=after))
    # What is over has its events at hand; none tells a browser, which would come back for ever, that this is all.
    first = await feed.kept(anext(feed, None)) if known.state.final else None
    if first is None and known.state.final:
        await feed.aclose()
        return Response(status_code=204)
    return EventStream(request, feed, _told(feed, first))


async def _told(feed: Feed[JobEvent], first: JobEvent | None) -> AsyncIterator[ServerSentEvent]:
    if first is not None:
        yield event(first.name, first, id=first.number)
    async for told in feed:
        yield event(told.name, told, id=told.number)
    yield ServerSentEvent(event=END, data="{}")


@router.post("/{job:id}:cancel", responses=raises(UnknownJob))
async def cancel(job: str, service: Work, tenant: Tenant) -> Job:
    """Stops a job at its next chunk boundary; what is sealed stays. A final job stays as it is."""
    return await service.cancel(tenant, job)


@router.post("/{job:id}:retry", responses=raises(UnknownJob, JobConflict))
async def retry(job: str, service: Work, tenant: Tenant) -> Job:
    """Queues a failed or cancelled job again; it goes on behind what is sealed."""
    return await service.retry(tenant, job)
