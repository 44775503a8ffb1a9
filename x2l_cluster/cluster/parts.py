"""Parts of answers by the replicas of a Serve deployment."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from x2l_cluster.cluster.answering import NAME
from x2l_cluster.cluster.routing import AFFINITY
from x2l_cluster.errors import AnswerLost, Overloaded
from x2l_cluster.messages import AnswerCompleted, AnswerEvent, AnswerFailed, Problem
from x2l_cluster.service.parts import Begun, FailedPart
from x2l_cluster.service.requests import Ask

LOG: Final = logging.getLogger(__name__)


class RayParts:
    """A :class:`~x2l_cluster.service.parts.PartAnswerer` over the answering replicas of a cluster.

    Args:
        handle: of the deployment that :func:`~x2l_cluster.cluster.answering.answerer` makes.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(stream=True)

    @classmethod
    def running(cls) -> RayParts:
        """Of the application that runs in this cluster."""
        from ray import serve

        return cls(serve.get_app_handle(NAME))

    async def about(self, tenant: str, part: str, video: str, ask: Ask, history: Sequence[tuple[str, str]]) -> Begun:
        affinity = {AFFINITY: f"{tenant}/{video}"}
        return await _begun(part, self._handle.about.remote(tenant, part, video, ask, tuple(history), **affinity))

    async def closing(self, tenant: str, part: str, ask: Ask, answers: Mapping[str, str]) -> Begun:
        return await _begun(part, self._handle.closing.remote(tenant, part, ask, dict(answers)))


async def _begun(part: str, stream: Any) -> Begun:
    """Waits until a replica has taken the part on. Raises Overloaded."""
    try:
        first = await anext(stream)
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise Overloaded("every answering replica is busy or starting; ask again in a moment") from error
    except RayError as error:
        return FailedPart(part, _lost(error))
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
        try:
            async for event in self._stream:
                self._ended = isinstance(event, AnswerCompleted | AnswerFailed)
                yield event
        except (RayError, RequestCancelledError) as error:
            self._ended = True
            yield AnswerFailed(part=self._part, problem=Problem.of(_lost(error)))


def _lost(error: Exception) -> AnswerLost:
    LOG.warning("an answering replica was lost: %s", type(error).__name__)
    return AnswerLost("the worker that wrote this answer was lost; ask again")
