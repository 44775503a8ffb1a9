"""Frames → chunks, the unit of prefill, scoring and storage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xxhash

from x2l_cluster.errors import InvalidInput
from x2l_cluster.types import Span
from x2l_cluster.video.decode import FrameBatch
from x2l_cluster.video.reader import Pixels
from x2l_cluster.video.sampling import Times


class Samples(Protocol):
    """Timed frames to be cut into chunks; a :class:`~x2l_cluster.video.decode.VideoStream` is one."""

    start: int
    times_s: Times
    end_s: float

    def __iter__(self) -> Iterator[FrameBatch]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameChunk:
    """A run of consecutive samples.

    Attributes:
        index: counted from 0 at the beginning of the sampling.
        frames: (n, height, width, 3) uint8 RGB; n is a multiple of the frames of a group.
        times_s: (n,) when each is shown.
        sampled: how many of them are true samples; the rest repeats the last one to fill its group.
        span: from the first sample to the first one of the next chunk, or to the end of what was sampled.
        is_last: no chunk follows.
    """

    index: int
    frames: Pixels
    times_s: Times
    sampled: int
    span: Span
    is_last: bool


def chunked(stream: Samples, *, chunk_frames: int = 16, group_frames: int = 2) -> Iterator[FrameChunk]:
    """Gather a stream into chunks of ``chunk_frames``.

    A last group that is not full is filled by repeating its last frame, with its time, as the stock Qwen processor
    does. To resume at chunk *i*, open the stream with ``start=i * chunk_frames``. A chunk is handed out only once it
    is known whether another one follows, so one more batch than is shown is held.

    Raises:
        InvalidInput: ``chunk_frames`` is no positive multiple of ``group_frames``, or the stream starts inside a chunk.
    """
    if group_frames < 1 or chunk_frames < 1 or chunk_frames % group_frames:
        raise InvalidInput(f"a chunk is whole groups: {chunk_frames} frames are no multiple of {group_frames}")
    waiting: list[Pixels] = []
    held, start = 0, stream.start
    if start % chunk_frames:
        raise InvalidInput(f"sample {start} is inside a chunk of {chunk_frames}; start at a multiple")
    for batch in stream:
        frames = batch.frames
        while held + len(frames) > chunk_frames:
            room = chunk_frames - held
            yield _chunk(stream, start, [*waiting, frames[:room]], chunk_frames, group_frames, is_last=False)
            start, frames, waiting, held = start + chunk_frames, frames[room:], [], 0
        waiting.append(frames)
        held += len(frames)
    if held:
        yield _chunk(stream, start, waiting, chunk_frames, group_frames, is_last=True)


def frame_prints(frames: Pixels, times_s: Times) -> bytes:
    """Eight bytes a frame, of its time and pixels: equal frames have equal ones, others do not by accident."""
    return b"".join(
        xxhash.xxh3_64_digest(np.ascontiguousarray(frame).data, seed=xxhash.xxh3_64_intdigest(time_s.tobytes()))
        for frame, time_s in zip(frames, times_s, strict=True)
    )


def span_of(stream: Samples, start: int, sampled: int) -> Span:
    """What the ``sampled`` frames from sample ``start`` on cover."""
    first_s, until = float(stream.times_s[start]), start + sampled
    end_s = stream.end_s if until >= len(stream.times_s) else float(stream.times_s[until])
    return Span(start_s=first_s, end_s=max(end_s, first_s))


def _chunk(
    stream: Samples, start: int, parts: list[Pixels], chunk_frames: int, group_frames: int, *, is_last: bool
) -> FrameChunk:
    sampled = sum(len(part) for part in parts)
    fill = -sampled % group_frames
    frames = np.concatenate([*parts, *[parts[-1][-1:]] * fill]) if len(parts) > 1 or fill else parts[0]
    times_s = stream.times_s[start : start + sampled]
    return FrameChunk(
        index=start // chunk_frames,
        frames=frames,
        times_s=np.append(times_s, np.repeat(times_s[-1], fill)),
        sampled=sampled,
        span=span_of(stream, start, sampled),
        is_last=is_last,
    )
