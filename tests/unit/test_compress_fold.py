"""The prefill memory: bounded, deterministic, detailed where it is recent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blocks import raw_block, same
from x2l_cluster.compress import Memory, compress
from x2l_cluster.compress.fold import halve
from x2l_cluster.kv.block import KVBlock, concat
from x2l_cluster.types import COARSE, Anchors, LevelSpec, Quant, Role

KEEP = LevelSpec(pool="2x2", anchors=Anchors.KEEP, quant=Quant.INT8)


def stored(count: int, spec: LevelSpec = COARSE, **shape: int) -> list[KVBlock]:
    return [
        compress(raw_block(seed=i, start=100.0 * i, layers=1, heads=1, dim=4, **shape), spec, "float16")
        for i in range(count)
    ]


def test_empty_memory_has_no_block() -> None:
    assert Memory(bound=10).block is None
    assert Memory(bound=10).entries == 0


def test_unbounded_memory_is_everything() -> None:
    blocks = stored(5)
    memory = Memory.of(blocks, None)
    assert memory.block is not None
    assert same(memory.block, concat([b.dequantised() for b in blocks]))


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.integers(1, 24),
    bound=st.integers(1, 60),
    groups=st.integers(1, 5),
    time=st.integers(0, 3),
    text=st.integers(0, 2),
    anchors=st.sampled_from(list(Anchors)),
)
def test_never_above_its_bound_and_refolding_gives_equal_tensors(
    chunks: int, bound: int, groups: int, time: int, text: int, anchors: Anchors
) -> None:
    spec = LevelSpec(pool="4x4", anchors=anchors, quant=Quant.INT8)
    blocks = stored(chunks, spec, groups=groups, time=time, text=text)
    memory = Memory(bound=bound)
    pictures = 0
    for block in blocks:
        memory = memory.add(block)
        pictures += int(block.counts[block.roles() == Role.VISUAL].sum())
        assert 0 < memory.entries <= bound
        whole = memory.block
        assert whole is not None
        assert whole.entries == memory.entries
        assert int(whole.counts[whole.roles() == Role.VISUAL].sum()) == pictures, "no picture is wholly forgotten"
        assert list(memory.ranks) == sorted(memory.ranks, reverse=True)
        place = whole.coords[whole.roles() == Role.VISUAL][:, 0]
        assert (place.diff() > 0).all(), "time order"
    again = Memory.of(blocks, bound).block
    assert again is not None
    assert memory.block is not None
    assert same(again, memory.block)


def test_recent_chunks_are_in_full_and_older_ones_coarser() -> None:
    blocks = stored(40)
    memory = Memory.of(blocks, 10 * blocks[0].entries)
    recent = [s for s, rank in zip(memory.segments, memory.ranks, strict=True) if rank == 0]
    assert len(recent) >= 2
    for segment, block in zip(reversed(recent), reversed(blocks), strict=False):
        assert same(segment, block.dequantised())
    visual_counts = [int(s.counts[s.roles() == Role.VISUAL].max()) for s in memory.segments]
    assert visual_counts == sorted(visual_counts, reverse=True)
    assert visual_counts[0] >= 4 * visual_counts[-1]


def test_unchanged_segments_stay_the_same_objects_and_work_is_amortised() -> None:
    blocks = stored(200)
    memory = Memory(bound=12 * blocks[0].entries)
    fresh = 0
    for block in blocks:
        before = {id(s) for s in memory.segments}
        held = memory  # keeps the ids of its segments from being used again
        memory = memory.add(block)
        fresh += sum(id(s) not in before for s in memory.segments)
        assert held.segments is not memory.segments
    assert fresh <= 2.2 * len(blocks)
    assert len(memory.segments) <= 13


def test_adding_leaves_the_old_memory_as_it_was() -> None:
    blocks = stored(9)
    memory = Memory.of(blocks[:8], 3 * blocks[0].entries)
    before = memory.block
    memory.add(blocks[8])
    assert before is not None
    assert memory.block is not None
    assert same(before, memory.block)


def test_halving_merges_pairs_of_groups_and_drops_every_other_timestamp() -> None:
    block = raw_block(groups=5, rows=2, cols=3, time=2, text=1)
    half = halve(block)
    shape = [(run.role, run.group) for run in half.runs]
    group = [Role.TIME, Role.MARKER, Role.VISUAL, Role.MARKER, Role.TEXT]
    assert shape == [(role, g) for g in range(3) for role in group]
    grids = [run for run in block.runs if run.role is Role.VISUAL]
    new = [run for run in half.runs if run.role is Role.VISUAL]
    pair = (block.keys[:, :, grids[0].start : grids[0].stop] + block.keys[:, :, grids[1].start : grids[1].stop]) / 2
    torch.testing.assert_close(half.keys[:, :, new[0].start : new[0].stop], pair)
    alone = block.keys[:, :, grids[4].start : grids[4].stop]
    torch.testing.assert_close(half.keys[:, :, new[2].start : new[2].stop], alone)
    times = [run for run in block.runs if run.role is Role.TIME]
    assert torch.equal(half.keys[:, :, :2], block.keys[:, :, times[0].start : times[0].stop])


def test_grids_of_different_size_still_merge() -> None:
    joined = concat([raw_block(groups=1, rows=2, cols=2), raw_block(groups=1, rows=3, cols=2)])
    half = halve(joined)
    visual = [run for run in half.runs if run.role is Role.VISUAL]
    assert len(visual) == 1
    assert len(visual[0]) == 1
    assert half.counts[visual[0].start] == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_hands_out_the_dtype_it_was_asked_for(dtype: torch.dtype) -> None:
    memory = Memory.of(stored(6, KEEP), 30, dtype)
    assert memory.block is not None
    assert memory.block.keys.dtype is dtype
