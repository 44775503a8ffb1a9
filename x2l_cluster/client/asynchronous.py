"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
from httpx_sse import EventSource

from x2l_cluster.client import calls
from x2l_cluster.client.call import Call, Progress, Upload, error_of, pieces_of
from x2l_cluster.client.calls import AppendOptions, AskOptions, IndexOptions
from x2l_cluster.client.events import AnswerReader, JobReader
from x2l_cluster.client.options import TIMEOUT_S, http_options, request_options
from x2l_cluster.client.retry import Retry, lost
from x2l_cluster.errors import X2LError
from x2l_cluster.messages import (
    AnswerEvent,
    Answers,
    Chunk,
    Deleted,
    Estimate,
    Found,
    Job,
    JobEvent,
    Readiness,
    Session,
    Video,
)

T = TypeVar("T")


class AsyncX2L:
    """As :class:`~x2l_cluster.client.sync.X2L`, method by method, for one event loop and many tasks."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry: Retry | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(**http_options(url, key, timeout_s))
        self._retry = retry or Retry()
        self._sleep = sleep

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def index(
        self,
        file: str | Path | None = None,
        *,
        url: str | None = None,
        path: str | None = None,
        idempotency_key: str | None = None,
        progress: Progress = lambda _sent, _all: None,
        **options: Unpack[IndexOptions],
    ) -> Job:
        return await self._send(
            calls.index(file, url=url, path=path, key=idempotency_key, progress=progress, options=options)
        )

    async def reindex(
        self, video: str, *, recipe: Mapping[str, Any] | None = None, idempotency_key: str | None = None
    ) -> Job:
        return await self._send(calls.reindex(video, idempotency_key, recipe))

    async def append(
        self,
        video: str,
        file: str | Path | None = None,
        *,
        url: str | None = None,
        path: str | None = None,
        idempotency_key: str | None = None,
        progress: Progress = lambda _sent, _all: None,
        **options: Unpack[AppendOptions],
    ) -> Job:
        return await self._send(
            calls.append(video, file, url=url, path=path, key=idempotency_key, progress=progress, options=options)
        )

    async def job(self, job: str, *, wait_s: float = 0.0) -> Job:
        return await self._send(calls.job(job, wait_s))

    async def jobs(self) -> list[Job]:
        return await self._send(calls.jobs())

    async def job_events(self, job: str, *, after: int = 0) -> AsyncGenerator[JobEvent, None]:
        reader, tried = JobReader(job, after), 0
        while not reader.ended:
            call = calls.job_events(job, reader.after)
            try:
                async with aclosing(await self._begin(call)) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    async for sse in EventSource(response).aiter_sse():
                        event = reader.read(sse)
                        if event is not None:
                            tried = 0
                            yield event
                cut: X2LError | httpx.TransportError = reader.broken
            except (X2LError, httpx.TransportError) as error:
                cut = error
            if not reader.ended:
                tried += 1
                await self._pause(call, cut, tried)

    async def wait(self, job: str) -> Job:
        while not (now := await self.job(job, wait_s=30.0)).state.final:
            pass
        return now

    async def cancel(self, job: str) -> Job:
        return await self._send(calls.cancel(job))

    async def retry(self, job: str) -> Job:
        return await self._send(calls.retry(job))

    # --- videos -----------------------------------------------------------------------------------------------------

    async def videos(self) -> list[Video]:
        return await self._send(calls.videos())

    async def video(self, video: str) -> Video:
        return await self._send(calls.video(video))

    async def chunks(self, video: str) -> list[Chunk]:
        return await self._send(calls.chunks(video))

    async def frame(self, video: str, time_s: float, *, format: str = "jpeg") -> tuple[bytes, float]:
        return await self._send(calls.frame(video, time_s, format))

    async def delete(self, video: str) -> Deleted:
        return await self._send(calls.delete(video))

    async def estimate(
        self, duration_s: float, *, width: int = 1280, height: int = 720, recipe: Mapping[str, Any] | None = None
    ) -> Estimate:
        return await self._send(calls.estimate(duration_s, width, height, recipe))

    # --- questions --------------------------------------------------------------------------------------------------

    async def answers(
        self, question: str, videos: Sequence[str] = (), **options: Unpack[AskOptions]
    ) -> AsyncGenerator[AnswerEvent, None]:
        call, reader = calls.answers(question, videos, options), AnswerReader()
        try:
            async with aclosing(await self._try(call, _as_it_is)) as response:
                async for sse in EventSource(response).aiter_sse():
                    event = reader.read(sse)
                    if event is not None:
                        yield event
        except httpx.TransportError as error:
            raise lost(call, error) from error
        reader.end()

    async def ask(self, question: str, videos: Sequence[str] = (), **options: Unpack[AskOptions]) -> Answers:
        async with aclosing(self.answers(question, videos, **options)) as events:
            return Answers.of([event async for event in events])

    async def search(self, question: str, videos: Sequence[str] = (), *, limit: int = 10) -> Found:
        return await self._send(calls.search(question, videos, limit))

    async def open_session(self, videos: Sequence[str]) -> Session:
        return await self._send(calls.open_session(videos))

    async def session(self, session: str) -> Session:
        return await self._send(calls.session(session))

    async def close_session(self, session: str) -> None:
        await self._send(calls.close_session(session))

    async def ready(self) -> Readiness:
        return await self._send(calls.ready())

    # --- sending ----------------------------------------------------------------------------------------------------

    async def _send(self, call: Call[T]) -> T:
        async def whole(response: httpx.Response) -> T:
            async with aclosing(response):
                await response.aread()
                return call.read(response)

        return await self._try(call, whole)

    async def _try(self, call: Call[Any], use: Callable[[httpx.Response], Awaitable[T]]) -> T:
        """What ``use`` makes of a response; tried again while that has a point."""
        tried = 0
        while True:
            tried += 1
            try:
                return await use(await self._begin(call))
            except (X2LError, httpx.TransportError) as error:
                await self._pause(call, error, tried)

    async def _begin(self, call: Call[Any]) -> httpx.Response:
        """A response whose body is still to come. Raises the error it tells of, TransportError."""
        options = request_options(call, self._http.timeout)
        if call.upload:
            options["content"] = _pieces(call.upload)
        response = await self._http.send(self._http.build_request(call.method, call.path, **options), stream=True)
        if not call.failed(response):
            return response
        async with aclosing(response):
            await response.aread()
        raise error_of(response)

    async def _pause(self, call: Call[Any], error: X2LError | httpx.TransportError, tried: int) -> None:
        seconds = self._retry.pause(call, error, tried)
        if seconds is None:
            raise lost(call, error) from error
        await self._sleep(seconds)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _as_it_is(response: httpx.Response) -> httpx.Response:
    return response


async def _pieces(upload: Upload) -> AsyncIterator[bytes]:
    pieces = pieces_of(upload)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
