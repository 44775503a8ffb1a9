"""What commands over a service print: jobs and found moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from x2l_cluster.cli.show import columns, emit, err, line, out
from x2l_cluster.cli.text import clock, plain, stretch

if TYPE_CHECKING:
    from x2l_cluster.messages import Found, Job


def jobs(known: Sequence[Job], *, as_json: bool) -> None:
    if as_json:
        emit([asdict(job) for job in known])
        return
    table = columns("job", "state", "video", "chunks", "covered", "problem")
    for job in known:
        table.add_row(
            job.id,
            _state(job),
            job.video or "",
            f"{job.chunks_done} of {job.chunks}" if job.chunks is not None else str(job.chunks_done),
            clock(job.covered_s),
            plain(job.problem.detail) if job.problem else "",
        )
    out.print(table)


def job(job: Job, *, as_json: bool) -> None:
    if as_json:
        emit(asdict(job))
        return
    line(f"{job.id}  {_state(job)}  {job.video or ''}".rstrip())


def _state(job: Job) -> str:
    return "cancelling" if job.cancelling and not job.state.final else job.state


def found(moments: Found, *, as_json: bool) -> None:
    """Best first; what could not be searched is told on stderr."""
    for video, reason in moments.skipped.items():
        err.print(plain(f"{video} was not searched: {reason}"), style="yellow", soft_wrap=True)
    if as_json:
        emit(asdict(moments))
        return
    table = columns("video", "span", "score")
    for moment in moments.moments:
        table.add_row(moment.video, stretch(moment.span), f"{moment.score:+.2f}")
    out.print(table)
