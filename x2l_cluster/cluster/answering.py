"""Workers that answer: a Serve deployment whose replicas each hold an engine and its continuous batch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

from ray import serve
from ray.serve.config import RequestRouterConfig

from x2l_cluster.cluster.place import Place
from x2l_cluster.cluster.routing import VideoAffinity
from x2l_cluster.engine import AnswerLoop, Limits
from x2l_cluster.errors import AnswerLost, Overloaded
from x2l_cluster.messages import AnswerEvent, Problem
from x2l_cluster.service.intake import Intake
from x2l_cluster.service.loop_parts import LoopParts
from x2l_cluster.service.parts import Begun
from x2l_cluster.service.requests import Ask

NAME: Final = "answerer"
ONGOING: Final = 64
"""Questions a replica takes on at once; the next goes to another replica, or waits."""
QUEUED: Final = 256
"""Questions that wait in a gateway for a replica with room; one more is Overloaded."""
TAKEN: Final = "taken"
"""What a stream begins with once its question was taken on; a Problem stands there when it was not."""

Item = str | Problem | AnswerEvent


class Answering:
    """One replica. Streams what becomes of each part it takes on; who stops listening stops the work."""

    def __init__(self, place: Place, limits: Limits) -> None:
        self._engine = place.engine()
        self._state = place.opened_state(self._engine)
        self._loop = AnswerLoop(self._engine.answerer, limits)
        self._parts = LoopParts(self._engine, self._loop, missing=Intake(self._engine, self._state.jobs).repair)

    async def about(
        self, tenant: str, part: str, video: str, ask: Ask, history: Sequence[tuple[str, str]], affinity: str = ""
    ) -> AsyncGenerator[Item]:
        """A question about one video; ``affinity`` is for the router."""
        async for item in _told(lambda: self._parts.about(tenant, part, video, ask, history)):
            yield item

    async def closing(self, tenant: str, part: str, ask: Ask, answers: Mapping[str, str]) -> AsyncGenerator[Item]:
        """One answer made of those about each video."""
        async for item in _told(lambda: self._parts.closing(tenant, part, ask, answers)):
            yield item

    async def pid(self, affinity: str = "") -> int:
        """Of its process; answers once the model is loaded."""
        return os.getpid()

    def check_health(self) -> None:
        """Ray asks now and then, and replaces a replica that raises."""
        if not self._loop.healthy:
            raise AnswerLost("answering broke down several times in a row")

    async def __del__(self) -> None:
        """Called by Serve before the replica ends."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._loop.close()
        self._state.close()
        self._engine.close()


async def _told(begin: Any) -> AsyncGenerator[Item]:
    try:
        begun: Begun = await begin()
    except Overloaded as error:
        yield Problem.of(error)
        return
    try:
        yield TAKEN
        async for event in begun.events():
            yield event
    finally:
        begun.cancel()


def answerer(place: Place, *, limits: Limits | None = None, **options: Any) -> serve.Application:
    """The Serve application. ``options`` are of the deployment (``num_replicas``, ``ray_actor_options``, …)."""
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=ONGOING,
        max_queued_requests=QUEUED,
        request_router_config=RequestRouterConfig(request_router_class=VideoAffinity),
        **options,
    )(Answering)
    return deployment.bind(place, limits or Limits())
