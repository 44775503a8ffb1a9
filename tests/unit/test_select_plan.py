"""Reload plans: within budget, pins first, never silent about a chunk."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from x2l_cluster.select import Aggregation, Calibration, Encoding, TokenSet, make_plan
from x2l_cluster.types import BlockRef, ChunkRow, Detail, Kind, Level, Span

CALIBRATION = Calibration(
    weights="w",
    heads=((0, 0),),
    rotation=False,
    tokens=TokenSet.ALL,
    aggregation=Aggregation.MAX,
    encoding=Encoding.OVER_COARSE,
    margins=((1, 1.0),),
    cap=0.25,
)
AUTO, COARSE, FINE = Detail(), Detail(mode="coarse"), Detail(mode="fine")


def row(index: int, size: int = 100, *, fine: bool = True) -> ChunkRow:
    blocks = {Kind.H: BlockRef(kind=Kind.H, epoch=1, size_bytes=10, checksum="0" * 16, entries=4)}
    if fine:
        blocks[Kind.L] = BlockRef(kind=Kind.L, epoch=1, size_bytes=size, checksum="0" * 16, entries=64)
    return ChunkRow(
        index=index,
        span=Span(start_s=16.0 * index, end_s=16.0 * (index + 1)),
        frames=16,
        position_start=0.0,
        position_end=1.0,
        raw_entries=128,
        blocks={str(kind): ref for kind, ref in blocks.items()},
    )


def rows(count: int) -> list[ChunkRow]:
    return [row(i) for i in range(count)]


def scores(count: int, **best: float) -> list[float]:
    values = [0.0] * count
    for place, score in best.items():
        values[int(place[1:])] = score
    return values


details = st.one_of(
    st.sampled_from([AUTO, COARSE, FINE, Detail(budget_bytes=150), Detail(mode="fine", budget_bytes=333)]),
    st.integers(0, 9).map(lambda k: Detail(mode="k", k=k)),
    st.integers(0, 900).map(lambda b: Detail(mode="budget", budget_bytes=b)),
)
any_score = st.one_of(st.floats(-5, 5), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.none(), st.integers(1, 300)), max_size=12),
    given_scores=st.lists(any_score, max_size=12),
    detail=details,
    pins=st.sets(st.integers(0, 15), max_size=4),
    edges=st.booleans(),
    calibrated=st.booleans(),
)
def test_every_plan(
    sizes: list[int | None],
    given_scores: list[float],
    detail: Detail,
    pins: set[int],
    edges: bool,
    calibrated: bool,
) -> None:
    table = [row(i, size or 0, fine=size is not None) for i, size in enumerate(sizes)]
    plan = make_plan(
        table,
        given_scores,
        detail,
        scorer="calibrated",
        pins=pins,
        calibration=CALIBRATION if calibrated else None,
        edges=edges,
    )
    assert [c.chunk for c in plan.chunks] == [r.index for r in table]
    assert plan.detail == detail
    if detail.budget_bytes is not None:
        assert plan.reload_bytes <= detail.budget_bytes
    for chunk, source in zip(plan.chunks, table, strict=True):
        fine = chunk.level is Level.L
        assert (chunk.reason == "rest") is (not fine)
        assert chunk.span == source.span
        assert chunk.size_bytes == source.blocks["l" if fine else "h"].size_bytes
        assert math.isfinite(chunk.score)
    assert json.loads(json.dumps(asdict(plan), allow_nan=False))
    if detail.mode == "coarse":
        assert plan.fine == ()
    if detail == FINE:
        assert plan.fine == tuple(i for i, size in enumerate(sizes) if size is not None)
    if detail.k is not None and not edges:
        assert len(plan.fine) == min(detail.k, sum(size is not None for size in sizes))
    if detail == AUTO and not edges:
        assert len(plan.fine) <= max(CALIBRATION.most(len(sizes)), len(pins) + 1)
    again = make_plan(
        table, torch.tensor(given_scores, dtype=torch.float64), detail, scorer="calibrated", pins=pins, edges=edges,
        calibration=CALIBRATION if calibrated else None,
    )  # fmt: skip
    assert again == plan


def test_auto_takes_all_within_the_margin_of_the_best() -> None:
    given_scores = scores(12, c3=5.0, c7=4.2, c9=3.9)
    plan = make_plan(rows(12), given_scores, AUTO, scorer="calibrated", calibration=CALIBRATION)
    assert plan.fine == (3, 7)
    assert plan.chunks[3].reason == "score"
    assert plan.chunks[3].score == 5.0


def test_auto_is_capped_and_breaks_ties_by_chunk() -> None:
    plan = make_plan(rows(12), [0.0] * 12, AUTO, scorer="calibrated", calibration=CALIBRATION)
    assert plan.fine == (0, 1, 2)


def test_auto_without_calibration_takes_the_best_eighth() -> None:
    given_scores = scores(12, c3=5.0, c7=4.2, c9=3.9)
    for scorer, calibration in (("calibrated", None), ("coarse", CALIBRATION)):
        assert make_plan(rows(12), given_scores, AUTO, scorer=scorer, calibration=calibration).fine == (3, 7)


def test_pins_count_into_the_cap_but_the_best_chunk_always_comes_along() -> None:
    given_scores = scores(12, c3=5.0, c7=4.9, c9=4.8)

    def plan(pins: set[int]) -> dict[int, str]:
        made = make_plan(rows(12), given_scores, AUTO, scorer="calibrated", pins=pins, calibration=CALIBRATION)
        return {c.chunk: c.reason for c in made.chunks if c.level is Level.L}

    assert plan({0}) == {0: "pinned", 3: "score", 7: "score"}
    assert plan({0, 1, 2, 4}) == {0: "pinned", 1: "pinned", 2: "pinned", 3: "score", 4: "pinned"}
    assert plan({3}) == {3: "pinned", 7: "score", 9: "score"}
    assert plan({3, 0, 1}) == {0: "pinned", 1: "pinned", 3: "pinned"}


def test_k_counts_pins_and_leaves_edges_on_top() -> None:
    given_scores = scores(6, c2=5.0, c3=4.0)
    plan = make_plan(rows(6), given_scores, Detail(mode="k", k=2), scorer="coarse", pins={4}, edges=True)
    assert {c.chunk: c.reason for c in plan.chunks if c.level is Level.L} == {
        0: "edge",
        2: "score",
        4: "pinned",
        5: "edge",
    }


def test_a_budget_goes_to_pins_then_edges_then_scores_and_passes_over_what_does_not_fit() -> None:
    table = [row(0, 50), row(1, 100), row(2, 500), row(3, 60), row(4, 40)]
    given_scores = [0.0, 1.0, 9.0, 5.0, 4.0]
    plan = make_plan(table, given_scores, Detail(mode="budget", budget_bytes=210), scorer="coarse", pins={1})
    assert plan.fine == (1, 3, 4)
    assert plan.reload_bytes == 200
    edged = make_plan(
        table, given_scores, Detail(mode="budget", budget_bytes=210), scorer="coarse", pins={1}, edges=True
    )
    assert edged.fine == (0, 1, 4)
    assert make_plan(table, given_scores, Detail(mode="budget", budget_bytes=0), scorer="coarse", pins={1}).fine == ()


def test_unknown_scores_come_last() -> None:
    given_scores = [math.nan, 1.0, math.inf, 2.0]
    assert make_plan(rows(4), given_scores, Detail(mode="k", k=2), scorer="x").fine == (1, 3)
    assert make_plan(rows(4), given_scores, Detail(mode="k", k=3), scorer="x").fine == (0, 1, 3)
    assert make_plan(rows(4), None, Detail(mode="k", k=1), scorer="x").fine == (0,)
    auto = make_plan(rows(4), [math.nan] * 4, AUTO, scorer="calibrated", calibration=CALIBRATION)
    assert auto.fine == (0,)


def test_empty_and_single_chunk_videos() -> None:
    for detail in (AUTO, COARSE, FINE, Detail(mode="k", k=3)):
        assert make_plan([], [], detail, scorer="x", edges=True, pins={0}).chunks == ()
    assert make_plan(rows(1), [0.0], AUTO, scorer="calibrated", calibration=CALIBRATION).fine == (0,)


def test_a_partly_indexed_video_plans_over_what_is_sealed() -> None:
    plan = make_plan(rows(5)[2:], [1.0, 3.0], Detail(mode="k", k=2), scorer="x", pins={9})
    assert [c.chunk for c in plan.chunks] == [2, 3, 4]
    assert plan.fine == (2, 3)


def test_chunks_without_a_stored_fine_block_stay_coarse() -> None:
    table = rows(3)
    table[1] = row(1, fine=False)
    plan = make_plan(table, [0.0, 9.0, 1.0], Detail(mode="k", k=1), scorer="x", pins={1})
    assert plan.fine == (2,)
    assert replace(plan).chunks[1].size_bytes == 10


@pytest.mark.parametrize("mode", ["coarse", "fine"])
def test_none_and_all(mode: str) -> None:
    plan = make_plan(rows(4), [1.0] * 4, Detail(mode=mode), scorer="x", pins={1}, edges=True)
    assert plan.fine == (() if mode == "coarse" else (0, 1, 2, 3))
