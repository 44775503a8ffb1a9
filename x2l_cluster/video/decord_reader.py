"""Reading frames with decord: exact and quick on whole MP4 and Matroska files.

decord is trusted only as long as it is silent. It neither reports concealed damage nor frames it repeats in place of
broken ones, but its FFmpeg writes every decoding error to standard error; so in the decoder process, where that stream
is a file of our own, any growth of the file ends the trust, before the batch is handed out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import decord
import numpy as np

from x2l_cluster.video.reader import Fit, GaveUp, Pixels
from x2l_cluster.video.sampling import Indices
from x2l_cluster.video.timeline import Progress, Timeline, no_progress

_FLOAT32_DIGITS = 6e-8
"""Relative rounding of decord's single-precision timestamps."""


class DecordReader:
    """A :class:`~x2l_cluster.video.reader.FrameReader` over decord."""

    def __init__(self, path: Path, timeline: Timeline, fit: Fit, progress: Progress = no_progress) -> None:
        height, width = fit.size(timeline.info)
        full = (height, width) == (timeline.info.height, timeline.info.width)
        size = {} if full else {"height": height, "width": width}
        self._batch = fit.frames(timeline.info)
        self._shape = (height, width, 3)
        self._quiet = _log_bytes()
        self._progress = progress
        try:
            self._video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, **size)
            shown = self._video.get_frame_timestamp(range(len(self._video)))
        except Exception as error:  # decord raises its own, RuntimeError and IndexError alike
            raise GaveUp(f"decord cannot open it: {error}") from error
        self._check_times(np.asarray(shown, np.float64).reshape(-1, 2)[:, 0], timeline)

    def read(self, frames: Indices) -> Iterator[Pixels]:
        for at in range(0, len(frames), self._batch):
            wanted = frames[at : at + self._batch].tolist()
            batch = np.empty((len(wanted), *self._shape), np.uint8)
            for place, frame in enumerate(wanted):  # one by one: get_batch would hold them all twice, and silently
                batch[place] = self._picture(frame)
                self._progress()
            if _log_bytes() != self._quiet:
                raise GaveUp("decord reports decoding errors")
            yield batch

    def _picture(self, frame: int) -> Pixels:
        try:
            picture: Pixels = self._video[frame].asnumpy()
        except Exception as error:
            raise GaveUp(f"decord stopped: {error}") from error
        if picture.shape != self._shape:
            raise GaveUp(f"decord delivers frames of shape {picture.shape}, not {self._shape}")
        return picture

    @property
    def damage(self) -> str | None:
        return None  # where there is any, it gives up

    def close(self) -> None:
        self._video = None

    @staticmethod
    def _check_times(shown: np.ndarray[tuple[int], np.dtype[np.float64]], timeline: Timeline) -> None:
        """decord picks by index: its table of frames must be ours."""
        times_s = timeline.times_s
        if len(shown) != len(times_s):
            raise GaveUp(f"decord counts {len(shown)} frames, the container {len(times_s)}")
        off = np.abs(shown - shown[0] - times_s) - timeline.tick_s - _FLOAT32_DIGITS * np.abs(shown)
        if off.max() > 1e-6:
            raise GaveUp("decord and the container disagree about time")


def _log_bytes() -> int:
    """How much has been logged, if standard error is a file; otherwise nothing can be said."""
    status = os.fstat(2)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
