"""How much of everything so many hours of video take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from x2l_cluster.errors import InvalidInput
from x2l_cluster.messages import Estimate
from x2l_cluster.service.capacity import capacity

HOUR = Estimate(
    duration_s=3600.0,
    frames=3600,
    chunks=225,
    tokens=370_800,
    fine_bytes=27_000_000_000,
    coarse_bytes=1_800_000_000,
    score_bytes=90_000_000,
    full_bytes=54_000_000_000,
    tiers={},
    device_bytes=1,
    index_s=450.0,
)
ALL = {"hours": 100.0, "fine_hours": 10.0, "hot_hours": 2.0, "daily_hours": 24.0, "fine_chunks": 4}


def test_each_kind_of_block_is_counted_where_it_is_kept():
    needed = capacity(HOUR, **ALL)
    assert needed.kv_bytes == 10 * HOUR.fine_bytes
    assert needed.kv_limit_bytes == 1.25 * needed.kv_bytes
    assert needed.disk_bytes == 100 * (HOUR.coarse_bytes + HOUR.score_bytes)
    assert needed.host_bytes == 2 * (HOUR.coarse_bytes + HOUR.score_bytes)


def test_a_question_moves_the_fine_blocks_of_its_plan():
    assert capacity(HOUR, **ALL).question_bytes == 4 * HOUR.fine_bytes / HOUR.chunks
    short = replace(HOUR, chunks=2, fine_bytes=200)
    assert capacity(short, **ALL).question_bytes == 200


@pytest.mark.parametrize(("daily", "gpus"), [(0, 0), (24, 1), (192, 1), (193, 2), (400, 3)])
def test_gpus_index_a_days_hours_within_a_day(daily, gpus):
    assert capacity(HOUR, **ALL | {"daily_hours": daily}).index_gpus == gpus
    assert capacity(replace(HOUR, index_s=None), **ALL).index_gpus is None


def test_it_does_not_matter_which_length_was_estimated():
    whole = capacity(HOUR, **ALL)
    half = replace(HOUR, duration_s=1800.0, chunks=113, fine_bytes=13_500_000_000, coarse_bytes=900_000_000)
    assert capacity(replace(half, score_bytes=45_000_000), **ALL).disk_bytes == whole.disk_bytes


@pytest.mark.parametrize("wrong", [{"fine_hours": 101}, {"hot_hours": -1}, {"daily_hours": -1}, {"fine_chunks": -1}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(InvalidInput):
        capacity(HOUR, **ALL | wrong)
