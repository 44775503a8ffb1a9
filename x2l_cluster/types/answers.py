"""What is asked, planned and answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from x2l_cluster.errors import InvalidInput
from x2l_cluster.types.kinds import Level, Tier
from x2l_cluster.types.video import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """How much fine detail a question may reload; exactly one way of saying it.

    ``auto`` (as many chunks as calibrated confidence asks for), ``coarse`` (none), ``fine`` (all), ``k`` chunks, or as
    many as fit into ``budget_bytes``.
    """

    mode: str = "auto"
    k: int | None = None
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "coarse", "fine", "k", "budget"):
            raise InvalidInput(f"detail is auto, coarse, fine, k or budget; got {self.mode!r}")
        if (self.mode == "k") != (self.k is not None) or (self.k is not None and self.k < 0):
            raise InvalidInput(f"detail k goes with a whole number from 0; got mode {self.mode!r} and k {self.k}")
        if self.mode == "budget" and self.budget_bytes is None:
            raise InvalidInput("detail budget goes with budget_bytes")
        if self.budget_bytes is not None and self.budget_bytes < 0:
            raise InvalidInput(f"budget_bytes counts from 0, got {self.budget_bytes}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """``auto``, ``coarse``, ``fine``, ``k=3`` or ``budget=2000000``."""
        name, _, value = text.partition("=")
        if value and not value.isdecimal():
            raise InvalidInput(f"detail {text!r}: {value!r} is not a whole number")
        if name == "k" and value:
            return cls(mode="k", k=int(value))
        if name == "budget" and value:
            return cls(mode="budget", budget_bytes=int(value))
        return cls(mode=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChunk:
    """One chunk as the plan sees it."""

    chunk: int
    span: Span
    level: Level
    score: float
    reason: str
    """Why at this level: ``score``, ``pinned`` (a time was named), ``edge``, ``all``, or ``rest``."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadPlan:
    """For one question and one video: which chunks come back as L. The rest stays H."""

    chunks: tuple[PlannedChunk, ...]
    scorer: str
    detail: Detail
    note: str | None = None
    """What the user should know when this is not quite the scoring asked for."""
    degraded: str | None = None
    """Why what the scorer wanted could not be had, so that other chunks may be planned: ``missing``, ``corrupt``,
    ``stale``, ``late`` or ``unavailable``."""

    @property
    def fine(self) -> tuple[int, ...]:
        return tuple(c.chunk for c in self.chunks if c.level is Level.L)

    @property
    def reload_bytes(self) -> int:
        """What has to travel: stored bytes of the planned L blocks."""
        return sum(c.size_bytes for c in self.chunks if c.level is Level.L)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A moment the answer was given fine detail of (or would have been: then ``degraded`` says why not)."""

    chunk: int
    span: Span
    level: Level
    score: float
    tier: Tier
    size_bytes: int
    degraded: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the answer cost."""

    prompt_tokens: int
    answer_tokens: int
    kv_entries: int
    """Entries of the assembled cache, without the question's own."""
    full_entries: int
    """Entries a full cache of the same video would hold."""
    reload_bytes: int
    full_bytes: int
    """Bytes of that full cache, unquantised, in the recipe's dtype."""

    @property
    def kv_share(self) -> float:
        return self.kv_entries / self.full_entries if self.full_entries else 0.0

    @property
    def moved_share(self) -> float:
        return self.reload_bytes / self.full_bytes if self.full_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer with its reasons."""

    text: str
    video: str
    plan: ReloadPlan
    evidence: tuple[Evidence, ...]
    usage: Usage
    timings: Mapping[str, float]
    """Seconds by phase, shared evenly in a batch: coarse_s, score_s, reload_s, assemble_s, decode_s. Of an answering
    loop also queue_s (before all of them) and ttft_s (to the first token)."""
    finish: str = "stop"
    """``stop``, ``length``, or ``deadline`` (there was no time for more)."""
    covered: Span | None = None
    """The part of the video that was indexed when the question was asked."""

    @property
    def degraded(self) -> bool:
        """Whether a store did not deliver what this answer should have been given."""
        return self.plan.degraded is not None or any(e.degraded for e in self.evidence)
