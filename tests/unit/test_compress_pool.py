"""Pooling: what is averaged with what, what is kept, and what never meets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blocks import raw_block, same
from x2l_cluster.compress import pool
from x2l_cluster.kv.block import KVBlock
from x2l_cluster.types import Anchors, LevelSpec, Quant, Role


def spec(pool: str, anchors: Anchors = Anchors.KEEP) -> LevelSpec:
    return LevelSpec(pool=pool, anchors=anchors, quant=Quant.NONE)


def by_hand(block: KVBlock, high: int, wide: int) -> list[torch.Tensor]:
    """Mean keys of every visual cell, entry by entry, in order."""
    cells = []
    for run in block.runs:
        if run.role is not Role.VISUAL:
            continue
        for top in range(0, run.rows, high):
            for left in range(0, run.cols, wide):
                inside = [
                    run.start + r * run.cols + c
                    for r in range(top, min(top + high, run.rows))
                    for c in range(left, min(left + wide, run.cols))
                ]
                weight = block.counts[inside].float()
                cells.append((block.keys[:, :, inside].float() * weight[:, None]).sum(2) / weight.sum())
    return cells


def test_identity_returns_the_very_same_block() -> None:
    block = raw_block()
    assert pool(block, spec("1x1")) is block


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", ["1x2", "2x2", "4x4", "3x3", "2x1"])
def test_cells_are_means_with_ragged_edges(cell: str, dtype: torch.dtype) -> None:
    block = raw_block(rows=5, cols=7, dtype=dtype)
    high, wide = (int(n) for n in cell.split("x"))
    pooled = pool(block, spec(cell))
    expected = torch.stack(by_hand(block, high, wide), dim=2)
    visual = pooled.roles() == Role.VISUAL
    torch.testing.assert_close(pooled.keys[:, :, visual], expected.to(dtype))
    assert pooled.keys.dtype is dtype
    runs = [run for run in pooled.runs if run.role is Role.VISUAL]
    assert {(run.rows, run.cols) for run in runs} == {(-(-5 // high), -(-7 // wide))}


def test_group_pools_the_whole_grid_at_its_mean_place() -> None:
    block = raw_block(groups=2, rows=3, cols=5, time=0)
    pooled = pool(block, spec("group"))
    visual = pooled.roles() == Role.VISUAL
    assert pooled.counts[visual].tolist() == [15, 15]
    first = block.runs[1]
    torch.testing.assert_close(pooled.coords[visual][0], block.coords[first.start : first.stop].mean(0))


def test_kept_text_is_untouched_bit_by_bit() -> None:
    block = raw_block(text=2, dtype=torch.bfloat16)
    pooled = pool(block, spec("4x4"))
    before, after = block.roles() != Role.VISUAL, pooled.roles() != Role.VISUAL
    assert torch.equal(block.keys[:, :, before], pooled.keys[:, :, after])
    assert torch.equal(block.values[:, :, before], pooled.values[:, :, after])
    assert torch.equal(block.coords[before], pooled.coords[after])
    assert (pooled.counts[after] == 1).all()


def test_first_time_keeps_one_timestamp_and_all_text() -> None:
    block = raw_block(groups=3, time=4, text=2)
    pooled = pool(block, spec("1x1", Anchors.FIRST_TIME))
    kept = [(run.role, run.group) for run in pooled.runs]
    assert kept == [
        (Role.TIME, 0), (Role.VISUAL, 0), (Role.TEXT, 0),
        (Role.VISUAL, 1), (Role.TEXT, 1),
        (Role.VISUAL, 2), (Role.TEXT, 2),
    ]  # fmt: skip
    wanted = torch.cat([torch.arange(run.start, run.stop) for run in block.runs if (run.role, run.group) in kept])
    assert torch.equal(pooled.keys, block.keys[:, :, wanted])


def test_pooled_anchors_stay_inside_their_group_and_off_the_text() -> None:
    block = raw_block(groups=2, time=3, text=2)
    pooled = pool(block, spec("2x2", Anchors.POOL))
    kept = [(run.role, run.group, len(run)) for run in pooled.runs]
    group = [(Role.TIME, 1), (Role.VISUAL, 4), (Role.MARKER, 1), (Role.TEXT, 2)]
    assert kept == [(role, g, size) for g in range(2) for role, size in group]
    assert pooled.counts[0] == 4  # three of the timestamp and the vision start
    torch.testing.assert_close(pooled.keys[:, :, 0], block.keys[:, :, :4].mean(2))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 6),
    cell=st.sampled_from(["1x1", "1x2", "2x2", "4x4", "3x2", "group"]),
    anchors=st.sampled_from(list(Anchors)),
    time=st.integers(0, 3),
    text=st.integers(0, 2),
    seed=st.integers(0, 9),
)
def test_pooling_keeps_visual_mass_and_never_mixes_roles(
    rows: int, cols: int, cell: str, anchors: Anchors, time: int, text: int, seed: int
) -> None:
    block = raw_block(groups=2, rows=rows, cols=cols, time=time, text=text, seed=seed)
    visual = block.roles() == Role.VISUAL
    # text far away from the visual values: any mixing would show
    keys = torch.where(visual[:, None], block.keys.clamp(-4, 4), block.keys + 1000)
    block = KVBlock(keys=keys, values=block.values, coords=block.coords, counts=block.counts, runs=block.runs)
    pooled = pool(block, spec(cell, anchors))
    after = pooled.roles() == Role.VISUAL
    assert int(pooled.counts[after].sum()) == int(visual.sum())
    assert (pooled.keys[:, :, after].abs() <= 4.001).all()
    assert (pooled.keys[:, :, ~after] > 900).all()
    weighted = (pooled.values[:, :, after] * pooled.counts[after][:, None]).sum(2)
    torch.testing.assert_close(weighted, block.values[:, :, visual].sum(2), atol=1e-4, rtol=1e-4)
    order = torch.argsort(pooled.coords[:, 0], stable=True)
    assert [run.group for run in pooled.runs] == sorted(run.group for run in pooled.runs)
    if cell == "1x1" and anchors is not Anchors.POOL:
        assert torch.equal(order, torch.arange(pooled.entries))


@pytest.mark.parametrize(("once", "then"), [("1x2", "2x1"), ("2x2", "2x2"), ("1x2", "group"), ("4x4", "group")])
def test_pooling_what_was_pooled_is_pooling_at_once(once: str, then: str) -> None:
    block = raw_block(rows=5, cols=7)
    high, wide = (5, 7)
    if then != "group":
        high, wide = (a * b for a, b in zip(map(int, once.split("x")), map(int, then.split("x")), strict=True))
    at_once = pool(block, spec(f"{high}x{wide}"))
    twice = pool(pool(block, spec(once)), spec(then))
    assert at_once.runs == twice.runs
    assert torch.equal(at_once.counts, twice.counts)
    torch.testing.assert_close(at_once.keys, twice.keys)
    torch.testing.assert_close(at_once.coords, twice.coords)


def test_equal_input_gives_equal_bytes() -> None:
    a, b = (pool(raw_block(rows=5, cols=7, dtype=torch.bfloat16), spec("2x2")) for _ in range(2))
    assert same(a, b)
