"""Sizes, resizing and patches."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from x2l_cluster.models.pixels import fit, patchify, resize


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), budget=st.integers(32 * 32, 1 << 21))
def test_a_fitted_size_is_whole_units_within_the_budget(height, width, budget):
    high, wide = fit(height, width, unit=32, max_pixels=budget)
    assert high % 32 == wide % 32 == 0
    assert min(high, wide) >= 32
    assert high * wide <= budget or min(high, wide) == 32


def test_the_aspect_is_kept_as_near_as_units_allow():
    assert fit(1080, 1920, unit=32, max_pixels=448 * 448) == (320, 576)
    assert fit(128, 128, unit=32, max_pixels=448 * 448) == (128, 128)


def test_resizing_a_flat_picture_keeps_it_flat_and_the_same_size_is_untouched():
    frames = torch.full((2, 3, 50, 70), 123, dtype=torch.uint8)
    assert resize(frames, 50, 70) is frames
    smaller = resize(frames, 32, 32)
    assert smaller.shape == (2, 3, 32, 32)
    assert smaller.unique().tolist() == [123]


def test_each_patch_holds_its_own_pixels_of_both_frames():
    """Patches come cell by cell, each cell of merge × merge patches row by row."""
    rows = torch.arange(8)[:, None].expand(8, 8)
    cols = torch.arange(8)[None, :].expand(8, 8)
    picture = torch.stack([rows, cols, rows * 0]).float()
    frames = torch.stack([picture, picture + 100])
    patches = patchify(frames, patch=2, merge=2, group_frames=2).view(16, 3, 2, 2, 2)
    order = [(int(p[0, 0, 0, 0]) // 2, int(p[1, 0, 0, 0]) // 2) for p in patches]
    assert order[:8] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert (patches[:, :, 1] - patches[:, :, 0] == 100).all()
