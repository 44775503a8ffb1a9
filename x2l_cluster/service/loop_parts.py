"""Parts of answers by an answering loop of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from x2l_cluster.engine import AnswerLoop, Completed, Delta, Evidenced, Failed, Generation, Planned, Ticket, VideoEngine
from x2l_cluster.errors import KVMissing, Overloaded, X2LError
from x2l_cluster.messages import (
    AnswerCompleted,
    AnswerDelta,
    AnswerEvent,
    AnswerEvidence,
    AnswerFailed,
    AnswerPlan,
    Problem,
)
from x2l_cluster.service.parts import Begun, FailedPart
from x2l_cluster.service.requests import Ask
from x2l_cluster.types import Manifest

CLOSING_CHARACTERS: Final = 6000
"""Of all answers together that a closing one is made of; each gives up its share beyond that."""


class LoopParts:
    """A :class:`~x2l_cluster.service.parts.PartAnswerer` over one engine and its loop.

    Args:
        missing: told of an index whose coarse KVs are gone, so that it can be repaired.
    """

    def __init__(
        self,
        engine: VideoEngine,
        loop: AnswerLoop,
        *,
        missing: Callable[[Manifest], None] = lambda _: None,
    ) -> None:
        self._engine, self._loop, self._missing = engine, loop, missing

    async def about(self, tenant: str, part: str, video: str, ask: Ask, history: Sequence[tuple[str, str]]) -> Begun:
        def submit() -> Ticket:
            asked = self._engine.asked(
                video,
                ask.question,
                tenant=tenant,
                detail=ask.detail,
                scorer=ask.scorer,
                history=history,
                on_missing=ask.on_missing,
            )
            return self._loop.submit(asked, _generation(ask), deadline_s=ask.deadline_s)

        return await self._begun(part, submit)

    async def closing(self, tenant: str, part: str, ask: Ask, answers: Mapping[str, str]) -> Begun:
        def submit() -> Ticket:
            asked = self._engine.asked_alone(closing_text(ask.question, answers), tenant=tenant)
            return self._loop.submit(asked, _generation(ask), deadline_s=ask.deadline_s)

        return await self._begun(part, submit, alone=True)

    async def _begun(self, part: str, submit: Callable[[], Ticket], *, alone: bool = False) -> Begun:
        submitting = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            return _LoopPart(part, await asyncio.shield(submitting), self._missing, alone=alone)
        except asyncio.CancelledError:
            submitting.add_done_callback(_cancel)  # nobody will listen to what is being submitted
            raise
        except Overloaded:
            raise
        except X2LError as error:
            return FailedPart(part, error)


class _LoopPart:
    def __init__(self, part: str, ticket: Ticket, missing: Callable[[Manifest], None], *, alone: bool) -> None:
        self._part, self._ticket, self._missing, self._alone = part, ticket, missing, alone

    def cancel(self) -> None:
        self._ticket.cancel()

    async def events(self) -> AsyncGenerator[AnswerEvent]:
        async with aclosing(self._ticket.__aiter__()) as events:
            async for event in events:
                match event:
                    case Delta():
                        yield AnswerDelta(part=self._part, text=event.text)
                    case Planned() if not self._alone:
                        yield AnswerPlan(part=self._part, plan=event.plan, covered=event.covered)
                    case Evidenced() if not self._alone:
                        yield AnswerEvidence(part=self._part, evidence=event.evidence)
                    case Completed(answer=answer):
                        yield AnswerCompleted(
                            part=self._part,
                            text=answer.text,
                            finish=answer.finish,
                            degraded=answer.degraded,
                            answer=None if self._alone else answer,
                        )
                    case Failed(error=error):
                        if isinstance(error, KVMissing):
                            await asyncio.to_thread(self._missing, self._ticket.asked.manifest)
                        yield AnswerFailed(part=self._part, problem=Problem.of(error))


def _cancel(submitting: asyncio.Future[Ticket]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()


def closing_text(question: str, answers: Mapping[str, str]) -> str:
    """What the language model is asked to make one answer of several."""
    share = max(1, CLOSING_CHARACTERS // max(1, len(answers)))
    lines = "\n".join(f"- {video}: {text[:share]}" for video, text in answers.items())
    return f"Question: {question}\nAnswers about {len(answers)} videos:\n{lines}\nMake one answer of them."


def _generation(ask: Ask) -> Generation:
    return Generation(
        max_tokens=ask.max_tokens, temperature=ask.temperature, top_p=ask.top_p, seed=ask.seed, stop=ask.stop
    )
