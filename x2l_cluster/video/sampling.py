"""Which frames a :class:`~x2l_cluster.types.Sampling` picks.

The rule: target times are ``t_k = start + k / fps``; each picks the frame on screen at that moment, that is the last
one whose presentation time is not after it. **A frame is never picked twice**, so sampling faster than the video yields
every frame once, and a slide that stands for ten minutes yields one sample. On a constant-frame-rate file sampled at
an integer ratio *r* this is exactly frames 0, r, 2r, …. ``count`` is the same rule with ``fps = count / length``.

A frame may be late by the rounding of its container's clock (Matroska counts milliseconds) and still counts as on time;
see :func:`slack_s`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from x2l_cluster.errors import SpanOutsideVideo
from x2l_cluster.types import Sampling

Times = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picks:
    """The frames to read, in order.

    Attributes:
        frames: (n,) presentation indices, strictly increasing (or repeating, for explicitly asked times).
        times_s: (n,) their presentation times.
        end_s: where the sampled stretch ends.
    """

    frames: Indices
    times_s: Times
    end_s: float

    def __len__(self) -> int:
        return len(self.frames)


def slack_s(times_s: Times, tick_s: float) -> float:
    """How late a frame may be and still count as on time: one tick of the clock, at most a quarter frame."""
    interval = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1.0
    return min(tick_s + 1e-6, interval / 4)


def pick(times_s: Times, sampling: Sampling, *, duration_s: float, slack: float) -> Picks:
    """Apply a sampling to the presentation times of a video, (frames,), ascending from 0.

    Works per frame, not per target, so an absurd rate or count costs nothing: frame *j* is on screen for the targets
    ``k0[j] ≤ k < k0[j + 1]``, and is picked if there is one.

    Raises:
        SpanOutsideVideo: the span starts at or after the end.
    """
    start = sampling.start_s
    end = duration_s if sampling.end_s is None else min(sampling.end_s, duration_s)
    if start >= duration_s:
        raise SpanOutsideVideo(
            f"the span starts at {start:.3f} s but the video ends at {duration_s:.3f} s; ask for an earlier span"
        )
    step = (end - start) / sampling.count if sampling.count else 1.0 / sampling.fps
    targets = sampling.count or np.ceil((end - start) / step - 1e-9)
    first = np.maximum(0.0, np.ceil((times_s - slack - start) / step))
    until = np.minimum(np.append(first[1:], targets), targets)
    frames = np.flatnonzero(first < until)
    return Picks(frames=frames, times_s=times_s[frames], end_s=end)


def pick_moments(times_s: Times, moments_s: Sequence[float], *, duration_s: float, slack: float) -> Picks:
    """The frames on screen at given moments, in ascending order; moments past the end pick the last frame."""
    wanted = np.sort(np.asarray(moments_s, np.float64))
    frames = np.maximum(0, np.searchsorted(times_s, wanted + slack, side="right") - 1).astype(np.int64)
    return Picks(frames=frames, times_s=times_s[frames], end_s=duration_s)
