"""Questions: answers about videos, streamed or whole, moments that fit, and conversations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from sse_starlette import ServerSentEvent
from starlette.requests import Request

from x2l_cluster.api.auth import counted
from x2l_cluster.api.bodies import AnswerBody, SearchBody, SessionBody
from x2l_cluster.api.deps import Access, Tenant, Work
from x2l_cluster.api.problems import raises
from x2l_cluster.api.stream import EventStream, Feed, event, unless_gone
from x2l_cluster.api.wire import dump
from x2l_cluster.errors import InvalidQuestion, ModelMismatch, QuotaExceeded, UnknownSession, UnknownVideo
from x2l_cluster.messages import AnswerEvent, Answers, Found, Session
from x2l_cluster.metrics import STREAMS

router = APIRouter(prefix="/v1", tags=["questions"])


@router.post(
    "/answers",
    response_model=Answers,
    responses=raises(InvalidQuestion, UnknownSession, QuotaExceeded)
    | {
        200: {
            "description": "With `stream`, server-sent events: `answer.created` names every part; each part then has "
            "`answer.plan`, `answer.delta`…, `answer.evidence`, and ends with `answer.completed` or `answer.failed`. "
            "`error` with a Problem when the service fails as a whole. Without, all of it as one object.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def answer(body: AnswerBody, service: Work, tenant: Tenant, access: Access, request: Request) -> Any:
    """One question about one or many videos; each is answered, or fails, by itself. Leaving stops the work."""
    ask = body.ask()
    await access.may_ask(tenant, len(ask.videos) or 1)
    feed = Feed(counted(access, tenant, service.answers(tenant, ask)))
    first = await feed.kept(unless_gone(request, feed.__anext__()))
    if body.stream:
        return EventStream(request, feed, _told(feed, first))
    answers = Answers.of([first, *await feed.kept(unless_gone(request, _rest(feed)))])
    await feed.aclose()
    return Response(dump(answers), media_type="application/json")


async def _rest(feed: Feed[AnswerEvent]) -> list[AnswerEvent]:
    return [said async for said in feed]


async def _told(feed: Feed[AnswerEvent], first: AnswerEvent) -> AsyncIterator[ServerSentEvent]:
    with STREAMS.track_inprogress():
        yield event(first.name, first)
        async for said in feed:
            yield event(said.name, said)


@router.post("/search", responses=raises(InvalidQuestion, UnknownVideo, ModelMismatch, QuotaExceeded))
async def search(body: SearchBody, service: Work, tenant: Tenant, access: Access, request: Request) -> Found:
    """Moments that fit, best first, in some videos or in all of yours; none of them is loaded for it."""
    wanted = body.request()
    await access.may_ask(tenant, 1)
    return await unless_gone(request, service.search(tenant, wanted))


@router.post("/sessions", status_code=201, responses=raises(UnknownVideo, QuotaExceeded))
async def open_session(body: SessionBody, service: Work, tenant: Tenant) -> Session:
    """Begins a conversation: name it in `session` of the next questions."""
    return await service.open_session(tenant, body.videos)


@router.get("/sessions/{session:id}", responses=raises(UnknownSession))
async def session(session: str, service: Work, tenant: Tenant) -> Session:
    """What was said so far."""
    return await service.session(tenant, session)


@router.delete("/sessions/{session:id}", status_code=204, responses=raises(UnknownSession))
async def close_session(session: str, service: Work, tenant: Tenant) -> None:
    """Ends a conversation."""
    await service.close_session(tenant, session)
