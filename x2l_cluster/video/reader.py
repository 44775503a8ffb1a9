"""The seam between us and decoding libraries: a :class:`FrameReader` turns presentation indices into pixels.

Which frames to read, and when they are shown, is settled before (see :mod:`.timeline` and :mod:`.sampling`), so the
readers cannot disagree about time. A reader is opened with ``Reader(path, timeline, fit, progress)``, and calls
``progress`` with every frame it decodes, wanted or not.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from x2l_cluster.errors import InvalidInput
from x2l_cluster.types import VideoInfo
from x2l_cluster.video.sampling import Indices
from x2l_cluster.video.timeline import Progress, Timeline, no_progress

Pixels = npt.NDArray[np.uint8]
"""(n, height, width, 3), RGB, upright."""


class GaveUp(Exception):
    """A reader will not go on with this file; another one may."""

    code = "gave_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How frames are delivered.

    Attributes:
        max_side: frames are scaled down, while decoding, so that neither side is longer; None: as they are.
        batch_bytes: a batch holds as many frames as fit into this, at least one and at most ``batch_frames``.
    """

    max_side: int | None = None
    batch_bytes: int = 16 << 20
    batch_frames: int = 16

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 1:
            raise InvalidInput(f"max_side must be at least 1 pixel, got {self.max_side}")

    def size(self, info: VideoInfo) -> tuple[int, int]:
        """Height and width of a delivered frame."""
        share = min(1.0, self.max_side / max(info.height, info.width)) if self.max_side else 1.0
        return max(1, round(info.height * share)), max(1, round(info.width * share))

    def frames(self, info: VideoInfo) -> int:
        """Frames in a batch."""
        height, width = self.size(info)
        return max(1, min(self.batch_frames, self.batch_bytes // (3 * height * width)))


class FrameReader(Protocol):
    """Decodes chosen frames of one file, in order, in bounded memory."""

    def read(self, frames: Indices) -> Iterator[Pixels]:
        """The given frames (ascending presentation indices) in batches.

        A frame that cannot be decoded is replaced by the one on screen before it, as a player would show it, and
        counted in :attr:`damage`. Ends early when damage leaves nothing more to read.

        Raises:
            GaveUp: this library cannot be trusted with the file.
            ResolutionChanged: the shape of the picture changes inside the stream.
        """
        ...

    @property
    def damage(self) -> str | None:
        """What went wrong so far, in words for users; None if nothing did."""
        ...

    def close(self) -> None: ...


class ReaderFactory(Protocol):
    """Opens a file whose timeline is known."""

    def __call__(
        self, path: Path, timeline: Timeline, fit: Fit, progress: Progress = no_progress, /
    ) -> FrameReader: ...


_READERS = {
    "decord": "x2l_cluster.video.decord_reader:DecordReader",
    "pyav": "x2l_cluster.video.pyav_reader:PyAVReader",
}

_DECORD_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
_DECORD_CODECS = {"h264", "hevc"}
_DECORD_FORMATS = {"yuv420p", "yuvj420p"}


def route(timeline: Timeline, *, moments: bool) -> str:
    """Which library reads this file.

    A run of samples is PyAV's: decord decodes ahead on a thread of its own without any bound, so under a user slower
    than itself (a model) its process grows to the whole video: 730 MB for an hour of 256×256 at one frame a second,
    where PyAV stays at 60 MB.

    A few ``moments`` here and there are decord's, which finds frames by index, where it is exact: whole MP4 and
    Matroska files of 8-bit H.264 or H.265, upright, of one size, with closed groups of pictures and a complete table of
    timestamps. All others are PyAV's too: transport streams (decord hangs on them), damaged files (it refuses those
    others salvage), open groups of pictures (after a seek it returns frames some places off), clocks that need repair
    (it takes them as they are), changes of size (it scales without a word), and codecs its FFmpeg 4 half supports.
    """
    if not moments:
        return "pyav"
    info = timeline.info
    suited = (
        bool(_DECORD_CONTAINERS & set(info.container.split(",")))
        and info.codec in _DECORD_CODECS
        and timeline.pixel_format in _DECORD_FORMATS
        and timeline.rotation == 0
        and timeline.one_size
        and timeline.closed
        and timeline.pts is not None
        and info.partial is None
    )
    return "decord" if suited else "pyav"


def reader_factory(name: str) -> ReaderFactory:
    """A reader by name: ``decord``, ``pyav``, or ``module:Class`` for one that lives elsewhere (a hardware decoder)."""
    module, _, attribute = _READERS.get(name, name).partition(":")
    if not attribute:
        raise InvalidInput(f"unknown frame reader {name!r}; choose {', '.join(_READERS)}, or give module:Class")
    return cast(ReaderFactory, getattr(importlib.import_module(module), attribute))
