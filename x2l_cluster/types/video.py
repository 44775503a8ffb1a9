"""What is known of a video and of which of its frames are looked at."""

from __future__ import annotations

from dataclasses import dataclass

from x2l_cluster.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a video, ``[start_s, end_s)``."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.start_s <= self.end_s:
            raise InvalidInput(f"a span runs forward from 0 or later, got [{self.start_s}, {self.end_s})")

    def holds(self, time_s: float) -> bool:
        return self.start_s <= time_s < self.end_s

    def overlaps(self, other: Span) -> bool:
        return self.start_s < other.end_s and other.start_s < self.end_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which frames are looked at: so many a second, or ``count`` spread evenly; of the whole video or of a span."""

    fps: float = 1.0
    count: int | None = None
    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("fps", "start_s"):  # 1 and 1.0 are one sampling, with one digest
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.end_s is not None:
            object.__setattr__(self, "end_s", float(self.end_s))
        if not 0 < self.fps <= 1000:
            raise InvalidInput(f"sampling fps must be above 0 and at most 1000, got {self.fps}")
        if self.count is not None and self.count < 1:
            raise InvalidInput(f"sampling count must be at least 1, got {self.count}")
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise InvalidInput(f"sampling span must run forward from 0 or later, got [{self.start_s}, {self.end_s})")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a container says about its video stream. ``partial`` tells why only a part of it could be read."""

    duration_s: float
    width: int
    height: int
    fps: float
    frames: int | None = None
    container: str = ""
    codec: str = ""
    partial: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """The kept original of a video: ``id`` is a digest of its content."""

    id: str
    name: str
    size_bytes: int
