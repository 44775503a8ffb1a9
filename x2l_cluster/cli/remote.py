"""What commands do with ``--url``: the same over a service. Imports no engine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.status import Status
from rich.text import Text

from x2l_cluster.cli import progress
from x2l_cluster.cli.show import err
from x2l_cluster.cli.text import clock, plain
from x2l_cluster.client import X2L, IndexOptions
from x2l_cluster.client.options import DEFAULT_URL, URL
from x2l_cluster.errors import Cancelled, ConnectionLost
from x2l_cluster.messages import AnswerDelta, AnswerEvent, AnswerPlan, Answers, Chunk, Found, Job, JobState, Video
from x2l_cluster.types import Answer, Detail


def alone(url: str, **local: str | None) -> None:
    """Refuses options that are the service's own to choose."""
    if given := [f"--{name.replace('_', '-')}" for name, value in local.items() if value is not None]:
        raise typer.BadParameter(
            f"the service at {url} has its own {' and '.join(given)}; leave that out, or --url (X2L_URL)"
        )


def index(
    url: str, file: Path, *, video: str | None, fps: float | None, repair: bool
) -> tuple[Job, Video, list[Chunk]]:
    """Uploads a file and waits for its job. Raises what the job failed with; Cancelled when nobody watches any more."""
    options: IndexOptions = {"repair": repair}
    if video is not None:
        options["video"] = video
    if fps is not None:
        options["recipe"] = {"sampling": {"fps": fps}}
    with X2L(url) as x2l:
        with progress.sent(err, file.name) as report:
            job = x2l.index(file, progress=report, **options)
        return _ended(x2l, job, file, url)


def append(url: str, video: str, file: Path) -> tuple[Job, Video, list[Chunk]]:
    """Uploads a recording that has grown; otherwise as :func:`index`."""
    with X2L(url) as x2l:
        with progress.sent(err, file.name) as report:
            job = x2l.append(video, file, progress=report)
        return _ended(x2l, job, file, url)


def _ended(x2l: X2L, job: Job, file: Path, url: str) -> tuple[Job, Video, list[Chunk]]:
    job = watched(x2l, job.id, file.name, url=url)
    assert job.video is not None, "a job that is ready knows its video"
    return job, x2l.video(job.video), x2l.chunks(job.video)


def reindex(url: str, video: str, recipe: Mapping[str, Any]) -> tuple[Job, Video, list[Chunk]]:
    """Has a video indexed anew and waits for it. Raises as :func:`index`."""
    with X2L(url) as x2l:
        job = watched(x2l, x2l.reindex(video, recipe=recipe).id, video, url=url)
        return job, x2l.video(video), x2l.chunks(video)


def watched(x2l: X2L, job: str, what: str, *, url: str | None) -> Job:
    """The job once it is ready, with its progress on stderr. Ctrl-C leaves it alone. Raises as :func:`index`.

    ``url`` is where ``x2l`` goes, as it was given; None for where it goes by itself.
    """
    again = "" if url in (None, os.environ.get(URL) or DEFAULT_URL) else f" --url {url}"
    with _detaching(job, again), progress.steps(err, what) as report, closing(x2l.job_events(job)) as events:
        told = -1
        for event in events:
            now = event.job
            if now.chunks is not None and now.chunks_done != told:
                told = now.chunks_done
                report(told, now.chunks, f", up to {clock(now.covered_s)}")
        last = x2l.job(job)
    if last.state is JobState.READY:
        return last
    if last.state is JobState.CANCELLED:
        raise Cancelled(f"job {job} was cancelled; `x2l jobs retry {job}{again}` goes on with it")
    raise last.problem.error if last.problem else ConnectionLost(f"the events of job {job} ended before it did")


@contextmanager
def _detaching(job: str, again: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Cancelled(
            f"no longer watching; the service goes on with job {job}: `x2l jobs watch {job}{again}` shows it again, "
            f"`x2l jobs cancel {job}{again}` stops it"
        ) from None


def ask(url: str, video: str, questions: Sequence[str], *, detail: Detail, scorer: str, **options: Any) -> list[Answer]:
    """Answers as the engine gives them. Raises what a question failed with."""
    with X2L(url) as x2l:
        return [answered(x2l, video, question, detail=detail, scorer=str(scorer), **options) for question in questions]


def answered(x2l: X2L, video: str, question: str, **options: Any) -> Answer:
    """One answer, as the engine gave it; on a terminal one sees it come. Raises what the question failed with."""
    with closing(x2l.answers(question, [video], **options)) as events, err.status("asking") as status:
        (part,) = Answers.of(_shown(events, status)).parts
    if part.problem is not None:
        raise part.problem.error
    if part.completed is None or part.completed.answer is None:
        raise ConnectionLost(f"the answer about {video} came without its evidence; ask again")
    return part.completed.answer


def _shown(events: Iterator[AnswerEvent], status: Status) -> Iterator[AnswerEvent]:
    text = ""
    for event in events:
        if isinstance(event, AnswerPlan):
            plan = event.plan
            status.update(f"reading {len(plan.fine)} of {len(plan.chunks)} chunks in full detail")
        elif isinstance(event, AnswerDelta):
            text += event.text
            status.update(Text(plain(text)))  # what a model writes is no markup
        yield event


def search(url: str, question: str, videos: Sequence[str], *, limit: int) -> Found:
    with X2L(url) as x2l:
        return x2l.search(question, videos, limit=limit)


def videos(url: str) -> list[Video]:
    with X2L(url) as x2l:
        return x2l.videos()


def delete(url: str, video: str) -> int:
    """Returns the bytes freed."""
    with X2L(url) as x2l:
        return x2l.delete(video).freed_bytes
