"""The search finds the heads that retrieve, and margins that hold."""

from __future__ import annotations

import pytest
import torch

from x2l_cluster.calibrate import Probe, find_heads, margin_for
from x2l_cluster.calibrate.search import recall
from x2l_cluster.select.scoring import WAYS

LAYERS, HEADS = 3, 4


def probes(count: int, chunks: int, good: dict[tuple[int, int, int], float], seed: int = 0) -> list[Probe]:
    """Noise everywhere, except that (layer, head, way) sees the needed chunk with a strength."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        scores = torch.randn(LAYERS, HEADS, len(WAYS), chunks, generator=generator)
        needed = number % chunks
        for (layer, head, way), strength in good.items():
            scores[layer, head, way, needed] += strength
        made.append(Probe(scores=scores, needed=(needed,), kind="retrieval", video=number))
    return made


@pytest.mark.parametrize("way", [0, 5, 11])
def test_the_head_and_the_way_that_retrieve_are_found(way):
    found = find_heads(probes(60, 12, {(1, 2, way): 8.0}))
    assert found.way == WAYS[way]
    assert found.heads[0] == (1, 2)
    assert found.quality > 1.4


def test_weak_heads_that_err_differently_are_joined():
    weak = {(0, 1, 3): 2.2, (1, 3, 3): 2.2, (2, 0, 3): 2.2}
    found = find_heads(probes(200, 12, weak))
    assert set(weak) >= {(*head, 3) for head in found.heads[:3]}
    assert len(found.heads) >= 3
    alone = find_heads(probes(200, 12, weak), most=1)
    assert found.quality > alone.quality + 0.1


def test_heads_that_help_nothing_are_left_out():
    assert len(find_heads(probes(60, 12, {(1, 2, 4): 50.0})).heads) == 1


def test_a_margin_holds_the_needed_chunk_as_surely_as_asked():
    held_out = probes(500, 12, {(0, 0, 0): 2.5}, seed=1)
    tuned = probes(500, 12, {(0, 0, 0): 2.5}, seed=2)

    def scores(some: list[Probe]) -> list[torch.Tensor]:
        return [probe.scores[0, 0, 0] for probe in some]

    for confidence in (0.85, 0.9, 0.99):
        margin = margin_for(scores(tuned), tuned, confidence)
        held = sum(
            float(item[probe.needed[0]]) >= float(item.max()) - margin
            for item, probe in zip(scores(held_out), held_out, strict=True)
        )
        assert held / len(held_out) == pytest.approx(confidence, abs=0.03)


def test_with_few_probes_the_margin_is_the_largest_gap_seen():
    few = probes(5, 12, {})
    scores = [probe.scores[0, 0, 0] for probe in few]
    gaps = [float(item.max() - item[probe.needed[0]]) for item, probe in zip(scores, few, strict=True)]
    assert margin_for(scores, few, 0.99) == max(gaps)


def test_recall_counts_any_needed_chunk_among_the_best():
    some = [Probe(scores=torch.zeros(1, 1, 12, 3), needed=(0, 2), kind="retrieval", video=0)]
    assert recall([torch.tensor([0.0, 2.0, 1.0])], some, 1) == 0.0
    assert recall([torch.tensor([0.0, 2.0, 1.0])], some, 2) == 1.0
