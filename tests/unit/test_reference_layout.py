"""The token layout of a video, and what each state lets a question see."""

from __future__ import annotations

import torch

from x2l_cluster import reference
from x2l_cluster.reference.data import Codec
from x2l_cluster.reference.layout import COARSE, FINE, RAW, UNIFORM, chunk_mask, question_mask, question_visibility


def _layout(groups: int = 20):  # type: ignore[no-untyped-def]
    return Codec(reference.path()).layout([2.0 * g + 0.5 + 90 for g in range(groups)])


def test_positions_advance_by_one_a_word_and_by_the_grid_a_group() -> None:
    layout = _layout(2)
    positions = layout.positions[:, layout.valid]
    stamp = len("<90.5") + 2  # " seconds" and ">" are one token each
    start = layout.prefix + stamp + 1
    assert positions[:, start - 1].tolist() == [start - 1] * 3
    assert positions[:, start].tolist() == [start, start, start]
    assert positions[:, start + 15].tolist() == [start, start + 3, start + 3]
    assert positions[:, start + 16].tolist() == [start + 4] * 3
    assert layout.end == positions.max() + 1


def test_pooled_entries_sit_at_mean_coordinates() -> None:
    layout = _layout(2)
    first = layout.positions[:, layout.visual[0]]
    assert torch.equal(layout.coords_coarse[:, 0], first.mean(1))
    assert torch.equal(layout.coords_fine[:, 0], first[:, :2].mean(1))
    assert torch.equal(layout.coords_uniform[:, 0], first[:, [0, 1, 4, 5]].mean(1))


def test_a_chunk_sees_the_prefix_the_coarse_past_and_itself_causally() -> None:
    layout = _layout(20)
    mask = chunk_mask(layout)
    p, g, t, s = layout.prefix, layout.groups, layout.stamps.shape[1], layout.slots
    assert mask.shape == (3, s, p + g + 3 * t + s)
    assert mask[:, :, :p].all()
    past = mask[:, 0, p : p + g].sum(1)
    assert past.tolist() == [0, 8, 16]
    assert mask[0, :, p + g : p + g + 3 * t].sum() == 0
    own = mask[1, :, -s:]
    assert own[5, :6].all()
    assert not own[5, 6:].any()
    assert not mask[2, -1, -s:][~layout.valid[p + 2 * s :]].any()  # padding is never seen


def test_states_open_the_right_number_of_entries() -> None:
    layout = _layout(16)
    table, chunk = question_visibility(layout)
    entries = {state: int(table[state][chunk == 1].sum()) for state in (RAW, FINE, COARSE, UNIFORM)}
    anchors = sum(len(f"<{2.0 * g + 90.5:.1f}") + 4 for g in range(8, 16))
    stamp = len("<106.5") + 2
    assert entries == {RAW: anchors + 128, FINE: anchors + 64, COARSE: stamp + 8, UNIFORM: stamp + 32}


def test_questions_do_not_see_each_other() -> None:
    layout = _layout(8)
    mask = question_mask(layout, torch.full((1, 2, 1), COARSE), 3)[0]
    own = mask[:, -6:]
    assert own[:3, 3:].sum() == 0
    assert own[3:, :3].sum() == 0
    assert torch.equal(own[:3, :3], torch.ones(3, 3, dtype=torch.bool).tril())
    assert mask[:, : layout.prefix].all()
