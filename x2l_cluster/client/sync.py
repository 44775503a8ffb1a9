"""The client for plain code."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
from httpx_sse import EventSource

from x2l_cluster.client import calls
from x2l_cluster.client.call import Call, Progress, error_of, pieces_of
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


class X2L:
    """A service, over HTTP. Safe for several threads; a context manager.

    Every method raises the error the service raised, RateLimited and Unauthenticated among them, and ConnectionLost
    when the service is out of reach. What may be repeated is, with growing pauses.

    Args:
        url: by default ``X2L_URL``, or where ``x2l up`` listens.
        key: an API key; by default ``X2L_API_KEY``.
        timeout_s: a connection without a sign of life for so long is given up.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(**http_options(url, key, timeout_s))
        self._retry = retry or Retry()
        self._sleep = sleep

    # --- jobs -------------------------------------------------------------------------------------------------------

    def index(
        self,
        file: str | Path | None = None,
        *,
        url: str | None = None,
        path: str | None = None,
        idempotency_key: str | None = None,
        progress: Progress = lambda _sent, _all: None,
        **options: Unpack[IndexOptions],
    ) -> Job:
        """Has a video indexed: a file of yours, which is uploaded from disk, or a URL or path the service reads.

        Args:
            idempotency_key: the same key is the same job; by default a new one, kept over this call's own tries.
            progress: told how many bytes of an upload are sent, and how many there are; may raise to stop it.
        """
        return self._send(
            calls.index(file, url=url, path=path, key=idempotency_key, progress=progress, options=options)
        )

    def reindex(
        self, video: str, *, recipe: Mapping[str, Any] | None = None, idempotency_key: str | None = None
    ) -> Job:
        """Has a video indexed anew from its kept original; its old index answers until the new one is ready."""
        return self._send(calls.reindex(video, idempotency_key, recipe))

    def append(
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
        """Goes on with a video whose recording has grown, given as long as it is by now; as :meth:`index` otherwise.

        A file may still grow while it is uploaded: what it held at first is sent.
        """
        return self._send(
            calls.append(video, file, url=url, path=path, key=idempotency_key, progress=progress, options=options)
        )

    def job(self, job: str, *, wait_s: float = 0.0) -> Job:
        """How a job stands; with ``wait_s``, as soon as it is final, or after that time at most."""
        return self._send(calls.job(job, wait_s))

    def jobs(self) -> list[Job]:
        """Newest first."""
        return self._send(calls.jobs())

    def job_events(self, job: str, *, after: int = 0) -> Generator[JobEvent, None, None]:
        """What has happened since event ``after`` and what happens from now on, each once, over cut connections."""
        reader, tried = JobReader(job, after), 0
        while not reader.ended:
            call = calls.job_events(job, reader.after)
            try:
                with closing(self._begin(call)) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    for sse in EventSource(response).iter_sse():
                        event = reader.read(sse)
                        if event is not None:
                            tried = 0
                            yield event
                cut: X2LError | httpx.TransportError = reader.broken
            except (X2LError, httpx.TransportError) as error:
                cut = error
            if not reader.ended:
                tried += 1
                self._pause(call, cut, tried)

    def wait(self, job: str) -> Job:
        """The job, once it is final."""
        while not (now := self.job(job, wait_s=30.0)).state.final:
            pass
        return now

    def cancel(self, job: str) -> Job:
        """Stops a job at its next chunk boundary."""
        return self._send(calls.cancel(job))

    def retry(self, job: str) -> Job:
        """Queues a failed or cancelled job again."""
        return self._send(calls.retry(job))

    # --- videos -----------------------------------------------------------------------------------------------------

    def videos(self) -> list[Video]:
        """By id."""
        return self._send(calls.videos())

    def video(self, video: str) -> Video:
        return self._send(calls.video(video))

    def chunks(self, video: str) -> list[Chunk]:
        """What is stored of each sealed chunk."""
        return self._send(calls.chunks(video))

    def frame(self, video: str, time_s: float, *, format: str = "jpeg") -> tuple[bytes, float]:
        """The picture on screen at a moment, as ``jpeg`` or ``png``, and its true time."""
        return self._send(calls.frame(video, time_s, format))

    def delete(self, video: str) -> Deleted:
        return self._send(calls.delete(video))

    def estimate(
        self, duration_s: float, *, width: int = 1280, height: int = 720, recipe: Mapping[str, Any] | None = None
    ) -> Estimate:
        """What indexing a video of that length would take."""
        return self._send(calls.estimate(duration_s, width, height, recipe))

    # --- questions --------------------------------------------------------------------------------------------------

    def answers(
        self, question: str, videos: Sequence[str] = (), **options: Unpack[AskOptions]
    ) -> Generator[AnswerEvent, None, None]:
        """The events of an answer as they come. Closing the iterator stops the work."""
        call, reader = calls.answers(question, videos, options), AnswerReader()
        try:
            with closing(self._try(call, lambda response: response)) as response:
                for sse in EventSource(response).iter_sse():
                    event = reader.read(sse)
                    if event is not None:
                        yield event
        except httpx.TransportError as error:
            raise lost(call, error) from error
        reader.end()

    def ask(self, question: str, videos: Sequence[str] = (), **options: Unpack[AskOptions]) -> Answers:
        """The whole answer. A video that could not be answered about has its problem there."""
        with closing(self.answers(question, videos, **options)) as events:
            return Answers.of(events)

    def search(self, question: str, videos: Sequence[str] = (), *, limit: int = 10) -> Found:
        """Moments that fit, best first, in these videos or in all."""
        return self._send(calls.search(question, videos, limit))

    def open_session(self, videos: Sequence[str]) -> Session:
        """Begins a conversation; name it as ``session`` of the next questions."""
        return self._send(calls.open_session(videos))

    def session(self, session: str) -> Session:
        return self._send(calls.session(session))

    def close_session(self, session: str) -> None:
        self._send(calls.close_session(session))

    def ready(self) -> Readiness:
        """Whether the service does its work. A service that cannot answer just now says so too."""
        return self._send(calls.ready())

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send(self, call: Call[T]) -> T:
        def whole(response: httpx.Response) -> T:
            with closing(response):
                response.read()
                return call.read(response)

        return self._try(call, whole)

    def _try(self, call: Call[Any], use: Callable[[httpx.Response], T]) -> T:
        """What ``use`` makes of a response; tried again while that has a point."""
        tried = 0
        while True:
            tried += 1
            try:
                return use(self._begin(call))
            except (X2LError, httpx.TransportError) as error:
                self._pause(call, error, tried)

    def _begin(self, call: Call[Any]) -> httpx.Response:
        """A response whose body is still to come. Raises the error it tells of, TransportError."""
        options = request_options(call, self._http.timeout)
        if call.upload:
            options["content"] = pieces_of(call.upload)
        response = self._http.send(self._http.build_request(call.method, call.path, **options), stream=True)
        if not call.failed(response):
            return response
        with closing(response):
            response.read()
        raise error_of(response)

    def _pause(self, call: Call[Any], error: X2LError | httpx.TransportError, tried: int) -> None:
        seconds = self._retry.pause(call, error, tried)
        if seconds is None:
            raise lost(call, error) from error
        self._sleep(seconds)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
