"""Reading frames with PyAV: any container, damaged files included.

Reads on rather than seeking (a seek costs as much as decoding some dozens of frames), except over long stretches that
nobody asked for: there it jumps to the last keyframe before the next wanted frame. In containers without an index of
them, transport streams say, it passes over packets instead, up to where the bitstream begins afresh: a hundred times
faster than decoding them.

What FFmpeg makes of damage depends on the timing of its frame threads. So at the first sign of damage the reader goes
back to where it was and continues with one frame at a time: the same file gives the same pixels, every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from x2l_cluster.errors import ResolutionChanged
from x2l_cluster.video.container import decoded, open_container
from x2l_cluster.video.reader import Fit, Pixels
from x2l_cluster.video.sampling import Indices
from x2l_cluster.video.timeline import Progress, Timeline, no_progress

_SEEK_GAIN = 64
"""Frames that must lie between here and a keyframe before a seek pays."""
_SEEKABLE = {"mov", "mp4", "matroska", "webm"}
"""Containers with an index of keyframes. In others a seek may land on frames that decode to rubbish."""
_RUN_UP = 1
"""IDR frames before the last one, from which decoding begins where there is no index: a decoder learns only from the
frames themselves how many it has to hold back for reordering."""
_SAME_SHAPE = 0.02
"""Relative difference of aspect up to which a frame of another size is only scaled."""

Shown = tuple[int, VideoFrame]
"""A presentation index and its frame."""


class _Damaged(Exception):
    """Something could not be decoded while frame threads were at work."""


class PyAVReader:
    """A :class:`~x2l_cluster.video.reader.FrameReader` over PyAV."""

    def __init__(self, path: Path, timeline: Timeline, fit: Fit, progress: Progress = no_progress) -> None:
        self._path, self._line, self._progress = path, timeline, progress
        self._height, self._width = fit.size(timeline.info)
        self._batch = fit.frames(timeline.info)
        self._open = ExitStack()
        self._scaler = VideoReformatter()
        self._first_error = ""
        self._error_count = self._corrupt = 0
        self._resized: str | None = None
        self._careful = timeline.info.partial is not None
        info = timeline.info
        self._seeks = bool(_SEEKABLE & set(info.container.split(",")))
        keyframes = timeline.keyframes if self._seeks else timeline.fresh
        trusted = timeline.pts is not None and info.partial is None
        self._keyframes = keyframes if trusted else np.zeros(0, np.int64)

    def read(self, frames: Indices) -> Iterator[Pixels]:
        filled = 0
        for picture in self._pictures(frames):
            if filled == 0:
                batch = np.empty((self._batch, self._height, self._width, 3), np.uint8)
            batch[filled] = picture
            filled += 1
            if filled == self._batch:
                yield batch
                filled = 0
        if filled:
            yield batch[:filled]

    @property
    def damage(self) -> str | None:
        notes = []
        if self._error_count or self._corrupt:
            first = f" (the first: {self._first_error})" if self._first_error else ""
            notes.append(
                f"{self._error_count} packets could not be decoded and {self._corrupt} frames are damaged{first}; "
                "the frame before stands in for what is missing"
            )
        if self._resized:
            notes.append(self._resized)
        return "; ".join(notes) or None

    def close(self) -> None:
        self._open.close()

    def _pictures(self, wanted: Indices) -> Iterator[Pixels]:
        """One picture for each wanted frame: that frame, or if it is missing the last one before it."""
        done = 0
        while True:
            try:
                for frame in self._shown(wanted[done:].tolist()):
                    yield self._convert(frame)
                    done += 1
            except _Damaged:
                self._careful = True
            else:
                return

    def _shown(self, wanted: list[int]) -> Iterator[VideoFrame]:
        frames = self._frames()
        position, shown = -1, None
        ahead: Shown | None = None
        for target in wanted:
            # Passing over packets begins at the front of the file each time, so that is done once.
            if (self._seeks or position < 0) and self._keyframe(target) - position > _SEEK_GAIN:
                frames, position, shown, ahead = self._frames_from(target), -1, None, None
            while position < target:
                step = ahead or next(frames, None)
                ahead = None
                if step is None:
                    break
                if step[0] > target and shown is not None:
                    ahead = step
                    break
                position, shown = step
            if shown is None or (ahead is None and position < target and self.damage):
                return  # the end, earlier than it should be
            yield shown

    def _keyframe(self, target: int) -> int:
        """The keyframe to decode from to have a frame; -1 where seeking is not to be trusted."""
        place = int(np.searchsorted(self._keyframes, target, side="right")) - 1 - (0 if self._seeks else _RUN_UP)
        return int(self._keyframes[place]) if place >= 0 else -1

    def _frames_from(self, target: int) -> Iterator[Shown]:
        """Frames from a keyframe at or before ``target`` on.

        Containers order their index by decoding time, so that a seek may land one keyframe late; and a stream may need
        some frames to recover. Hence the check, and the step back.
        """
        key = self._keyframe(target)
        while key > 0:
            frames = self._frames(key)
            first = next(frames, None)
            if first is not None and first[0] <= target:
                yield first
                break
            key = self._keyframe(key - 1)
        else:
            frames = self._frames()
        yield from frames

    def _frames(self, key: int = 0) -> Iterator[Shown]:
        """Decode on from a keyframe, or (0) from the beginning."""
        self._open.close()
        container, stream = self._open.enter_context(open_container(self._path, frame_threads=not self._careful))
        pts = self._line.pts
        since_pts = int(pts[key]) if key and pts is not None else None
        if since_pts is not None and self._seeks:
            container.seek(since_pts, stream=stream, backward=True)
            since_pts = None
        count = -1
        for frame in decoded(container, stream, self._note, since_pts=since_pts, passing=self._progress):
            self._progress()
            if pts is None or frame.pts is None:
                count += 1
            else:
                place = int(np.searchsorted(pts, frame.pts, side="right")) - 1
                if place < max(key, count):
                    continue  # shown before the point decoding was entered at: may lack what it refers to
                count = place
            if frame.is_corrupt:
                self._corrupt += 1
                self._take_care()
            yield count, frame

    def _take_care(self) -> None:
        if not self._careful:
            self._first_error, self._error_count, self._corrupt = "", 0, 0
            raise _Damaged

    def _note(self, error: str) -> None:
        self._progress()
        self._take_care()
        self._first_error = self._first_error or error
        self._error_count += 1

    def _convert(self, frame: VideoFrame) -> Pixels:
        info, turns = self._line.info, round(self._line.rotation / 90) % 4
        height, width = (info.width, info.height) if turns % 2 else (info.height, info.width)
        if (frame.height, frame.width) != (height, width):
            change = f"the frame size changes from {width}x{height} to {frame.width}x{frame.height}"
            if abs(frame.width * height / (frame.height * width) - 1) > _SAME_SHAPE:
                raise ResolutionChanged(f"{self._path}: {change}, another shape; re-encode it, or split it there")
            self._resized = f"{change}; later frames are scaled to the first size"
        high, wide = (self._width, self._height) if turns % 2 else (self._height, self._width)
        picture = self._scaler.reformat(frame, width=wide, height=high, format="rgb24").to_ndarray()
        return np.rot90(np.asarray(picture, np.uint8), turns)
