"""Decoding in a process of its own, which can be killed: the way everything else here gets frames.

Decoders are large C libraries fed with files from strangers; they crash, hang and leak. So they never run in the
caller's process. The child decodes a little ahead; when the caller stops reading, the pipe fills up and the child
waits, so memory stays flat whatever the length of the video. When the child makes no progress for ``deadline_s`` it is
killed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from x2l_cluster.errors import DecoderCrashed, DecodeTimeout, InvalidInput, VideoError
from x2l_cluster.types import Sampling, VideoInfo
from x2l_cluster.video.files import check_file
from x2l_cluster.video.process import DecoderProcess
from x2l_cluster.video.reader import Fit, GaveUp, Pixels
from x2l_cluster.video.sampling import Times

DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """Some consecutive samples.

    Attributes:
        index: sample number of the first one, counted from the beginning of the sampling.
        frames: (n, height, width, 3) uint8 RGB, upright.
        times_s: (n,) seconds from the first frame of the video.
    """

    index: int
    frames: Pixels
    times_s: Times


def open_video(
    path: str | os.PathLike[str],
    sampling: Sampling | None = None,
    *,
    start: int = 0,
    moments_s: Sequence[float] | None = None,
    max_side: int | None = None,
    deadline_s: float = DEADLINE_S,
    reader: str = "auto",
) -> VideoStream:
    """Open a video for reading; use it as a context manager.

    Args:
        path: a local file.
        sampling: which frames (default: one a second).
        start: sample to begin with, counted from 0. Frames and times are the same as those of an uninterrupted read.
        moments_s: instead of a sampling, read the frames on screen at these moments, in ascending order.
        max_side: scale frames down while decoding, so that a 4K frame need not travel as 25 MB.
        deadline_s: how long the decoder may take without any progress. Where decord hangs, PyAV gets as long again.
        reader: ``auto`` (see :func:`.reader.route`), ``decord``, ``pyav``, or ``module:Class``.

    Raises:
        VideoError: one of its kinds, here or while reading, in words for users.
        InvalidInput: an argument makes no sense.
    """
    if start < 0:
        raise InvalidInput(f"the sample to start with counts from 0, got {start}")
    if not 0 < deadline_s < math.inf:
        raise InvalidInput(f"the decoding deadline must be a positive number of seconds, got {deadline_s}")
    if moments_s is not None and not all(0 <= moment < math.inf for moment in moments_s):
        raise InvalidInput(f"moments are seconds from 0 on, got {list(moments_s)}")
    fit = Fit(max_side=max_side)
    request = {
        "path": str(check_file(path)),
        "reader": reader,
        "sampling": asdict(sampling or Sampling()),
        "moments_s": None if moments_s is None else [float(moment) for moment in moments_s],
        "start": start,
        "max_side": fit.max_side,
        "batch_bytes": fit.batch_bytes,
    }
    return VideoStream(request, deadline_s)


class VideoStream:
    """The sampled frames of a file, an iterator of :class:`FrameBatch`. Made by :func:`open_video`.

    Attributes:
        info: about the file. ``partial`` may be filled in by the time the last batch was read.
        times_s: (samples,) when each sample is shown, known before any is decoded.
        end_s: where the sampled stretch ends.
        reader: the library that reads it.
        start: the sample it began with.
        deadline_s: see :func:`open_video`; may be changed between batches.
    """

    info: VideoInfo
    times_s: Times
    end_s: float
    reader: str
    start: int
    deadline_s: float

    def __init__(self, request: Mapping[str, Any], deadline_s: float) -> None:
        self._request = dict(request)
        self.deadline_s = deadline_s
        self.start = self._next = int(request["start"])
        self._ended = False
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the decoder."""
        return self._child.pid

    def __len__(self) -> int:
        """Samples of the whole sampling, whatever the start."""
        return len(self.times_s)

    def __iter__(self) -> Iterator[FrameBatch]:
        while not self._ended:
            header, payload = self._receive()
            if header["type"] == "end":
                self._ended = True
                self._flag(header["damage"])
                self.close()
            else:
                frames = np.frombuffer(payload, np.uint8).reshape(header["shape"])
                index, self._next = self._next, self._next + len(frames)
                yield FrameBatch(index=index, frames=frames, times_s=self.times_s[index : self._next])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the decoder, if it still runs. May be called twice."""
        self._ended = True
        self._child.kill()

    def _start(self) -> None:
        self._child = DecoderProcess(self._request | {"start": self._next})
        try:
            header, payload = self._child.receive(self.deadline_s)
        except BaseException:
            self._child.kill()
            raise
        self.info = VideoInfo(**header["info"])
        self.reader, self.end_s = header["reader"], header["end_s"]
        self.times_s = np.frombuffer(payload, np.float64)

    def _receive(self) -> tuple[dict[str, Any], bytearray]:
        """The next message; where decord fails, hangs or crashes, from PyAV, which goes on at the next sample."""
        try:
            return self._child.receive(self.deadline_s)
        except (GaveUp, DecodeTimeout, DecoderCrashed) as error:
            self._child.kill()
            if self._request["reader"] == "auto" and self.reader != "pyav":
                self._request["reader"] = "pyav"
                self._start()
                return self._receive()
            self._ended = True
            if isinstance(error, GaveUp):
                raise VideoError(f"{self._request['path']}: {error}; choose another reader, or 'auto'") from error
            raise
        except BaseException:
            self.close()
            raise

    def _flag(self, damage: str | None) -> None:
        reasons = [reason for reason in (self.info.partial, damage) if reason]
        if self._next < len(self.times_s):
            at = f"{self.times_s[self._next - 1]:.1f} s" if self._next else "the beginning"
            reasons.append(f"the last readable sample is at {at}")
        self.info = replace(self.info, partial="; ".join(reasons) or None)
