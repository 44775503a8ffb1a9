"""Positions: in true order and proportion, and inside the trained range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from x2l_cluster.engine.place import QUESTION_ROOM, place
from x2l_cluster.types import Positions


@given(end=st.floats(10, 1e7), anchor=st.integers(0, 9), trained=st.integers(2048, 262144))
def test_scaled_positions_leave_room_for_the_question(end, anchor, trained):
    where = place(Positions.SCALED, anchor=anchor, end=end, max_position=trained)
    assert where.at(end) <= trained - QUESTION_ROOM
    assert where.at(anchor) == anchor


def test_a_video_that_fits_stays_where_it_was():
    where = place(Positions.SCALED, anchor=5, end=3000, max_position=4096)
    coords = torch.tensor([[7.0, 8.0, 9.0]])
    assert where.factor == 1
    assert where(coords) is coords


def test_the_scale_is_a_power_of_two_so_that_a_growing_video_rarely_moves():
    factors = {place(Positions.SCALED, anchor=0, end=end, max_position=4096).factor for end in range(3100, 24000, 100)}
    assert factors == {0.5, 0.25, 0.125}


def test_order_and_proportion_are_kept():
    where = place(Positions.SCALED, anchor=10, end=50_000, max_position=4096)
    coords = torch.tensor([[10.0], [20.0], [40.0], [50_000.0]])
    placed = where(coords)[:, 0]
    assert placed.diff().gt(0).all()
    assert placed[2] - placed[1] == pytest.approx(2 * float(placed[1] - placed[0]))


def test_original_positions_are_never_touched():
    assert place(Positions.ORIGINAL, anchor=0, end=1e6, max_position=4096).factor == 1
