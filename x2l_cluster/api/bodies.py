"""What callers send, as pydantic models; each becomes a request of the service, which checks the values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json

from x2l_cluster.service.requests import (
    MAX_MOMENTS,
    MAX_QUESTION,
    MAX_TOKENS,
    MAX_VIDEOS,
    Ask,
    EstimateRequest,
    IndexRequest,
    SearchRequest,
)
from x2l_cluster.types import Detail, SourceRef

_WORD = 4096
_RECIPE = 2048
Word = Annotated[str, Field(max_length=_WORD)]
Ids = Annotated[tuple[Word, ...], Field(max_length=MAX_VIDEOS)]
Question = Annotated[str, Field(max_length=MAX_QUESTION)]
Whole = Annotated[int, Field(ge=0, le=1 << 53)]


def _short(recipe: Any) -> Any:
    if isinstance(recipe, str) and len(recipe) > _RECIPE:
        raise ValueError(f"a recipe has at most {_RECIPE} characters")
    return recipe


class Body(BaseModel):
    """No field is taken silently for another, no number is other than a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class VideoBody(Body):
    """A video to index, by exactly one of ``url``, ``path`` and ``reindex``."""

    url: Word | None = Field(None, description="http(s) address the service fetches")
    path: Word | None = Field(None, description="file below a folder that the service may read")
    reindex: Word | None = Field(
        None, description="id of an indexed video: anew from its kept original, the old index serves until then"
    )
    video: Word | None = Field(None, description="id of your choice; by default from the content")
    recipe: dict[str, Any] = Field(default_factory=dict, description="fields of the recipe to change")
    repair: bool = Field(False, description="make again what is gone or damaged of an index that is there")
    priority: int = Field(0, ge=-100, le=100)

    def request(self, key: str | None) -> IndexRequest:
        return IndexRequest(**dict(self), idempotency_key=key)


class AppendBody(Body):
    """A recording as long as it is by now, by exactly one of ``url`` and ``path``."""

    url: Word | None = Field(None, description="http(s) address the service fetches")
    path: Word | None = Field(None, description="file below a folder that the service may read")
    priority: int = Field(0, ge=-100, le=100)

    def request(self, video: str, key: str | None) -> IndexRequest:
        return IndexRequest(**dict(self), video=video, append=True, idempotency_key=key)


class AppendFields(Body):
    """What goes with an uploaded file that is appended: fields of the form, or the query of a raw upload."""

    name: str | None = Field(None, max_length=255, description="of the file, for people")
    priority: int = Field(0, ge=-100, le=100)

    def request(self, video: str, source: SourceRef, key: str | None) -> IndexRequest:
        return IndexRequest(source=source, video=video, append=True, priority=self.priority, idempotency_key=key)


class UploadFields(Body):
    """What goes with an uploaded file: fields of the form, or the query of a raw upload."""

    name: str | None = Field(None, max_length=255, description="of the file, for people")
    video: str | None = Field(None, max_length=128)
    recipe: Annotated[Json[dict[str, Any]], BeforeValidator(_short)] = Field(
        "{}", validate_default=True, description="a JSON object", json_schema_extra={"maxLength": _RECIPE}
    )
    repair: bool = False
    priority: int = Field(0, ge=-100, le=100)

    def request(self, source: SourceRef, key: str | None) -> IndexRequest:
        return IndexRequest(source=source, idempotency_key=key, **self.model_dump(exclude={"name"}))


class EstimateBody(Body):
    """A video of so many seconds and pixels."""

    duration_s: float
    width: int = 1280
    height: int = 720
    recipe: dict[str, Any] = Field(default_factory=dict)

    def request(self) -> EstimateRequest:
        return EstimateRequest(**dict(self))


class Amount(Body):
    """Fine detail of ``k`` chunks, or of as many as fit into ``budget_bytes``."""

    k: Whole | None = None
    budget_bytes: Whole | None = None

    def detail(self) -> Detail:
        return Detail(mode="budget" if self.k is None else "k", k=self.k, budget_bytes=self.budget_bytes)


DetailWord = Annotated[str, Field(max_length=32, description="auto, coarse, fine, k=N or budget=BYTES")]


def detail_of(given: DetailWord | Amount) -> Detail:
    """Raises InvalidInput."""
    return Detail.parse(given) if isinstance(given, str) else given.detail()


class AnswerBody(Body):
    """A question about some videos, each answered by itself."""

    question: Question
    videos: Ids = ()
    session: Word | None = Field(None, description="go on in the light of its earlier turns")
    history: tuple[tuple[Question, str], ...] = Field((), max_length=100, description="(question, answer) turns")
    detail: DetailWord | Amount = "auto"
    scorer: Word = "calibrated"
    max_tokens: int = Field(64, ge=1, le=MAX_TOKENS)
    temperature: float = Field(0.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: Whole = 0
    stop: tuple[Word, ...] = Field((), max_length=16)
    synthesis: bool = Field(False, description="close with one answer made from those of all videos")
    on_missing: str = Field("degrade", description="degrade or fail")
    deadline_s: float | None = None
    stream: bool = False

    def ask(self) -> Ask:
        given = dict(self) | {"detail": detail_of(self.detail)}
        del given["stream"]
        return Ask(**given)


class SearchBody(Body):
    """Moments that fit, in these videos or in all."""

    question: Question
    videos: Ids = ()
    limit: int = Field(10, ge=1, le=MAX_MOMENTS)

    def request(self) -> SearchRequest:
        return SearchRequest(**dict(self))


class SessionBody(Body):
    """The videos a conversation is about."""

    videos: Ids = Field(min_length=1)
