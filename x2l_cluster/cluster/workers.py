"""Those who have the model, for a service in front of a cluster: the answering replicas, and who indexes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

from cachetools import LRUCache
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from x2l_cluster.cluster.answering import NAME
from x2l_cluster.cluster.parts import BUSY
from x2l_cluster.cluster.routing import AFFINITY
from x2l_cluster.cluster.supervised import NAME as INDEXER
from x2l_cluster.errors import AnswerLost, Overloaded
from x2l_cluster.messages import Found, Problem
from x2l_cluster.service.requests import SearchRequest
from x2l_cluster.service.workers import ModelFacts, Pulse, Sample
from x2l_cluster.types import Recipe

LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")
_ASK_S: Final = 30.0
_LOOK_S: Final = 1.5
"""What a look at how they are may take; Kubernetes gives a probe 3 s."""
_FORGET_S: Final = 5.0


def answering() -> Any:
    """A handle to the answering replicas of this cluster, whether they have been deployed yet or not."""
    return DeploymentHandle(NAME, NAME)


class RayWorkers:
    """:class:`~x2l_cluster.service.workers.Workers` on a cluster.

    Args:
        handle: of the answering replicas.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._known: ModelFacts | None = None
        self._samples: LRUCache[tuple[str, int, int], Sample] = LRUCache(maxsize=256)
        self._eye = ThreadPoolExecutor(1, thread_name_prefix="x2l-eye")
        self._looking: Future[Mapping[str, int]] | None = None

    @property
    def known(self) -> ModelFacts | None:
        return self._known

    async def facts(self) -> ModelFacts:
        if self._known is None:
            self._known = await _asked(self._handle.facts.remote())
        return self._known

    async def sample(self, recipe: Recipe, width: int, height: int) -> Sample:
        key = (recipe.digest, width, height)
        if key not in self._samples:
            self._samples[key] = _told(await _asked(self._handle.sample.remote(recipe, width, height)))
        return self._samples[key]

    async def search(self, tenant: str, request: SearchRequest) -> Found:
        found: Found | Problem = await _asked(self._handle.search.remote(tenant, request))
        return _told(found)

    async def forget(self, tenant: str, video: str) -> None:
        """Of the replica its questions go to; where else something was left, it is pushed out by what is asked."""
        call = self._handle.forget.remote(tenant, video, **{AFFINITY: f"{tenant}/{video}"})
        with suppress(Overloaded, AnswerLost):
            await _asked(call, _FORGET_S)

    async def pulse(self) -> Pulse:
        """As Serve's controller sees it: a replica runs once it has loaded its model. Where the controller does not
        answer (its node is gone, say), a replica itself is asked."""
        try:
            running = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._look())), _LOOK_S)
        except Exception as error:  # noqa: BLE001 (whatever Ray says then)
            LOG.warning("Serve does not say how its applications are: %s", type(error).__name__)
            return await self._pulse_of_one()
        answering, indexing = running.get(NAME, 0) > 0, running.get(INDEXER, 0) > 0
        amiss = () if answering else ("no answering worker has loaded its model",)
        return Pulse(loaded=answering, answering=answering, indexing=indexing, amiss=amiss)

    def _look(self) -> Future[Mapping[str, int]]:
        """One look at a time, on a thread of its own: while the controller is away none comes back."""
        if self._looking is None or self._looking.done():
            self._looking = self._eye.submit(_running)
        return self._looking

    async def _pulse_of_one(self) -> Pulse:
        try:
            await _asked(self._handle.facts.remote(), _LOOK_S)
        except (Overloaded, AnswerLost):
            return Pulse(loaded=False, answering=False, indexing=False, amiss=("Ray's head does not answer",))
        return Pulse(loaded=True, answering=True, indexing=True, amiss=("Ray's head does not answer",))


def _running() -> Mapping[str, int]:
    """Replicas that run, by the application whose own name its deployment has."""
    applications = serve.status().applications
    return {
        name: application.deployments[name].replica_states.get("RUNNING", 0)
        for name, application in applications.items()
        if name in application.deployments
    }


async def _asked(call: Any, within_s: float | None = None) -> Any:
    """What a replica answers. Raises Overloaded, AnswerLost."""
    try:
        return await asyncio.wait_for(call, _ASK_S if within_s is None else within_s)
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise Overloaded(BUSY, retry_after_s=1.0) from error
    except TimeoutError as error:
        call.cancel()
        raise Overloaded(BUSY, retry_after_s=1.0) from error
    except RayError as error:
        LOG.warning("an answering replica was lost: %s", type(error).__name__)
        raise AnswerLost("the worker that was asked was lost; ask again") from error


def _told(answer: T | Problem) -> T:
    if isinstance(answer, Problem):
        raise answer.error
    return answer
