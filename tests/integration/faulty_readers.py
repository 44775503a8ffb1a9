"""Frame readers that misbehave as native decoders do, named to the decoder process by ``module:Class``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from x2l_cluster.video.pyav_reader import PyAVReader
from x2l_cluster.video.reader import Fit
from x2l_cluster.video.timeline import Progress, Timeline

Pixels = npt.NDArray[np.uint8]


class Hangs(PyAVReader):
    """Reads one batch, then hangs."""

    def read(self, frames: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        yield next(super().read(frames))
        time.sleep(3600)


class HangsAtOnce:
    def __init__(self, path: Path, timeline: Timeline, fit: Fit, progress: Progress) -> None:
        time.sleep(3600)


class Segfaults(PyAVReader):
    """Reads one batch, then dies as a C library does."""

    def read(self, frames: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        yield next(super().read(frames))
        os.kill(os.getpid(), signal.SIGSEGV)


class Exits(PyAVReader):
    """A library that calls exit()."""

    def read(self, frames: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        os.write(1, b"chatter on standard output must not garble the messages\n")
        os.write(2, b"out of cheese\n")
        os._exit(7)
        yield np.zeros((0, 1, 1, 3), np.uint8)


class Raises(PyAVReader):
    """A bug of our own."""

    def read(self, frames: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        raise AssertionError("this cannot happen")
        yield np.zeros((0, 1, 1, 3), np.uint8)


class Slow(PyAVReader):
    """Takes four seconds for its first batch, showing signs of life all the while."""

    def read(self, frames: npt.NDArray[np.int64]) -> Iterator[Pixels]:
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            self._progress()
            time.sleep(0.01)
        yield from super().read(frames)
