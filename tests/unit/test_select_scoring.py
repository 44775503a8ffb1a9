"""Scoring all heads all ways at once agrees with scoring one head one way."""

from __future__ import annotations

import torch

from tests.contract.test_chunk_scorer import question, video
from x2l_cluster.select import Bank, HeadKeys, TokenSet
from x2l_cluster.select.scoring import WAYS, score_all, score_heads, zscore


def test_score_all_equals_each_way_alone() -> None:
    kv_heads = [(layer, head) for layer in range(3) for head in range(2)]
    bank = Bank.of(range(5), [HeadKeys.of(block, kv_heads) for block in video()])
    asked = question(frozenset(range(3)))
    everything = score_all(asked, bank)
    assert everything.shape == (3, 4, len(WAYS), 5)
    assert torch.equal(everything, score_all(asked, bank, bank.rotated(asked.rotate)))
    heads = tuple((layer, head) for layer in range(3) for head in range(4))
    for place, way in enumerate(WAYS):
        alone = score_heads(asked, bank, heads, way).reshape(3, 4, 5)
        torch.testing.assert_close(everything[:, :, place], alone)
        if way.rotation:
            turned = score_heads(asked, bank.rotated(asked.rotate), heads, way).reshape(3, 4, 5)
            torch.testing.assert_close(turned, alone)


def test_ways_are_all_different() -> None:
    assert len(set(WAYS)) == 12


def test_an_empty_token_set_widens_to_the_next() -> None:
    asked = question(frozenset())
    bare = type(asked)(
        coords=asked.coords, question=(), content=(), last=(5,), embedding=asked.embedding, rotate=asked.rotate
    )
    assert bare.tokens(TokenSet.CONTENT) == tuple(range(6))
    assert bare.tokens(TokenSet.LAST) == (5,)


def test_zscore_makes_heads_comparable_and_ties_zero() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [100.0, 200.0, 300.0], [5.0, 5.0, 5.0], [1e8, 1e8, 1e8]])
    z = zscore(scores)
    torch.testing.assert_close(z[0], z[1])
    assert (z[2:] == 0).all()
    assert zscore(torch.tensor([[3.0]])).tolist() == [[0.0]]
    assert zscore(torch.zeros(2, 0)).shape == (2, 0)
