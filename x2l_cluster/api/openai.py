"""The part of OpenAI's API that its stock clients need to ask questions about indexed videos."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from sse_starlette import ServerSentEvent
from starlette.requests import Request

from x2l_cluster.api.auth import counted
from x2l_cluster.api.chat import ChatBody, Completion
from x2l_cluster.api.deps import Access, Tenant, Work
from x2l_cluster.api.problems import openai_error, raises_openai
from x2l_cluster.api.stream import EventStream, Feed, unless_gone
from x2l_cluster.errors import ConnectionLost, InvalidQuestion, NotFound, QuotaExceeded, UnknownVideo
from x2l_cluster.messages import AnswerCompleted, AnswerCreated, AnswerDelta, AnswerEvent, AnswerFailed, ModelCard
from x2l_cluster.metrics import STREAMS

router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models", responses=raises_openai())
async def models(service: Work) -> dict[str, Any]:
    """The model that indexes and answers."""
    return {"object": "list", "data": [_card(card) for card in await service.models()]}


@router.get("/models/{model:path}", responses=raises_openai(NotFound))
async def model(model: str, service: Work) -> dict[str, Any]:
    """One model."""
    return _card(await _find(service, model))


async def _find(service: Work, name: str) -> ModelCard:
    for card in await service.models():
        if card.id == name:
            return card
    raise NotFound(f"there is no model {name!r:.200}; GET /v1/models lists what there is")


def _card(card: ModelCard) -> dict[str, Any]:
    return {"id": card.id, "object": "model", "created": 0, "owned_by": "x2l"}


@router.post(
    "/chat/completions",
    responses=raises_openai(NotFound, UnknownVideo, InvalidQuestion, QuotaExceeded)
    | {
        200: {
            "description": "A completion, or with `stream` its chunks as server-sent events.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
    response_model=dict[str, Any],
)
async def chat(body: ChatBody, service: Work, tenant: Tenant, access: Access, request: Request) -> Any:
    """The last message is asked about every video the conversation names; of several, the synthesis is the answer."""
    ask = body.ask()
    card = await _find(service, body.model)
    await access.may_ask(tenant, len(ask.videos))
    feed = Feed(counted(access, tenant, service.answers(tenant, ask)))
    heard = await feed.kept(unless_gone(request, _until(feed, whole=not body.stream)))
    created = heard[0] if heard else None
    if not isinstance(created, AnswerCreated):
        await feed.aclose()
        raise ConnectionLost("the answer broke off before it began; ask again")
    completion = Completion(created.id, card.id)
    wanted = created.parts[-1].id  # the synthesis, where there is one
    if body.stream and not any(isinstance(said, AnswerFailed) and said.part == wanted for said in heard):
        want_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _told(feed, heard, completion, wanted, want_usage)
        return EventStream(request, feed, events, failed=lambda problem: _data(openai_error(problem)))
    await feed.aclose()
    return completion.whole(_end(heard, wanted), heard)


async def _until(feed: Feed[AnswerEvent], *, whole: bool) -> list[AnswerEvent]:
    """All events, or those up to the first that says how the answer goes; an error then still has its status."""
    heard: list[AnswerEvent] = []
    async for event in feed:
        heard.append(event)
        if len(heard) == 2 and not whole:
            break
    return heard


def _end(heard: list[AnswerEvent], wanted: str) -> AnswerCompleted:
    """Raises what the part failed with."""
    for event in heard:
        if isinstance(event, AnswerFailed) and event.part == wanted:
            raise event.problem.error
        if isinstance(event, AnswerCompleted) and event.part == wanted:
            return event
    raise ConnectionLost("the answer broke off; ask again")


async def _told(
    feed: Feed[AnswerEvent], heard: list[AnswerEvent], completion: Completion, wanted: str, want_usage: bool
) -> AsyncIterator[ServerSentEvent]:
    yield _data(completion.chunk({"role": "assistant", "content": ""}))
    with STREAMS.track_inprogress():
        async for said in _and_then(heard.copy(), feed):
            heard.append(said)
            if isinstance(said, AnswerDelta) and said.part == wanted:
                yield _data(completion.chunk({"content": said.text}))
    yield _data(completion.chunk({}, _end(heard, wanted)))
    if want_usage:
        yield _data(completion.usage(heard))
    yield ServerSentEvent(data="[DONE]")


async def _and_then(first: list[AnswerEvent], feed: Feed[AnswerEvent]) -> AsyncIterator[AnswerEvent]:
    for said in first:
        yield said
    async for said in feed:
        yield said


def _data(value: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps(value))
