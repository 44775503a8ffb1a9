"""The whole service in one process: for a laptop, for tests, and as the plain model of what a cluster does."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Self

from x2l_cluster.engine import AnswerLoop, Limits, Stores, VideoEngine, find_calibration
from x2l_cluster.messages import Found
from x2l_cluster.metrics import LIVE
from x2l_cluster.models import load_model
from x2l_cluster.service.addresses import Gate
from x2l_cluster.service.engine_worker import EngineWorker
from x2l_cluster.service.fetch import Fetcher
from x2l_cluster.service.front import STOP_S, FrontOptions, FrontService
from x2l_cluster.service.intake import repair
from x2l_cluster.service.loop_parts import LoopParts
from x2l_cluster.service.requests import SearchRequest
from x2l_cluster.service.runner import JobRunner
from x2l_cluster.service.workers import ModelFacts, Pulse, Sample
from x2l_cluster.state.open import State
from x2l_cluster.types import Recipe

_HARD: Final = 4
"""Searches and samples at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions(FrontOptions):
    """How a service in one process is run.

    Attributes:
        indexers: threads that index; the device prefills one video at a time, so more of them only fetch ahead.
        lease_s: a job whose worker was not heard of for so long is given to another.
        fetch_within_s: what one fetch may take.
        fetch_allow: hosts and networks that are fetched from though they are not public.
        limits: of the answering loop.
        grace_s: how long questions that began over an index that was replaced may go on reading it.
        drain_s: what answers are given to end when the service closes.
    """

    indexers: int = 1
    lease_s: float = 30.0
    fetch_within_s: float = 3600.0
    fetch_allow: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    grace_s: float = 5.0
    drain_s: float = 10.0


class LocalService(FrontService):
    """A :class:`~x2l_cluster.service.base.Service` whose workers are threads of this process, over one engine.

    They start at once; close it when done.

    Args:
        engine: answers and indexes; closed with the service.
        state: keeps jobs and sessions; closed with the service.
        model: the name of the model, as users know it.
    """

    def __init__(
        self, engine: VideoEngine, state: State, *, model: str = "reference", options: LocalOptions | None = None
    ) -> None:
        options = options or LocalOptions()
        self.engine = engine
        self.loop = AnswerLoop(engine.answerer, options.limits)
        self._indexers = _Indexers(engine, state, options)
        self._threads = _Threads(engine, self.loop, self._indexers)
        self._drain_s = options.drain_s
        parts = LoopParts(engine, self.loop, missing=lambda manifest: repair(engine.stores, state.jobs, manifest))
        LIVE.add(state.jobs)
        super().__init__(engine.stores, state, model=model, parts=parts, workers=self._threads, options=options)

    @classmethod
    def open(
        cls,
        model: str = "reference",
        *,
        store: str = "disk:~/.x2l",
        fine_store: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        options: LocalOptions | None = None,
    ) -> Self:
        """Loads a model and opens its stores; jobs and sessions are kept beside them.

        Raises ModelNotAvailable, UnsupportedModel, InvalidInput, StoreUnavailable.
        """
        lm = load_model(model, device=device, dtype=dtype)
        engine = VideoEngine(lm, Stores.open(store, fine=fine_store), calibration=find_calibration(model, lm))
        return cls.over(engine, store=store, model=model, options=options)

    @classmethod
    def over(cls, engine: VideoEngine, *, store: str, model: str, options: LocalOptions | None = None) -> Self:
        """Over an engine whose stores were opened by this URL."""
        with ExitStack() as opened:
            opened.callback(engine.close)
            state = State.open(store, manifests=engine.stores.state)
            opened.pop_all()
            return cls(engine, state, model=model, options=options)

    def close(self) -> None:
        """Lets answers end for a while; jobs go back into line at their next chunk. May be called twice."""
        self._indexers.stop()
        self.loop.close(self._drain_s)
        self._indexers.join()
        self._threads.close()
        super().close()
        self.engine.close()


class _Indexers:
    """Threads that do jobs."""

    def __init__(self, engine: VideoEngine, state: State, options: LocalOptions) -> None:
        fetcher = Fetcher(
            Gate(options.fetch_allow), max_bytes=options.max_source_bytes, within_s=options.fetch_within_s
        )
        self.runners = [
            JobRunner(
                engine,
                state.jobs,
                name=f"indexer-{number}",
                fetcher=fetcher,
                roots=options.roots,
                tenants=state.tenants,
                ttl_s=options.lease_s,
                grace_s=options.grace_s,
            )
            for number in range(options.indexers)
        ]
        self._threads = [
            threading.Thread(target=runner.run, name=f"x2l-indexer-{number}", daemon=True)
            for number, runner in enumerate(self.runners)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    @property
    def chunk_s(self) -> float | None:
        paces = [runner.chunk_s for runner in self.runners if runner.chunk_s is not None]
        return min(paces, default=None)

    def stop(self) -> None:
        for runner in self.runners:
            runner.stop()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(STOP_S)


class _Threads:
    """The :class:`~x2l_cluster.service.workers.Workers` of this process."""

    def __init__(self, engine: VideoEngine, loop: AnswerLoop, indexers: _Indexers) -> None:
        self._worker, self._loop, self._indexers = EngineWorker(engine), loop, indexers
        self._hard = ThreadPoolExecutor(_HARD, thread_name_prefix="x2l-hard")

    @property
    def known(self) -> ModelFacts:
        return self._worker.facts

    async def facts(self) -> ModelFacts:
        return self._worker.facts

    async def sample(self, recipe: Recipe, width: int, height: int) -> Sample:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._hard, self._worker.sample, recipe, width, height)

    async def search(self, tenant: str, request: SearchRequest) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._hard, self._worker.search, tenant, request)

    async def forget(self, tenant: str, video: str) -> None:
        self._worker.forget(tenant, video)

    async def pulse(self) -> Pulse:
        amiss = []
        if not self._loop.healthy:
            amiss.append("answering broke down and was given up; restart the service")
        if self._indexers.runners and not self._indexers.alive:
            amiss.append("no indexer is alive; restart the service")
        return Pulse(
            loaded=True,
            answering=self._loop.healthy,
            indexing=self._indexers.alive,
            amiss=tuple(amiss),
            chunk_s=self._indexers.chunk_s,
        )

    def close(self) -> None:
        self._hard.shutdown(cancel_futures=True)
