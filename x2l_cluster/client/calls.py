"""Every call of the service, by name."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

import httpx

from x2l_cluster.client.call import Call, Progress, Upload, as_a
from x2l_cluster.errors import InvalidInput, VideoFileNotFound
from x2l_cluster.messages import Chunk, Deleted, Estimate, Found, Job, Readiness, Session, Video
from x2l_cluster.types import Detail


class IndexOptions(TypedDict, total=False):
    """What may be said about a video to index; see :class:`~x2l_cluster.service.requests.IndexRequest`."""

    video: str
    recipe: Mapping[str, Any]
    repair: bool
    priority: int


class AppendOptions(TypedDict, total=False):
    """What may be said about a recording that has grown."""

    priority: int


class AskOptions(TypedDict, total=False):
    """What may be said about a question; see :class:`~x2l_cluster.service.requests.Ask`."""

    session: str
    history: Sequence[tuple[str, str]]
    detail: str | Detail
    scorer: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: Sequence[str]
    synthesis: bool
    on_missing: str
    deadline_s: float


def index(
    file: str | Path | None,
    *,
    url: str | None,
    path: str | None,
    key: str | None,
    progress: Progress,
    options: IndexOptions,
) -> Call[Job]:
    """Uploads ``file``, or names what the service reads itself. Raises InvalidInput, VideoFileNotFound."""
    return _bring("/v1/videos", file, url, path, key, progress, options)


def append(
    video: str,
    file: str | Path | None,
    *,
    url: str | None,
    path: str | None,
    key: str | None,
    progress: Progress,
    options: AppendOptions,
) -> Call[Job]:
    """As :func:`index`, for a video that is there."""
    return _bring(f"{_named('videos', video)}:append", file, url, path, key, progress, options)


def _bring(
    address: str,
    file: str | Path | None,
    url: str | None,
    path: str | None,
    key: str | None,
    progress: Progress,
    options: IndexOptions | AppendOptions,
) -> Call[Job]:
    if sum(given is not None for given in (file, url, path)) != 1:
        raise InvalidInput("give exactly one of a file to upload, url and path")
    # One key for all tries of this call, so that whichever got through is the only one that counts.
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    if file is None:
        sent = {"url": url, "path": path, **options}
        given = {name: value for name, value in sent.items() if value is not None}
        return Call(method="POST", path=address, parse=as_a(Job), json=given, headers=headers)
    upload = _upload(Path(file), progress)
    headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(upload.size_bytes)}
    params: dict[str, Any] = {"name": upload.path.name, **options}
    if "recipe" in params:
        params["recipe"] = dumps(params["recipe"])
    return Call(method="POST", path=address, parse=as_a(Job), params=params, headers=headers, upload=upload)


def reindex(video: str, key: str | None, recipe: Mapping[str, Any] | None) -> Call[Job]:
    headers = {"Idempotency-Key": key or uuid.uuid4().hex}
    sent = {"reindex": video, "recipe": recipe or {}}
    return Call(method="POST", path="/v1/videos", parse=as_a(Job), json=sent, headers=headers)


def _upload(path: Path, progress: Progress) -> Upload:
    if not path.is_file():
        raise VideoFileNotFound(f"there is no file {path}; check the path")
    return Upload(path=path, size_bytes=path.stat().st_size, progress=progress)


def _named(what: str, id: str) -> str:
    return f"/v1/{what}/{quote(id, safe='')}"


def jobs() -> Call[list[Job]]:
    return Call(method="GET", path="/v1/jobs", parse=as_a(list[Job]))


def job(id: str, wait_s: float) -> Call[Job]:
    params = {"wait": wait_s} if wait_s else {}
    return Call(method="GET", path=_named("jobs", id), parse=as_a(Job), params=params, wait_s=wait_s)


def job_events(id: str, after: int) -> Call[None]:
    headers = {"Last-Event-ID": str(after)}
    return Call(method="GET", path=f"{_named('jobs', id)}/events", parse=lambda _: None, headers=headers)


def cancel(id: str) -> Call[Job]:
    return Call(method="POST", path=f"{_named('jobs', id)}:cancel", parse=as_a(Job))


def retry(id: str) -> Call[Job]:
    # The second of two would say that the job is in no state for it.
    return Call(method="POST", path=f"{_named('jobs', id)}:retry", parse=as_a(Job), repeatable=False)


def videos() -> Call[list[Video]]:
    return Call(method="GET", path="/v1/videos", parse=as_a(list[Video]))


def video(id: str) -> Call[Video]:
    return Call(method="GET", path=_named("videos", id), parse=as_a(Video))


def chunks(id: str) -> Call[list[Chunk]]:
    return Call(method="GET", path=f"{_named('videos', id)}/chunks", parse=as_a(list[Chunk]))


def frame(id: str, time_s: float, format: str) -> Call[tuple[bytes, float]]:
    def parse(response: httpx.Response) -> tuple[bytes, float]:
        return response.content, float(response.headers["x-frame-time-s"])

    params = {"t": time_s, "format": format}
    return Call(method="GET", path=f"{_named('videos', id)}/frames", parse=parse, params=params)


def delete(id: str) -> Call[Deleted]:
    # The second of two would know no such video, and nobody how many bytes the first has freed.
    return Call(method="DELETE", path=_named("videos", id), parse=as_a(Deleted), repeatable=False)


def estimate(duration_s: float, width: int, height: int, recipe: Mapping[str, Any] | None) -> Call[Estimate]:
    sent = {"duration_s": duration_s, "width": width, "height": height, "recipe": recipe or {}}
    return Call(method="POST", path="/v1/videos:estimate", parse=as_a(Estimate), json=sent)


def answers(question: str, videos: Sequence[str], options: AskOptions) -> Call[None]:
    sent: dict[str, Any] = {"question": question, "videos": list(videos), **options, "stream": True}
    detail = sent.get("detail")
    if isinstance(detail, Detail):
        amounts = {"k": detail.k, "budget_bytes": detail.budget_bytes}
        given = {name: value for name, value in amounts.items() if value is not None}
        sent["detail"] = given if detail.mode in ("k", "budget") else detail.mode
    return Call(method="POST", path="/v1/answers", parse=lambda _: None, json=sent, repeatable=False)


def search(question: str, videos: Sequence[str], limit: int) -> Call[Found]:
    sent = {"question": question, "videos": list(videos), "limit": limit}
    return Call(method="POST", path="/v1/search", parse=as_a(Found), json=sent)


def open_session(videos: Sequence[str]) -> Call[Session]:
    return Call(
        method="POST", path="/v1/sessions", parse=as_a(Session), json={"videos": list(videos)}, repeatable=False
    )


def session(id: str) -> Call[Session]:
    return Call(method="GET", path=_named("sessions", id), parse=as_a(Session))


def close_session(id: str) -> Call[None]:
    return Call(method="DELETE", path=_named("sessions", id), parse=lambda _: None, repeatable=False)


def ready() -> Call[Readiness]:
    return Call(method="GET", path="/readyz", parse=as_a(Readiness), answers_with=(503,))
