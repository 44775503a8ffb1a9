"""What a service tells those who talk to it: jobs, videos, answers as they are written, moments, problems.

Light on purpose: a client needs only this, ``types`` and ``errors``. Every value is plain
data, so it travels as JSON and comes back equal. Moments in time are seconds since 1970, stretches of a video seconds
from its first frame, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from x2l_cluster.errors import ConnectionLost, X2LError, error_class
from x2l_cluster.types import Answer, Evidence, IndexStatus, ReloadPlan, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why something did not work, as RFC 9457 writes it, with our stable ``code`` and whether to try again."""

    code: str
    title: str
    detail: str
    status: int
    retryable: bool = False
    retry_after_s: float | None = None
    type: str = "about:blank"

    @classmethod
    def of(cls, error: X2LError) -> Problem:
        kind = type(error)
        return cls(
            code=kind.code,
            title=(kind.__doc__ or kind.code).strip().partition("\n")[0],
            detail=str(error),
            status=kind.http_status,
            retryable=kind.retryable,
            retry_after_s=error.retry_after_s,
            type=f"urn:x2l:problem:{kind.code}",
        )

    @property
    def error(self) -> X2LError:
        """The error it was made of, for whoever is far from where it was raised."""
        return error_class(self.code)(self.detail, retry_after_s=self.retry_after_s)


# --- jobs -----------------------------------------------------------------------------------------------------------


class JobState(StrEnum):
    """Where indexing work stands. The last three are final, but what failed or was cancelled can be retried."""

    QUEUED = "queued"
    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (JobState.READY, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Durable indexing work."""

    id: str
    state: JobState
    video: str | None
    """The video's id; None until the content of a URL is known."""
    created_s: float
    updated_s: float
    attempts: int = 0
    """How often a worker has begun."""
    chunks_done: int = 0
    chunks: int | None = None
    """How many the video is expected to have, once known."""
    covered_s: float = 0.0
    """How far the sealed part reaches; questions may be asked about it already."""
    cancelling: bool = False
    """Asked to stop; takes effect at the next chunk boundary."""
    problem: Problem | None = None
    """Why it failed; while it waits for another try, why the last one did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Something that happened to a job. Numbers rise, so a reader can go on behind the last one it saw."""

    number: int
    name: str
    """``job.queued``, ``job.running``, ``job.progress``, ``job.ready``, ``job.failed`` or ``job.cancelled``."""
    job: Job


# --- videos ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """An index of a video. While it is ``indexing``, questions are answered over the ``covered`` part."""

    id: str
    status: IndexStatus
    name: str | None
    """Of the original file."""
    duration_s: float
    width: int
    height: int
    covered: Span
    chunks: int
    recipe: str
    """Digest of everything that shapes the KVs."""
    revision: int
    partial: str | None = None
    """Why only a part of the file could be read."""
    source_bytes: int | None = None
    """Of the kept original; None when it is not kept."""
    stored_bytes: int = 0
    """Of all blocks its index names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A sealed chunk and what is stored of it."""

    index: int
    span: Span
    frames: int
    fine_bytes: int
    coarse_bytes: int
    score_bytes: int
    full_entries: int
    """KV entries before compression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    video: str
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What indexing a video would take. Byte counts are of the stored form, headers left out.

    Attributes:
        tiers: stored bytes by tier, as this service would place them.
        device_bytes: what the coarse level and the fine share of one question take while it is answered.
        index_s: how long the worker is expected to take; None when it has not measured itself yet.
    """

    duration_s: float
    frames: int
    chunks: int
    tokens: int
    fine_bytes: int
    coarse_bytes: int
    score_bytes: int
    full_bytes: int
    tiers: Mapping[str, int]
    device_bytes: int
    index_s: float | None


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One sub-answer: about ``video``, or, without one, the closing synthesis of all others."""

    id: str
    video: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCreated:
    """The first event: names every part. Each part then goes its own way, and ends completed or failed."""

    name: ClassVar[str] = "answer.created"
    id: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPlan:
    """What will be reloaded and why, before the first word, and how far the video is indexed."""

    name: ClassVar[str] = "answer.plan"
    part: str
    plan: ReloadPlan
    covered: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDelta:
    """The next piece of text."""

    name: ClassVar[str] = "answer.delta"
    part: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEvidence:
    """The moments the part was given fine detail of, best first."""

    name: ClassVar[str] = "answer.evidence"
    part: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCompleted:
    """The part is done. ``text`` is all of it; ``answer`` has plan, evidence and costs (None for a synthesis)."""

    name: ClassVar[str] = "answer.completed"
    part: str
    text: str
    finish: str = "stop"
    degraded: bool = False
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFailed:
    """The part could not be answered; the others go on."""

    name: ClassVar[str] = "answer.failed"
    part: str
    problem: Problem


AnswerEvent = AnswerCreated | AnswerPlan | AnswerDelta | AnswerEvidence | AnswerCompleted | AnswerFailed
ANSWER_EVENTS: Mapping[str, type[AnswerEvent]] = {
    kind.name: kind for kind in (AnswerCreated, AnswerPlan, AnswerDelta, AnswerEvidence, AnswerCompleted, AnswerFailed)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartResult:
    """How a part ended: exactly one of ``completed`` and ``problem``."""

    part: str
    video: str | None
    completed: AnswerCompleted | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A whole answer, for those who do not stream."""

    id: str
    parts: tuple[PartResult, ...]

    @classmethod
    def of(cls, events: Iterable[AnswerEvent]) -> Answers:
        """Of all events of an answer. A part that did not end has the problem that its end was lost."""
        created: AnswerCreated | None = None
        ends: dict[str, AnswerCompleted | AnswerFailed] = {}
        for event in events:
            if isinstance(event, AnswerCreated):
                created = event
            elif isinstance(event, AnswerCompleted | AnswerFailed):
                ends[event.part] = event
        if created is None:
            raise ConnectionLost("the answer ended before it began; ask again")
        return cls(id=created.id, parts=tuple(_result(part, ends.get(part.id)) for part in created.parts))


def _result(part: Part, end: AnswerCompleted | AnswerFailed | None) -> PartResult:
    if isinstance(end, AnswerCompleted):
        return PartResult(part=part.id, video=part.video, completed=end)
    lost = Problem.of(ConnectionLost(f"part {part.id} of the answer broke off; ask again"))
    return PartResult(part=part.id, video=part.video, problem=end.problem if end else lost)


# --- search, sessions, the service itself ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A chunk that fits what was searched for. Scores compare within one search, over all its videos."""

    video: str
    chunk: int
    span: Span
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Moments of all searched videos, best first, and the videos that could not be searched, with the reason."""

    moments: tuple[Moment, ...]
    searched: int
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question of a session and what was answered about each video."""

    question: str
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A conversation about some videos: what is asked next is understood in the light of ``turns``."""

    id: str
    videos: tuple[str, ...]
    turns: tuple[Turn, ...] = ()
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether the service does its work. ``answering`` may hold while ``degraded`` says what is amiss."""

    model_loaded: bool
    answering: bool
    indexing: bool
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The model that indexes and answers."""

    id: str
    weights: str
    max_position: int
