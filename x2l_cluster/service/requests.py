"""What can be asked of a service. Frozen values that check themselves; results are in :mod:`x2l_cluster.messages`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from x2l_cluster.errors import InvalidInput, InvalidQuestion
from x2l_cluster.types import Detail, SourceRef, check_name

MAX_VIDEOS: Final = 64
"""Most videos one question may be about."""
MAX_QUESTION: Final = 8192
"""Characters."""
MAX_TOKENS: Final = 4096
MAX_MOMENTS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRequest:
    """Index a video, from exactly one of a URL, a kept source, a path the service may read, or the original of a video
    that is indexed already.

    Attributes:
        reindex: the id of such a video. Its old index serves until the new one is ready, then it goes. Of the old
            recipe the sampling stays, unless ``recipe`` says otherwise.
        video: an id of the caller's choice; by default from the content.
        append: go on with the video of that id, under the recipe it has: its recording has grown to this file.
        recipe: fields of :class:`~x2l_cluster.types.Recipe` to change, in their JSON form.
        idempotency_key: the same key with the same request is the same job.
        priority: higher goes first, within a tenant.
    """

    url: str | None = None
    path: str | None = None
    source: SourceRef | None = None
    reindex: str | None = None
    video: str | None = None
    append: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    repair: bool = False
    idempotency_key: str | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.url, self.path, self.source, self.reindex)) != 1:
            raise InvalidInput("give exactly one of url, path, reindex and an upload")
        if self.reindex is not None and (self.repair or self.video not in (None, self.reindex)):
            raise InvalidInput("what is indexed anew keeps its id, and has nothing to repair")
        if self.video is not None:
            check_name("video id", self.video)
        if self.append and (self.video is None or self.reindex or self.recipe or self.repair):
            raise InvalidInput("what is appended goes to a video that is named, under the recipe it has")
        if self.idempotency_key is not None and not 1 <= len(self.idempotency_key) <= 255:
            raise InvalidInput(f"an idempotency key has 1 to 255 characters, got {len(self.idempotency_key)}")
        if not -100 <= self.priority <= 100:
            raise InvalidInput(f"priority is from -100 to 100, got {self.priority}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """What would indexing take: of a video of so many seconds and so many pixels a frame."""

    duration_s: float
    width: int = 1280
    height: int = 720
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.duration_s <= 7 * 86400:
            raise InvalidInput(f"duration_s must be above 0 and at most a week, got {self.duration_s}")
        if not (0 < self.width <= 16384 and 0 < self.height <= 16384):
            raise InvalidInput(f"frames have 1 to 16384 pixels a side, got {self.width}x{self.height}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question about some videos; each is answered by itself.

    Attributes:
        session: goes on in the light of its earlier turns; its videos are asked when ``videos`` is empty.
        history: earlier (question, answer) turns, for callers who keep them themselves.
        synthesis: close with one answer made from those of all videos.
        deadline_s: what is not answered by then fails.
    """

    question: str
    videos: tuple[str, ...] = ()
    session: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    detail: Detail = field(default_factory=Detail)
    scorer: str = "calibrated"
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    synthesis: bool = False
    on_missing: str = "degrade"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        check_question(self.question)
        if not self.videos and self.session is None:
            raise InvalidInput("name at least one video, or a session")
        if len(self.videos) > MAX_VIDEOS:
            raise InvalidInput(f"one question is about at most {MAX_VIDEOS} videos, got {len(self.videos)}")
        if len(set(self.videos)) != len(self.videos):
            raise InvalidInput("each video is named once")
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise InvalidInput(f"max_tokens is from 1 to {MAX_TOKENS}, got {self.max_tokens}")
        if self.on_missing not in ("degrade", "fail"):
            raise InvalidInput(f"on_missing is degrade or fail, got {self.on_missing!r}")
        if self.deadline_s is not None and not 0 < self.deadline_s <= 3600:
            raise InvalidInput(f"deadline_s must be above 0 and at most 3600, got {self.deadline_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """Moments that fit a question, in some videos or (without ``videos``) in all of the tenant's."""

    question: str
    videos: tuple[str, ...] = ()
    limit: int = 10

    def __post_init__(self) -> None:
        check_question(self.question)
        if not 1 <= self.limit <= MAX_MOMENTS:
            raise InvalidInput(f"limit is from 1 to {MAX_MOMENTS}, got {self.limit}")


def check_question(question: str) -> None:
    if not question.strip():
        raise InvalidQuestion("the question is empty; ask something")
    if len(question) > MAX_QUESTION:
        raise InvalidQuestion(f"the question has {len(question)} characters; at most {MAX_QUESTION} are taken")
