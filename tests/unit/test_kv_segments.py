"""Segments: small blobs lie together, and each comes out as it went in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.blocks import raw_block
from x2l_cluster.errors import BlockCorrupt, BlockStale
from x2l_cluster.kv.codec import decode, encode, ref_of, unpack
from x2l_cluster.kv.segments import cut_out, groups, pack_segment
from x2l_cluster.kv.stripes import STRIPE_BYTES
from x2l_cluster.types import BlockKey, Kind, Packed

KEY = BlockKey(tenant="local", video="v1", recipe="abc", epoch=3, kind="h", chunk=0)
SEGMENT = replace(KEY, kind=Kind.segment("h"), epoch=4)
BLOBS = [encode(raw_block(groups=1 + n, seed=n), replace(KEY, chunk=n)) for n in range(3)]


def test_every_blob_comes_out_as_it_went_in_and_the_segment_is_a_blob_itself() -> None:
    segment, offsets = pack_segment(BLOBS, SEGMENT)
    unpack(segment, SEGMENT, ref_of(segment))
    for chunk, (blob, offset) in enumerate(zip(BLOBS, offsets, strict=True)):
        ref = replace(ref_of(blob), packed=Packed(epoch=4, chunk=0, offset=offset))
        assert offset % 64 == 0
        assert cut_out(segment, SEGMENT, ref) == blob
        decode(cut_out(segment, SEGMENT, ref), replace(KEY, chunk=chunk), ref)


def test_what_lies_elsewhere_in_it_is_not_taken() -> None:
    segment, offsets = pack_segment(BLOBS, SEGMENT)
    for offset in (0, offsets[0], offsets[1] + 64, offsets[2], len(segment), 1 << 60):
        ref = replace(ref_of(BLOBS[1]), packed=Packed(epoch=4, chunk=0, offset=offset))
        with pytest.raises(BlockCorrupt):
            decode(cut_out(segment, SEGMENT, ref), replace(KEY, chunk=1), ref)


def test_another_segment_is_not_taken_though_it_holds_the_same_blobs() -> None:
    segment, offsets = pack_segment(BLOBS, replace(SEGMENT, epoch=3))
    ref = replace(ref_of(BLOBS[0]), packed=Packed(epoch=4, chunk=0, offset=offsets[0]))
    with pytest.raises(BlockStale):
        cut_out(segment, SEGMENT, ref)


@given(st.lists(st.integers(1, STRIPE_BYTES)), st.integers(10_000, STRIPE_BYTES))
def test_segments_stay_under_their_size_hold_at_least_two_and_keep_the_order(sizes: list[int], target: int) -> None:
    packed = list(groups(enumerate(sizes), target))
    flat = [name for names in packed for name in names]
    assert flat == sorted(set(flat))
    for names in packed:
        assert len(names) > 1
        assert sum(sizes[name] for name in names) <= target - 4096
    alone = [n for n in range(len(sizes)) if n not in flat and sizes[n] <= (target - 4096) // 2]
    assert len(alone) <= 1 + len(packed), "only what is left over beside full segments stays alone"


def test_a_segment_goes_the_way_of_what_it_holds() -> None:
    assert [Kind.segment(kind).partition("-")[0] for kind in ("h", "x-1f", "x-embedding")] == ["h", "x", "x"]
