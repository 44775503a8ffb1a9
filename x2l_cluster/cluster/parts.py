"""Parts of answers by the replicas of a Serve deployment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from x2l_cluster.cluster.routing import AFFINITY
from x2l_cluster.errors import AnswerLost, Overloaded
from x2l_cluster.messages import AnswerCompleted, AnswerEvent, AnswerFailed, Problem
from x2l_cluster.service.parts import Begun, FailedPart
from x2l_cluster.service.requests import Ask

LOG: Final = logging.getLogger(__name__)
BUSY: Final = "every answering worker is busy or starting; ask again in a moment"
_TAKEN_S: Final = 30.0
"""A question that no replica has taken on by then is Overloaded."""


class RayParts:
    """A :class:`~x2l_cluster.service.parts.PartAnswerer` over the answering replicas of a cluster.

    Args:
        handle: of the deployment that :func:`~x2l_cluster.cluster.answering.answerer` makes.
        taken_s: how long a question waits for a replica that takes it on.
    """

    def __init__(self, handle: Any, *, taken_s: float = _TAKEN_S) -> None:
        self._handle, self._taken_s = handle.options(stream=True), taken_s

    async def about(self, tenant: str, part: str, video: str, ask: Ask, history: Sequence[tuple[str, str]]) -> Begun:
        affinity = {AFFINITY: f"{tenant}/{video}"}
        stream = self._handle.about.remote(tenant, part, video, ask, tuple(history), **affinity)
        return await _begun(part, stream, self._wait_s(ask))

    async def closing(self, tenant: str, part: str, ask: Ask, answers: Mapping[str, str]) -> Begun:
        stream = self._handle.closing.remote(tenant, part, ask, dict(answers))
        return await _begun(part, stream, self._wait_s(ask))

    def _wait_s(self, ask: Ask) -> float:
        return self._taken_s if ask.deadline_s is None else min(ask.deadline_s, self._taken_s)


async def _begun(part: str, stream: Any, wait_s: float) -> Begun:
    """Waits until a replica has taken the part on. Raises Overloaded."""
    try:
        first = await asyncio.wait_for(anext(stream), wait_s)
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise Overloaded(BUSY, retry_after_s=1.0) from error
    except (RayError, StopAsyncIteration) as error:
        return FailedPart(part, _lost(error))
    except TimeoutError as error:
        stream.cancel()
        raise Overloaded(BUSY, retry_after_s=1.0) from error
    except BaseException:
        stream.cancel()
        raise
    if isinstance(first, Problem):
        raise first.error
    return _RayPart(part, stream)


class _RayPart:
    def __init__(self, part: str, stream: Any) -> None:
        self._part, self._stream = part, stream
        self._ended = False

    def cancel(self) -> None:
        if not self._ended:
            self._stream.cancel()

    async def events(self) -> AsyncGenerator[AnswerEvent]:
        lost: Exception | None = None
        try:
            async for event in self._stream:
                self._ended = isinstance(event, AnswerCompleted | AnswerFailed)
                yield event
        except (RayError, RequestCancelledError) as error:
            lost = error
        if not self._ended:  # a replica that is shut down may end its streams as if all were said
            self._ended = True
            yield AnswerFailed(part=self._part, problem=Problem.of(_lost(lost)))


def _lost(error: Exception | None) -> AnswerLost:
    LOG.warning("an answering replica was lost: %s", type(error).__name__ if error else "its stream broke off")
    return AnswerLost("the worker that wrote this answer was lost; ask again")
