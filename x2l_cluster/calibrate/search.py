"""The search itself: pure functions over the scores of probes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x2l_cluster.calibrate.probes import Probe
from x2l_cluster.select.scoring import WAYS, Way, zscore

CANDIDATES = 16
"""How many of the best single heads of each way are tried together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best set of heads, all used one way."""

    way: Way
    heads: tuple[tuple[int, int], ...]
    quality: float


def find_heads(probes: Sequence[Probe], *, most: int = 6) -> Found:
    """Searches head sets × ways for the one that retrieves best.

    For each way, the best single heads are candidates; the set grows greedily, by the head that helps most, for as
    long as it helps. Ways compete by the quality of their sets; ties go to the earlier way (``WAYS``).

    Args:
        probes: with scores (layers, heads, ways, chunks), of any number of chunks.
        most: heads in the set at most.
    """
    assert probes, "a search needs probes"
    found = [_grow(probes, index, most) for index in range(len(WAYS))]
    return max(found, key=lambda item: item.quality)


def _grow(probes: Sequence[Probe], way: int, most: int) -> Found:
    standard = [zscore(probe.scores[:, :, way].flatten(0, 1)) for probe in probes]  # (layers · heads, chunks)
    heads = probes[0].scores.shape[1]
    single = quality(standard, probes)
    candidates = single.argsort(descending=True, stable=True)[:CANDIDATES].tolist()
    chosen: list[int] = []
    sums = [torch.zeros_like(item[:1]) for item in standard]
    best = -math.inf
    while len(chosen) < most:
        left = [head for head in candidates if head not in chosen]
        if not left:
            break
        tried = quality([total + item[left] for total, item in zip(sums, standard, strict=True)], probes)
        at = int(tried.argmax())
        if float(tried[at]) <= best + 1e-4:
            break
        best = float(tried[at])
        chosen.append(left[at])
        sums = [total + item[left[at]] for total, item in zip(sums, standard, strict=True)]
    return Found(way=WAYS[way], heads=tuple((head // heads, head % heads) for head in chosen), quality=best)


def quality(scores: Sequence[Tensor], probes: Sequence[Probe]) -> Tensor:
    """How well rows of scores retrieve: recall@1 plus, to tell near-perfect heads apart, half the mean reciprocal rank
    and a little of how clearly the needed chunk stands out.

    Args:
        scores: of each probe, (rows, chunks).

    Returns:
        (rows,).
    """
    total = torch.zeros(scores[0].shape[0])
    for item, probe in zip(scores, probes, strict=True):
        needed = item[:, list(probe.needed)].amax(1)
        others = item.clone()
        others[:, list(probe.needed)] = -math.inf
        above = (others >= needed[:, None]).sum(1)
        lead = (needed - others.amax(1)).clamp(-3, 3) if item.shape[1] > len(probe.needed) else torch.zeros_like(needed)
        total += (above == 0).float() + 0.5 / (1 + above) + 0.05 * lead
    return total / len(probes)


def recall(scores: Sequence[Tensor], probes: Sequence[Probe], k: int) -> float:
    """Share of probes with a needed chunk among the best ``k``; scores of each probe (chunks,)."""
    hits = [
        bool(set(item.argsort(descending=True, stable=True)[:k].tolist()) & set(probe.needed))
        for item, probe in zip(scores, probes, strict=True)
    ]
    return sum(hits) / len(hits)


def margin_for(scores: Sequence[Tensor], probes: Sequence[Probe], confidence: float) -> float:
    """The margin below the best score within which a needed chunk lies for a share ``confidence`` of the probes.

    The conservative empirical quantile: with n probes, the ⌈(n + 1) · confidence⌉-th smallest gap (split conformal
    prediction), the largest one where n is too small for that.
    """
    gaps = sorted(
        float(item.max() - item[list(probe.needed)].max()) for item, probe in zip(scores, probes, strict=True)
    )
    rank = math.ceil((len(gaps) + 1) * confidence)
    return gaps[min(rank, len(gaps)) - 1]
