"""Workers that answer: a Serve deployment whose replicas each hold an engine and its continuous batch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from ray import serve
from ray.serve.config import RequestRouterConfig

from x2l_cluster.cluster.export import export_metrics
from x2l_cluster.cluster.place import Place
from x2l_cluster.cluster.routing import VideoAffinity
from x2l_cluster.engine import AnswerLoop, Limits
from x2l_cluster.errors import AnswerLost, Overloaded, X2LError
from x2l_cluster.messages import AnswerEvent, Found, Problem
from x2l_cluster.service.engine_worker import EngineWorker
from x2l_cluster.service.intake import repair
from x2l_cluster.service.loop_parts import LoopParts
from x2l_cluster.service.parts import Begun
from x2l_cluster.service.requests import Ask, SearchRequest
from x2l_cluster.service.workers import ModelFacts, Sample
from x2l_cluster.settings import Settings
from x2l_cluster.types import Recipe

P = ParamSpec("P")
T = TypeVar("T")
NAME: Final = "answerer"
ONGOING: Final = 64
"""Questions a replica takes on at once; the next goes to another replica, or waits."""
QUEUED: Final = 256
"""Questions that wait in a gateway for a replica with room; one more is Overloaded."""
TAKEN: Final = "taken"
"""What a stream begins with once its question was taken on; a Problem stands there when it was not."""

Item = str | Problem | AnswerEvent


class Answering:
    """One replica. Streams what becomes of each part it takes on; who stops listening stops the work.

    What fails for a reason of ours is told as a Problem: an error would come out of Ray as another class.
    ``affinity`` of a call is for the router.

    Args:
        chosen: settings that win over those of the node's environment.
    """

    def __init__(self, chosen: Mapping[str, Any], limits: Limits) -> None:
        export_metrics()
        place = Place.of(Settings.over(chosen))
        self._engine = place.engine()
        self._state = place.opened_state(self._engine.stores)
        self._loop = AnswerLoop(self._engine.answerer, limits)
        stores, jobs = self._engine.stores, self._state.jobs
        self._parts = LoopParts(self._engine, self._loop, missing=lambda manifest: repair(stores, jobs, manifest))
        self._worker = EngineWorker(self._engine)

    async def about(
        self, tenant: str, part: str, video: str, ask: Ask, history: Sequence[tuple[str, str]], affinity: str = ""
    ) -> AsyncGenerator[Item]:
        """A question about one video."""
        async for item in _told(lambda: self._parts.about(tenant, part, video, ask, history)):
            yield item

    async def closing(self, tenant: str, part: str, ask: Ask, answers: Mapping[str, str]) -> AsyncGenerator[Item]:
        """One answer made of those about each video."""
        async for item in _told(lambda: self._parts.closing(tenant, part, ask, answers)):
            yield item

    async def facts(self) -> ModelFacts:
        """Answers once the model is loaded."""
        return self._worker.facts

    async def sample(self, recipe: Recipe, width: int, height: int) -> Sample | Problem:
        return await _or_problem(self._worker.sample, recipe, width, height)

    async def search(self, tenant: str, request: SearchRequest) -> Found | Problem:
        return await _or_problem(self._worker.search, tenant, request)

    async def forget(self, tenant: str, video: str, affinity: str = "") -> None:
        await asyncio.to_thread(self._worker.forget, tenant, video)

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


async def _told(begin: Callable[[], Awaitable[Begun]]) -> AsyncGenerator[Item]:
    try:
        begun = await begin()
    except Overloaded as error:
        yield Problem.of(error)
        return
    try:
        yield TAKEN
        async for event in begun.events():
            yield event
    finally:
        begun.cancel()


async def _or_problem(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Problem:
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except X2LError as error:
        return Problem.of(error)


def answerer(
    chosen: Mapping[str, Any] | None = None, *, limits: Limits | None = None, **options: Any
) -> serve.Application:
    """The Serve application.

    Args:
        chosen: settings that win over those of the nodes' environment.
        options: of the deployment (``num_replicas``, ``ray_actor_options``, …).

    Raises InvalidInput for settings that cannot be.
    """
    Settings.over(chosen or {})
    bounds = {"max_ongoing_requests": ONGOING, "max_queued_requests": QUEUED}
    router = RequestRouterConfig(request_router_class=VideoAffinity)
    deployment = serve.deployment(name=NAME, request_router_config=router, **(bounds | options))(Answering)
    return deployment.bind(dict(chosen or {}), limits or Limits())
