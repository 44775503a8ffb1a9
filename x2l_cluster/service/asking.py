"""One question over many videos: a part each, streamed side by side, each failing alone; sessions; a closing answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from uuid import uuid4

from x2l_cluster.errors import DeadlineExceeded, InvalidInput, UnknownSession, X2LError
from x2l_cluster.messages import AnswerCompleted, AnswerCreated, AnswerEvent, AnswerFailed, Part, Problem, Session, Turn
from x2l_cluster.select import SCORERS
from x2l_cluster.service.parts import Begun, FailedPart, PartAnswerer, merged
from x2l_cluster.service.requests import Ask
from x2l_cluster.state.sessions import SessionStore


@dataclass(slots=True, kw_only=True)
class _Told:
    """How the parts ended, by part."""

    texts: dict[str, str] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)

    def note(self, event: AnswerEvent) -> None:
        if isinstance(event, AnswerCompleted):
            self.texts[event.part] = event.text
        elif isinstance(event, AnswerFailed):
            self.problems[event.part] = event.problem


class Asking:
    """Answers as events, over whatever answers the parts."""

    def __init__(self, parts: PartAnswerer, sessions: SessionStore) -> None:
        self._parts, self._sessions = parts, sessions

    async def answers(self, tenant: str, ask: Ask) -> AsyncGenerator[AnswerEvent]:
        """See :meth:`Service.answers`."""
        if ask.scorer not in SCORERS:
            raise InvalidInput(f"there is no scorer {ask.scorer!r}; choose one of {', '.join(SCORERS)}")
        begun_s = time.monotonic()
        session = await self._session(tenant, ask)
        videos = ask.videos or (session.videos if session else ())
        id = f"answer-{uuid4().hex[:24]}"
        about = {f"{id}.{number}": video for number, video in enumerate(videos)}
        end = f"{id}.synthesis"
        parts = [Part(id=part, video=video) for part, video in about.items()]
        running = await self._begin(tenant, ask, parts, session)
        told = _Told()
        try:
            yield AnswerCreated(id=id, parts=(*parts, Part(id=end, video=None)) if ask.synthesis else tuple(parts))
            async with aclosing(merged(running)) as events:
                async for event in events:
                    told.note(event)
                    yield event
            texts = {about[part]: text for part, text in told.texts.items()}
            if ask.synthesis:
                problem = next(iter(told.problems.values()), None)
                closing = await self._closing(tenant, end, ask, texts, problem, time.monotonic() - begun_s)
                running.append(closing)
                async with aclosing(closing.events()) as events:
                    async for event in events:
                        yield event
        finally:  # whoever leaves early, even before the first part was looked at, stops them all
            for taken in running:
                taken.cancel()
        if session is not None and texts:
            turn = Turn(question=ask.question, answers=texts)
            await asyncio.to_thread(self._sessions.append, tenant, session.id, turn)

    async def _session(self, tenant: str, ask: Ask) -> Session | None:
        if ask.session is None:
            return None
        try:
            return await asyncio.to_thread(self._sessions.session, tenant, ask.session)
        except InvalidInput:
            raise UnknownSession(f"no session {ask.session!r} is here") from None

    async def _begin(self, tenant: str, ask: Ask, parts: Sequence[Part], session: Session | None) -> list[Begun]:
        """All parts, or none of them."""
        begun: list[Begun] = []
        try:
            for part in parts:
                assert part.video is not None
                turns = session.turns if session else ()
                earlier = [(t.question, t.answers[part.video]) for t in turns if part.video in t.answers]
                history = [*earlier, *ask.history]
                begun.append(await self._parts.about(tenant, part.id, part.video, ask, history))
        except BaseException:
            for taken in begun:
                taken.cancel()
            raise
        return begun

    async def _closing(
        self, tenant: str, part: str, ask: Ask, texts: dict[str, str], problem: Problem | None, spent_s: float
    ) -> Begun:
        if not texts:
            error = problem.error if problem else InvalidInput("there is no answer to make one of")
            return FailedPart(part, error)
        if ask.deadline_s is not None:
            left_s = ask.deadline_s - spent_s
            if left_s <= 0:
                return FailedPart(part, DeadlineExceeded("no time was left for the closing answer; allow more"))
            ask = replace(ask, deadline_s=left_s)
        try:
            return await self._parts.closing(tenant, part, ask, texts)
        except X2LError as error:
            return FailedPart(part, error)
