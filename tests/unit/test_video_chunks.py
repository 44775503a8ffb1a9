"""Samples become chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from x2l_cluster.errors import InvalidInput
from x2l_cluster.types import Span
from x2l_cluster.video.chunks import FrameChunk, chunked
from x2l_cluster.video.decode import FrameBatch


@dataclass
class Samples:
    """``count`` samples, one a second, in batches of a size; only ``readable`` of them can be decoded."""

    count: int
    batch: int = 5
    start: int = 0
    readable: int | None = None

    def __post_init__(self) -> None:
        self.times_s = np.arange(self.count, dtype=np.float64)
        self.end_s = float(self.count)

    def __iter__(self) -> Iterator[FrameBatch]:
        last = self.count if self.readable is None else self.readable
        for index in range(self.start, last, self.batch):
            numbers = np.arange(index, min(last, index + self.batch))
            frames = np.broadcast_to(numbers[:, None, None, None].astype(np.uint8), (len(numbers), 2, 2, 3))
            yield FrameBatch(index=index, frames=frames, times_s=self.times_s[numbers])


def chunks(samples: Samples, size: int = 8, group: int = 2) -> list[FrameChunk]:
    return list(chunked(samples, chunk_frames=size, group_frames=group))


@pytest.mark.parametrize("batch", [1, 3, 8, 16, 50])
def test_chunks_hold_their_frames_in_order_whatever_the_batches(batch: int) -> None:
    got = chunks(Samples(21, batch))
    assert [chunk.index for chunk in got] == [0, 1, 2]
    assert [chunk.frames[:, 0, 0, 0].tolist() for chunk in got] == [
        [*range(8)], [*range(8, 16)], [*range(16, 21), 20],
    ]  # fmt: skip
    assert [chunk.is_last for chunk in got] == [False, False, True]


def test_a_lone_last_frame_is_repeated_with_its_time() -> None:
    last = chunks(Samples(9))[-1]
    assert last.frames[:, 0, 0, 0].tolist() == [8, 8]
    assert last.times_s.tolist() == [8.0, 8.0]
    assert last.sampled == 1
    assert [chunk.sampled for chunk in chunks(Samples(9), group=4)] == [8, 1]
    assert len(chunks(Samples(9), group=4)[-1].frames) == 4


def test_spans_leave_no_gap_and_end_where_the_sampling_ends() -> None:
    spans = [chunk.span for chunk in chunks(Samples(20))]
    assert spans == [Span(start_s=0, end_s=8), Span(start_s=8, end_s=16), Span(start_s=16, end_s=20)]


def test_a_full_last_chunk_knows_that_it_is_the_last() -> None:
    assert [chunk.is_last for chunk in chunks(Samples(16))] == [False, True]


def test_damage_that_ends_the_stream_early_makes_the_last_readable_chunk_the_last() -> None:
    got = chunks(Samples(30, readable=11))
    assert [(chunk.sampled, chunk.is_last) for chunk in got] == [(8, False), (3, True)]
    assert got[-1].span == Span(start_s=8, end_s=11)


def test_resuming_at_a_chunk_gives_the_same_chunks() -> None:
    whole, rest = chunks(Samples(21)), chunks(Samples(21, start=8))
    assert [chunk.index for chunk in rest] == [1, 2]
    for one, other in zip(whole[1:], rest, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        assert (one.span, one.is_last, one.sampled) == (other.span, other.is_last, other.sampled)


def test_no_samples_no_chunks() -> None:
    assert chunks(Samples(16, start=16)) == []


def test_chunks_must_be_whole_groups_and_resumes_must_hit_a_boundary() -> None:
    with pytest.raises(InvalidInput, match="whole groups"):
        chunks(Samples(5), size=7)
    with pytest.raises(InvalidInput, match="inside a chunk"):
        chunks(Samples(20, start=3))
